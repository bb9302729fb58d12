"""What speaks to the outside: a registry of avatars, gRPC and HTTP. `python -m serve`."""
