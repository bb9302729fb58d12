"""The messages: .proto files, and the modules that `python -m serve.rpc.protos.build` makes."""
