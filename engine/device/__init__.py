"""What a render holds of a GPU: buffers, CUDA graphs, copies to the host, times."""
