"""What Ray Serve's proxy costs a live frame: python -m benchmarks.cluster

The same session, made as fast as it is read, in this process, from `python -m serve`, and from one
replica of `python -m serve.cluster`. Two kinds of pictures: none, so that what is left is a message
a frame, and RGB, the largest. Networks and frames are small: what is measured is the way of a
frame, not its making.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from tqdm import tqdm

from engine import Avatar
from engine.command import program
from engine.live import Live
from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc
from tests.engine.tiny import write_avatar
from tests.ports import free_port

HEIGHT, WIDTH, RATE = 360, 640, 16000
PICTURES = {"none": pb.PICTURE_NONE, "rgb": pb.PICTURE_RGB}
START_SECONDS = 180.0

Process = subprocess.Popen[bytes]


class Figure(NamedTuple):
    """One run: milliseconds a frame, and those of all processes' cores that the server took."""

    wall: float
    cores: float


def speech(seconds: float) -> np.ndarray:
    random = np.random.default_rng(1)
    return (random.uniform(-0.3, 0.3, int(seconds * RATE)) * 32767).astype("<i2")


def in_process(avatar: Path, seconds: float) -> Figure:
    """Run a session in this process."""
    with (
        Live(Avatar.load(avatar, device="cpu")) as live,
        live.open(sample_rate=RATE, clock="taken") as session,
    ):
        session.push(speech(seconds))
        session.flush()
        begin, cores, frames = time.perf_counter(), time.process_time(), 0
        for piece in session:
            frames += 1
            if piece.end:
                break
        wall = time.perf_counter() - begin
        return Figure(1e3 * wall / frames, 1e3 * (time.process_time() - cores) / frames)


@contextmanager
def server(
    module: str, avatar: Path, folder: Path
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server with one avatar until the block ends."""
    port, http_port = free_port(), free_port()
    config = {
        "server": {"port": port, "http_port": http_port},
        "cluster": {"replicas": 1, "cpus": 0.1},
        "models": {"tiny": {"avatar": str(avatar), "preload": True}},
    }
    path, log = folder / f"{module}.yaml", folder / f"{module}.log"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", module, str(path), "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while b"page at" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"error: {module} does not start: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def through(port: int, pid: int, picture: Any, seconds: float) -> Figure:
    """Run a session of a server, when its avatar is warm."""
    samples = speech(seconds).tobytes()
    options = [("grpc.max_receive_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = viseme_pb2_grpc.VisemeStub(channel).Live()
        opening = pb.OpenSession(
            avatar="tiny", clock=pb.CLOCK_TAKEN, picture=picture, sample_rate=RATE
        )
        await call.write(pb.LiveRequest(open=opening))
        answers = aiter(call)
        while not (await anext(answers)).HasField("opened"):
            pass
        begin, cores, frames = time.perf_counter(), cpu_seconds(pid), 0
        await call.write(pb.LiveRequest(pcm=samples))
        await call.done_writing()
        async for answer in answers:
            frames += answer.HasField("piece")
        wall = time.perf_counter() - begin
        return Figure(1e3 * wall / frames, 1e3 * (cpu_seconds(pid) - cores) / frames)


def cpu_seconds(pid: int) -> float:
    """Return the seconds that a process and all that it has started have had cores."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for process, spent in seconds.items():
        above = process
        while above not in (0, 1, pid):
            above = parents.get(above, 0)
        total += spent if above == pid else 0.0
    return total


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """Return the median figures of each way, and how they compare."""
    torch.set_num_threads(1)
    found: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        avatar = write_avatar(folder / "tiny", height=HEIGHT, width=WIDTH)
        with (
            server("serve", avatar, folder) as direct,
            server("serve.cluster", avatar, folder) as cluster,
            tqdm(total=rounds, leave=False, disable=None, desc="rounds") as bar,
        ):
            for _ in range(rounds):  # in turn, so that a busy machine disturbs all alike
                found.setdefault("in process", []).append(in_process(avatar, seconds))
                for label, (port, process) in (("serve", direct), ("cluster", cluster)):
                    for kind, picture in PICTURES.items():
                        run = asyncio.run(through(port, process.pid, picture, seconds))
                        found.setdefault(f"{label}, {kind}", []).append(run)
                bar.update()
    return {
        label: {
            "wall_ms": round(statistics.median(run.wall for run in runs), 3),
            "core_ms": round(statistics.median(run.cores for run in runs), 3),
        }
        for label, runs in found.items()
    }


def report(found: dict[str, Any]) -> str:
    lines = [f"{'':16}{'ms a frame':>12}{'core ms':>10}"]
    for label, figures in found.items():
        lines.append(f"{label:16}{figures['wall_ms']:12.2f}{figures['core_ms']:10.2f}")
    for kind in PICTURES:
        more = found[f"cluster, {kind}"]["core_ms"] - found[f"serve, {kind}"]["core_ms"]
        lines.append(f"the proxy adds {more:.2f} ms of a core a frame ({kind})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of speech in a run (20)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind (5)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write a JSON file")
    options = parser.parse_args()
    found = measure(options.seconds, options.rounds)
    print(report(found))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    program(main)
