"""TensorRT plans: what builds them, out of which graphs, and the record beside each."""
