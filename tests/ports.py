"""Ports for the servers that tests start."""

import socket


def free_port() -> int:
    """Return a port of 127.0.0.1 at which nothing listens now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
