"""Many GPUs behind one address, through Ray Serve: `python -m serve.cluster CONFIG.yaml`.

Ray Serve keeps the replicas, one a GPU, and a proxy on each node. The proxies take gRPC and HTTP;
a replica is what `python -m serve` is, without ports of its own.
"""
