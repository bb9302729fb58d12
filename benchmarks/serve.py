"""`python -m benchmarks.serve`: batches of frames through gRPC, next to the pipeline in Python.

Its parts: `own` (the server cuts the faces from its own frames), `faces` (clients send them, 2.5 MB
a frame) and `loading` (meanwhile another avatar, with networks of its own, is loaded every few
seconds).

The clients are another process. Each figure of gRPC is taken in turn with one of a render in this
process by the same pipeline, whose frames are encoded as JPEG too; "share" is the ratio of both.
"""

import asyncio
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import numpy as np
from PIL import Image

from benchmarks import measurements, providers, report, runner
from benchmarks.live_clients import percentiles
from benchmarks.report import BATCH, CASE, PROVIDER, VISEME, Column
from benchmarks.runner import NO_GPU, Budget, Job
from engine.command import program
from engine.pipeline import Pipeline
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from examples import DEMO, network_files
from serve.config import Config
from serve.registry import Registry
from serve.rpc.composite_request import samples_needed
from serve.rpc.monolithic import add_to_server

PARTS = ("own", "faces", "loading")
STAGES = {"own": "its own frames", "faces": "the clients' faces", "loading": "while one is loaded"}
GRPC = f"{VISEME}, gRPC"
MODEL, OTHER = "avatar", "other"
QUALITY = 75
PAUSE = 2.0  # seconds between two loads
ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "onnxruntime", "tensorrt", "tensorrt_rtx", "grpc", "PIL", "numpy")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServeBudget(Budget):
    """What is measured of a server."""

    clients: tuple[int, ...]
    requests: int  # of each client in a round
    rounds: int


FRAME = (720, 1280)
GPU = ServeBudget(
    (25,), (FRAME,), 25, copied=1 << 30, sample=0.3, job=60, compiling=0, total=400,
    clients=(1, 4, 16), requests=20, rounds=3,
)  # fmt: skip
CPU = ServeBudget(
    (25,), (FRAME,), 25, copied=1 << 28, sample=2.0, job=900, compiling=0, total=3600,
    clients=(1, 4, 16), requests=4, rounds=3,
)  # fmt: skip
QUICK = ServeBudget(
    (2,), ((180, 320),), 2, copied=1 << 22, sample=0.01, job=120, compiling=0, total=300, avatar=4,
    clients=(1, 2), requests=2, rounds=1,
)  # fmt: skip


