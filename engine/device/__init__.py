"""Buffers of a render, how its stages run on a CPU or a GPU, copies to the host, times."""
