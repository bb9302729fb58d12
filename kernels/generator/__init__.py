"""The generator as kernels of whole blocks: an inverted residual writes only its output."""