class Served:
    """A server of two avatars, in a thread. A context manager.

    Args:
        model, other: the avatars, as in a configuration.
        gpus: how many there are to use.

    Attributes:
        port: of gRPC.
        pipeline: of the avatar.
    """

    def __init__(self, model: dict[str, Any], other: dict[str, Any], gpus: int):
        self.config = Config.model_validate(
            {
                "models": {MODEL: model, OTHER: other},
                "gpus": {"count": gpus},
                "output": {"jpeg_quality": QUALITY},
            }
        )
        self.port = 0
        self.pipeline: Pipeline
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop, and wait for it."""
        return self.begin(work).result()

    async def _start(self) -> None:
        self._registry = Registry(self.config)
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        add_to_server(self._registry, self.config, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        use = await self._registry.load(MODEL)
        self.pipeline = use.served.renders.pipeline

    async def _stop(self) -> None:
        await self._server.stop(None)
        await self._registry.close()

    async def load_and_unload(self, done: Callable[[], bool]) -> list[float]:
        """Load the other avatar every few seconds; return how long each load took."""
        seconds = []
        while not done():
            await asyncio.sleep(PAUSE)
            use = await self._registry.load(OTHER)
            seconds.append(use.load_seconds)
            del use
            await self._registry.unload(OTHER)
        return seconds

    def __enter__(self) -> "Served":
        self._thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call(self._stop())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# --- measurements ---------------------------------------------------------------------------------


def in_python(pipeline: Pipeline, frames: int) -> float:
    """Return the frames a second of a render that is encoded in threads, as the server does."""

    def encode(rgb: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "jpeg", quality=QUALITY, subsampling="4:2:0")
        return file.tell()

    speech, sizes = measurements.speech(frames), list[Future[int]]()
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in pipeline.render(speech, loop="wrap"):
            sizes.extend(pool.submit(encode, rgb) for rgb in batch.cpu().numpy())
    seconds = time.perf_counter() - begin
    if not all(size.result() for size in sizes):  # raises what an encoder has raised
        raise RuntimeError("a frame was encoded to 0 bytes")
    return len(sizes) / seconds


def through_grpc(served: Served, clients: int, faces: bool, budget: ServeBudget) -> dict:
    """Return what clients in another process saw."""
    count = budget.main
    options = {
        "port": served.port, "clients": clients, "requests": budget.requests, "count": count,
        "samples": samples_needed(count, 0),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.serve_clients", MODEL]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        command + ["--faces"] * faces, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def measure(served: Served, part: str, clients: int, budget: ServeBudget) -> dict:
    """Measure clients in turn with a render in this process."""
    rates, alone, seconds, loads = [], [], list[float](), list[float]()
    for _ in range(budget.rounds):
        alone.append(in_python(served.pipeline, budget.main * max(budget.requests, 2)))
        over = threading.Event()
        loading = None
        if part == "loading":
            loading = served.begin(served.load_and_unload(over.is_set))
        try:
            seen = through_grpc(served, clients, part == "faces", budget)
        finally:
            over.set()
            loads += loading.result() if loading is not None else []
        rates.append(budget.main * len(seen["seconds"]) / seen["together"])
        seconds += seen["seconds"]
    figures = {
        "runtime": served.pipeline.generator.description,
        "frames a second": statistics.median(rates),
        "in Python, frames a second": statistics.median(alone),
        "share of Python's rate": statistics.median(
            rate / other for rate, other in zip(rates, alone, strict=True)
        ),
        "request, s": percentiles(seconds),
        "requests": len(seconds),
    }
    return figures | ({"load, s": percentiles(loads), "loads": len(loads)} if loads else {})


def jobs(served: Served, parts: tuple[str, ...], budget: ServeBudget) -> Iterator[Job]:
    """List the measurements of some parts."""
    avatar = served.pipeline.avatar
    for part in parts:
        for clients in budget.clients:
            row = {
                "provider": GRPC, "stage": STAGES[part], "clients": clients, "batch": budget.main,
                "frame size": [avatar.width, avatar.height],
            }  # fmt: skip
            yield Job(row, partial(measure, served, part, clients, budget), budget.job)


def table(results: dict) -> str:
    """Format the results as text."""
    columns = [
        CASE, PROVIDER, Column("clients", form="d"), BATCH,
        Column("frames/s", "frames a second", ".2f"),
        Column("in Python", "in Python, frames a second", ".2f"),
        Column("share", "share of Python's rate", ".1%"),
        *(
            Column(f"{title} ms", f"request, s/{key}", ".0f", 1e3)
            for title, key in (("request p50", "p50"), ("p99", "p99"), ("max", "max"))
        ),
        Column("requests", form="d"), Column("loads", form="d"),
        Column("load p50, s", "load, s/p50", ".2f"),
    ]  # fmt: skip
    return report.text(results, report.table(report.ordered(results), columns))


def main() -> int:
    chosen, device, budget = runner.parse_parts(
        "serve", "Measure batches through gRPC.", PARTS, gpu=GPU, cpu=CPU, quick=QUICK
    )
    benchmark = runner.Benchmark("serve", chosen.output, device, PACKAGES, table)
    if device.type == "cpu":
        benchmark.leave_out("GPU", NO_GPU)
    with tempfile.TemporaryDirectory() as scratch:
        model, other = (_model(budget, Path(scratch) / name) for name in (MODEL, OTHER))
        with Served(model, other, int(device.type == "cuda")) as served:
            benchmark.measure(jobs(served, tuple(chosen.parts), budget), budget)
    benchmark.finish(
        "frames a second", "frames a second", lambda _: {}, over="clients", scale="linear"
    )
    return 0 if benchmark.results["measured"] else 1


def _model(budget: ServeBudget, scratch: Path) -> dict[str, Any]:
    """Return the demo with its own copies of the networks; in a quick run, with frames made of its
    person."""
    scratch.mkdir()
    (size,) = budget.sizes
    networks = {kind: Path(shutil.copy(path, scratch)) for kind, path in network_files().items()}
    own = {
        "model_path": networks[GENERATOR.kind],
        "audio_encoder": networks[AUDIO_ENCODER.kind],
    }
    if size == FRAME:
        return {"avatar": DEMO, **own}
    scene = providers.make_scene(scratch / "avatar", networks, *size, budget.avatar)
    return {"avatar": scene.folder, **own}


if __name__ == "__main__":
    program(main)
