"""`python -m serve`: serve avatars to clients, over gRPC and HTTP."""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.command import Parser, program, run
from engine.errors import printable

# Children of the server run other programs, and need no gRPC. Its handlers of fork would write a
# line of their own to the log for each child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    from . import log
    from .config import Config, load
    from .server import Server
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed: pip install 'viseme[serve]'", file=sys.stderr)
    sys.exit(2)

UNREACHABLE = {"127.0.0.1", "::1", "localhost"}  # from other machines
MOST_FILES = 65_536  # many systems allow 1024 unless asked
HURRY_SECONDS = 5.0  # after the second signal

_log = logging.getLogger("serve")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    log.configure()
    _allow_files()
    ended: list[int] = []
    code = run(lambda: ended.append(serve(options)), interrupted="nothing was served")
    if ended and ended[0]:  # two signals: threads that load an avatar are not waited for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])
    return code


def _allow_files() -> None:
    """Allow as many open files as the system lets: a session's player takes several sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal.

    Returns:
        0, or the exit code that says which second signal ended it.
    """
    config = load(
        options.config,
        avatars=options.avatar,
        host=options.host,
        port=options.port,
        http_port=options.http_port,
        device=options.device,
    )
    log.set_level(config.log_level)
    return asyncio.run(_serve(config))


async def _serve(config: Config) -> int:
    signals = _Signals()
    with signals.handled():
        server = Server(config)
        await server.start()
        for line in describe(config, server.port, server.http_port):
            print(printable(line), flush=True)
        warn(config)
        await server.serve_until(signals.stop, signals.hurry)
    return signals.code


def describe(config: Config, port: int, http_port: int) -> list[str]:
    """Return what is served and where, a line each, without secrets."""
    server, tls = config.server, config.server.tls is not None
    host = f"[{server.host}]" if ":" in server.host else server.host
    gpus = config.gpus.count
    on = "the CPU" if not gpus else "cuda:0" if gpus == 1 else f"{gpus} GPUs"
    lines = [
        f"{name}: {model.avatar or model.model_path}, on {on}, "
        + ("loaded at the start" if model.preload else "loaded when it is asked for")
        for name, model in config.models.items()
    ]
    lines.append(f"gRPC at {host}:{port}{' with TLS' if tls else ''}")
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # from this machine
    web = f"{'https' if tls else 'http'}://{reached}:{http_port}"
    lines.append(f"page at {web}/")
    lines.append(f"HTTP at {web}/metrics, {web}/healthz, {web}/readyz")
    if server.tokens:
        lines.append(f'calls must bring one of {len(server.tokens)} tokens, "Bearer TOKEN"')
    else:
        lines.append("no token is asked for")
    if server.host in UNREACHABLE:
        lines.append("other machines cannot connect (--host 0.0.0.0 lets them)")
    words = [
        "grpcurl",
        "-plaintext"
        if server.tls is None
        else f"-cacert {shlex.quote(str(server.tls.certificate))}",
    ]
    words += ['-H "authorization: Bearer $TOKEN"'] if server.tokens else []
    lines.append(" ".join([*words, f"{reached}:{port}", "viseme.v1.Viseme/ListAvatars"]))
    return lines


def warn(config: Config) -> None:
    """Log what is open to other machines, and limits that contradict each other."""
    server = config.server
    most, file = (server.max_message_size_mb << 20) / 1e6, config.limits.max_upload_mb
    if file > most:
        _log.warning(
            "limits.max_upload_mb is %g, but a gRPC message of more than %.1f MB is refused; "
            "expected a larger server.max_message_size_mb", file, most,
        )  # fmt: skip
    if server.host in UNREACHABLE:
        return
    if not server.tokens:
        _log.warning("whoever reaches %s can use the server: it has no tokens", server.host)
    elif server.tls is None:
        _log.warning("tokens, speech and video pass the network in clear text: there is no TLS")


class _Signals:
    """SIGTERM, SIGINT or SIGHUP drains the server; a second one ends it at once.

    Attributes:
        code: 0, or the exit code after a second one.
    """

    def __init__(self) -> None:
        self.stop, self.hurry, self.code = asyncio.Event(), asyncio.Event(), 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = [
            number
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup sets it
        ]
        for number in numbers:
            loop.add_signal_handler(number, self._take, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _take(self, number: int) -> None:
        if not self.stop.is_set():
            _log.info("%s: draining; a second signal ends at once", signal.Signals(number).name)
            self.stop.set()
        elif not self.hurry.is_set():
            self.code = 128 + number
            self.hurry.set()
            asyncio.get_running_loop().call_later(HURRY_SECONDS, os._exit, self.code)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m serve",
        description="Serve avatars to clients, over gRPC and HTTP, until SIGTERM or Ctrl-C. "
        "Without arguments, the demo avatar.",
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="see docs/serving.md")
    add("--avatar", action="append", default=[], metavar="NAME=DIR", help="serve one more avatar")
    add("--host", help="address to listen at (127.0.0.1: this machine only)")
    add("--port", type=int, help="of gRPC; 0 for a free one (50053)")
    add("--http-port", type=int, metavar="PORT", help="of HTTP; 0 for a free one (8010)")
    add("--device", choices=("cpu", "cuda"), help="where frames are made (GPUs, if there are any)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
