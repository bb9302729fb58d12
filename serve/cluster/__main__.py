"""`python -m serve.cluster CONFIG.yaml`: serve avatars on many GPUs, through Ray Serve."""

import argparse
import contextlib
import logging
import os
import queue
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from engine.command import Parser, program, run
from engine.errors import InputError, one_line, printable

# Before Ray is imported, here and in the processes that it starts. Between proxies and replicas
# messages go by gRPC: Ray's own transport keeps all that a slow client has not read yet. A proxy
# takes seconds to import the services, on busy machines more than the three times 5 it would have.
ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, gRPCOptions

    from .. import log
    from ..config import Config, load
    from ..server import listen
    from .deployment import NAME, deploy_again, deployed, deployment
except ModuleNotFoundError as error:
    print(
        f"error: {error.name} is not installed: pip install 'viseme[serve,cluster]'",
        file=sys.stderr,
    )
    sys.exit(2)

SERVICES = "serve.cluster.services.add_services"
CONNECT_SECONDS = 10.0
MOST_GPUS = 10_000  # all that there are
ALL = "0.0.0.0"  # addresses: where Ray Serve's proxies take gRPC
PROXIES = ("host", "port", "http_port", "max_message_size_mb")  # keys of their options

_log = logging.getLogger("serve")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    log.configure()
    return run(lambda: serve_cluster(options), interrupted="the replicas were not waited for")


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
            for line in begin(config, options.device):
                print(printable(line), flush=True)
            while config.cluster.address is None:
                signals.wait_for_update()
                try:
                    _update(config, _configured(options), options.device)
                except InputError as error:
                    _log.error("not updated: %s", error)
        except _End:
            if config.cluster.address is not None:
                raise KeyboardInterrupt from None
        finally:
            if config.cluster.address is None:
                serve.shutdown()
            ray.shutdown()


def _configured(options: argparse.Namespace) -> Config:
    # How many GPUs the cluster has is known later; this machine may have none of them.
    config = load(options.config, avatars=options.avatar, device=options.device, gpus=MOST_GPUS)
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
    for name in ("port", "http_port"):
        if not getattr(config.server, name):
            raise InputError(
                f"server.{name} is 0; expected the port of Ray Serve's proxies, on all nodes"
            )
    most = config.cluster.max_replicas
    if most is not None and config.cluster.replicas is not None and most < config.cluster.replicas:
        raise InputError(
            f"cluster.max_replicas is {most}; expected at least {config.cluster.replicas} "
            "(cluster.replicas)"
        )


def _update(first: Config, config: Config, device: str | None) -> None:
    """Replace all replicas.

    Args:
        first: the configuration with which the proxies were started.

    Raises:
        InputError: the proxies would have to be others, or the replicas do not start.
    """
    for name in PROXIES:
        old, new = getattr(first.server, name), getattr(config.server, name)
        if old != new:
            raise InputError(
                f"server.{name} is {new}; expected {old}, as long as this command runs"
            )
    begin(config, device)
    _log.info("all replicas are new")


def begin(config: Config, device: str | None) -> list[str]:
    """Start the proxies, and run or update the deployment. Returns when replicas are ready.

    If new replicas do not start, those that were there go on, and are what is wanted again: Ray
    Serve would not replace one of them that dies.

    Args:
        device: the option.

    Returns:
        What is served and where, a line each.

    Raises:
        InputError: proxies or replicas do not start, or there are too few GPUs.
    """
    gpus = gpus_of(config, device, int(ray.cluster_resources().get("GPU", 0)))
    most = config.cluster.max_replicas or gpus
    replicas = config.cluster.replicas or max(min(gpus, most), 1)
    server = config.server
    try:
        serve.start(
            http_options=HTTPOptions(host=server.host, port=server.http_port),
            grpc_options=gRPCOptions(port=server.port, grpc_servicer_functions=[SERVICES]),
        )
    except (RayError, TimeoutError) as error:
        raise InputError(f"Ray Serve's proxies do not start: {one_line(error)}") from None
    before = deployed()
    try:
        app = deployment(config, replicas, gpus=gpus > 0, update=time.time_ns())
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        reason = _reason(error)
        if before is None:
            raise InputError(f"the replicas do not start: {reason}") from None
        deploy_again(before)
        raise InputError(
            f"the new replicas do not start, and the old ones go on: {reason}"
        ) from None
    host = f"[{server.host}]" if ":" in server.host else server.host
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    names = ", ".join(config.models)
    count = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return [
        f"{count} on {'GPUs' if gpus else 'the CPU'}: {names}",
        f"gRPC at {reached}:{server.port}, on all addresses of each node",
        f"page at http://{reached}:{server.http_port}/",
    ]


