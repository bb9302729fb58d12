"""TensorRT plans: prepare ONNX graphs, build plans, and read and write the record beside each."""
