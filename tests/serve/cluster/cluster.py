"""`python -m serve.cluster` with two replicas on this machine's CPU, and clients of it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc
from tests.conftest import ROOT
from tests.engine.tiny import write_avatar
from tests.ports import free_port

SECONDS = 60  # for whatever should happen soon
TOKEN = "correct-horse-battery-staple"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class Cluster:
    """A cluster that runs."""

    def __init__(self, process: subprocess.Popen, ports: list[int], log: Path):
        self.process, self.log = process, log
        self.port, self.http_port, self.metrics_port = ports
        self.url = f"http://127.0.0.1:{self.http_port}"

    def channel(self):
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")

    def replicas(self) -> set[int]:
        """Return the processes of the replicas."""
        found = set()
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                number = int(folder.name)
                name = (folder / "cmdline").read_bytes()
                if name.startswith(b"ray::ServeReplica:viseme") and self._is_ours(number):
                    found.add(number)
        return found

    def _is_ours(self, number: int) -> bool:
        environment = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        return f"VISEME_TEST_PORT={self.port}".encode() in environment


@contextmanager
def running(folder: Path):
    """Run a cluster with two avatars, "anna", which is preloaded, and "ben"."""
    for name in ("anna", "ben"):
        path = write_avatar(folder / name) / "avatar.json"
        # at 2 frames a second, any machine has time for all of the tests' sessions
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fps": 2}))
    ports = port, http_port, metrics_port = [free_port() for _ in range(3)]
    config = {
        "server": {
            "port": port, "http_port": http_port, "drain_seconds": 1, "tokens": [TOKEN],
            "max_message_size_mb": 1,
        },
        "cluster": {"replicas": 2, "cpus": 0.1, "metrics_port": metrics_port},
        "limits": {"max_sessions": 12},
        "models": {
            "anna": {"avatar": "anna", "preload": True},
            "ben": {"avatar": "ben"},
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "serve.cluster", folder / "config.yaml", "--device", "cpu"]
    environment = {
        # without what a command of another test has set in this process for Ray
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "VISEME_TEST_PORT": str(port),
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # not three tries of what cannot start
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
        )
    cluster = Cluster(process, ports, log)
    try:
        until(lambda: "page at" in log.read_text() or process.poll() is not None, 180)
        assert process.poll() is None, log.read_text()
        yield cluster
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait()
    until(lambda: not cluster.replicas())


def until(true, seconds: float = SECONDS) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


class Session:
    """A live session over gRPC, which is read in a task until it ends.

    Attributes:
        opened: the server's first message; None if there was none.
        numbers: of the pieces that came.
        status: the code at its end, and what was said.
    """

    def __init__(self, channel, metadata=METADATA, **options):
        self.call = viseme_pb2_grpc.VisemeStub(channel).Live(metadata=metadata)
        self.options = {"avatar": "anna", "clock": pb.CLOCK_WALL} | options
        self.opened, self.numbers, self.status, self.trailing = None, [], None, ()
        self.began, self._sent = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def write(self, **request) -> None:
        await self._sent.wait()
        await self.call.write(pb.LiveRequest(**request))

    async def end(self) -> None:
        self.call.cancel()
        await asyncio.wait([self.task])

    async def _read(self) -> None:
        try:
            await self.call.write(pb.LiveRequest(open=pb.OpenSession(**self.options)))
            self._sent.set()
            async for response in self.call:
                if response.HasField("opened"):
                    self.opened = response.opened
                    self.began.set()
                elif response.HasField("piece"):
                    self.numbers.append(response.piece.number)
            self.status = (await self.call.code(), "")
        except grpc.aio.AioRpcError as error:
            self.status = (error.code(), error.details())
            self.trailing = dict(error.trailing_metadata() or ())
        finally:
            self._sent.set()
            self.began.set()
