"""The stages as Triton kernels: one stage a file, and the device functions that they share."""
