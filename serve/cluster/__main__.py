"""`python -m serve.cluster CONFIG.yaml`: serve avatars on many GPUs, through Ray Serve."""

import argparse
import contextlib
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine.command import Parser, program, run
from engine.errors import InputError, one_line, printable

# Before Ray is imported, here and in the processes that it starts. Between proxies and replicas
# messages go by gRPC: Ray's own transport keeps all that a slow client has not read yet.
ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

try:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    from .. import log
    from ..config import Config, load
    from .deployment import NAME, deployment
except ModuleNotFoundError as error:
    print(
        f"error: {error.name} is not installed: pip install 'viseme[serve,cluster]'",
        file=sys.stderr,
    )
    sys.exit(2)

SERVICES = "serve.cluster.services.add_services"

_log = logging.getLogger("serve")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    log.configure()
    return run(lambda: serve_cluster(options), interrupted="the cluster has ended")


def serve_cluster(options: argparse.Namespace) -> None:
    """Run or update the deployment. On a Ray cluster of its own, serve until a signal.

    SIGHUP reads the configuration again, and replaces all replicas; sessions on old ones go on for
    `drain_seconds`.
    """
    config = _configured(options)
    _connect(config)
    signals = _Signals()
    with signals.handled():  # after Ray, which has set handlers of its own
        try:
            for line in begin(config, cpu=options.device == "cpu"):
                print(printable(line), flush=True)
            if config.cluster.address is not None:
                return
            while signals.next() == signal.SIGHUP:
                try:
                    begin(_configured(options), cpu=options.device == "cpu")
                    _log.info("all replicas are new")
                except InputError as error:
                    _log.error("not updated: %s", error)
        finally:
            if config.cluster.address is None:
                serve.shutdown()
            ray.shutdown()


def _configured(options: argparse.Namespace) -> Config:
    config = load(options.config, avatars=options.avatar, device=options.device)
    log.set_level(config.log_level)
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse what Ray Serve's proxies cannot do.

    Raises:
        InputError: the configuration asks for it.
    """
    if config.server.tls is not None:
        raise InputError(
            "server.tls is set, but Ray Serve's proxies speak no TLS; expected a proxy with TLS in "
            "front of them, and no server.tls"
        )
    most = config.cluster.max_replicas
    if most is not None and config.cluster.replicas is not None and most < config.cluster.replicas:
        raise InputError(
            f"cluster.max_replicas is {most}; expected at least {config.cluster.replicas} "
            "(cluster.replicas)"
        )


def begin(config: Config, *, cpu: bool) -> list[str]:
    """Start the proxies, and run or update the deployment. Returns when replicas are ready.

    Args:
        cpu: whether GPUs of the cluster are left alone.

    Returns:
        What is served and where, a line each.

    Raises:
        InputError: the replicas do not start.
    """
    there = int(ray.cluster_resources().get("GPU", 0))
    gpus = there > 0 and not cpu and config.gpus.count != 0
    replicas = config.cluster.replicas or (there if gpus else 1)
    replicas = min(replicas, config.cluster.max_replicas or replicas)
    server = config.server
    serve.start(
        http_options=HTTPOptions(host=server.host, port=server.http_port),
        grpc_options=gRPCOptions(port=server.port, grpc_servicer_functions=[SERVICES]),
    )
    try:
        app = deployment(config, replicas, gpus=gpus, update=time.time_ns())
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise InputError(f"the replicas do not start: {one_line(error)}") from None
    host = f"[{server.host}]" if ":" in server.host else server.host
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    names = ", ".join(config.models)
    return [
        f"{replicas} replicas on {'GPUs' if gpus else 'the CPU'} serve {names}",
        f"gRPC at {reached}:{server.port}, on all addresses of each node",
        f"page at http://{reached}:{server.http_port}/",
    ]


def _connect(config: Config) -> None:
    """Connect to a Ray cluster, or start one, whose processes have this one's environment.

    Raises:
        InputError: there is none at the address.
    """
    cluster, local = config.cluster, config.cluster.address is None
    size = str(config.server.max_message_size_mb << 20)
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", size)
    try:
        ray.init(
            address="local" if local else cluster.address,
            namespace=NAME,
            logging_level=logging.WARNING,
            include_dashboard=False if local else None,
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"cluster.address is {cluster.address!r}: {one_line(error)}; expected that of a Ray "
            "cluster that runs"
        ) from None


class _Signals:
    """SIGTERM, SIGINT and SIGHUP, in the order in which they come."""

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()

    def next(self) -> int:
        """Wait for a signal."""
        return self._came.get()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {n: signal.signal(n, lambda number, _: self._came.put(number)) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m serve.cluster",
        description="Serve avatars on many GPUs, through Ray Serve, until SIGTERM or Ctrl-C.",
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="see docs/serving.md")
    add("--avatar", action="append", default=[], metavar="NAME=DIR", help="serve one more avatar")
    add("--device", choices=("cpu", "cuda"), help="where frames are made (GPUs, if there are any)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