def gpus_of(config: Config, device: str | None, there: int) -> int:
    """Return how many GPUs to use; 0 for the CPU.

    Args:
        device: the option.
        there: GPUs of the cluster.

    Raises:
        InputError: there are too few.
    """
    if device == "cuda" and not there:
        raise InputError("--device is cuda, but the Ray cluster has no GPU; expected --device cpu")
    count = config.gpus.count or 0
    if there < count < MOST_GPUS:
        raise InputError(
            f"gpus.count is {count}, but the Ray cluster has {there}; expected at most that, "
            "0 or --device cpu for the CPU"
        )
    return min(count, there)


def _reason(error: RuntimeError) -> str:
    """Return why replicas do not start: the line of an error of ours, which Ray Serve has in a
    traceback in its status."""
    texts = [
        one.message
        for application in serve.status().applications.values()
        for one in application.deployments.values()
    ]
    found = re.findall(r"^\S*InputError: (.+)$", "\n".join(texts), re.MULTILINE)
    return one_line(found[-1] if found else error)


def _connect(config: Config) -> None:
    """Connect to a Ray cluster, or start one, whose processes have this one's environment.

    Raises:
        InputError: there is none at the address, or it cannot be used; or a port of this machine is
            in use.
    """
    cluster, server, local = config.cluster, config.server, config.cluster.address is None
    if local:  # Ray's proxies would share ports with others, and clients with them
        listen(server.host, server.http_port).close()
        listen(ALL, server.port).close()
        if cluster.metrics_port is not None:
            listen(ALL, cluster.metrics_port).close()
    else:
        _reach(str(cluster.address))
    options = {"include_dashboard": False, "_metrics_export_port": cluster.metrics_port}
    size = str(config.server.max_message_size_mb << 20)
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", size)
    try:
        ray.init(
            address="local" if local else cluster.address,
            namespace=NAME,
            logging_level=logging.WARNING,
            **(options if local else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:  # such as another release of Ray
        if local:
            raise InputError(f"Ray does not start: {one_line(error)}") from None
        raise InputError(
            f"cluster.address is {cluster.address!r}: {one_line(error)}; expected that of a Ray "
            "cluster that runs"
        ) from None


def _reach(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would try for minutes, and hear no signal.

    Raises:
        InputError: it is HOST:PORT, and cannot be reached.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not (port.isascii() and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        why = one_line(getattr(error, "strerror", None) or error)
        raise InputError(
            f"cluster.address is {address!r}: {why}; expected that of a Ray cluster that runs"
        ) from None


class _End(BaseException):
    """SIGTERM or SIGINT came."""


class _Signals:
    """SIGTERM and SIGINT raise `_End` wherever the main thread is: it may wait for replicas that
    never start. SIGHUP waits until it is asked for.
    """

    def __init__(self) -> None:
        self._updates: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wait_for_update(self) -> None:
        """Wait for SIGHUP. Several that came meanwhile are one."""
        self._updates.get()
        while not self._updates.empty():
            self._updates.get()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        handlers = {signal.SIGTERM: _end, signal.SIGINT: _end, signal.SIGHUP: self._update}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _update(self, *_: object) -> None:
        self._updates.put(None)


def _end(*_: object) -> NoReturn:
    raise _End


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
