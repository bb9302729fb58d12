"""The buffers of a render, executors for a CPU and a GPU, copies to the host, and times."""
