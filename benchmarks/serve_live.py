"""Many clients of `viseme.v1.Viseme` at once, for a while: python -m benchmarks.serve_live

Small frames that are not computed, so that what is measured is the server: gRPC, the scheduler, the
encoders. Clients run in a process of their own. Each talks for a while, pauses, and interrupts now
and then.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from benchmarks.live_scheduler import BATCH, EmptyRenderer
from engine import Avatar
from engine.live import Live
from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc

STEP = 0.02  # seconds of speech in a message
FPS = 25
AHEAD = 3 / FPS  # seconds by which frames may be made before they are due


async def client(address: str, number: int, seconds: float) -> dict[str, Any]:
    """Talk for so many seconds.

    Returns:
        "late": seconds by which each piece came after the time at which it was due, that of the
        first one being `AHEAD` after the session was opened; and what the server said.
    """
    found: dict[str, Any] = {"late": [], "events": {}, "interruptions": 0, "gaps": 0}
    arrivals, begin = list[float](), 0.0
    turn = random.Random(number)
    async with grpc.aio.insecure_channel(address) as channel:
        call = viseme_pb2_grpc.VisemeStub(channel).Live()
        await call.write(
            pb.LiveRequest(open=pb.OpenSession(avatar="tiny", picture=pb.PICTURE_H264))
        )

        async def talk() -> None:
            noise = np.random.default_rng(number).integers(-9000, 9000, 16000, np.int16)
            start = time.monotonic()
            while time.monotonic() - start < seconds:
                due = time.monotonic()
                for _ in range(turn.randrange(25, 250)):
                    at = turn.randrange(0, 15000)
                    await call.write(pb.LiveRequest(pcm=noise[at : at + 320].tobytes()))
                    due += STEP
                    await asyncio.sleep(max(due - time.monotonic(), 0))
                if turn.random() < 0.3:
                    found["interruptions"] += 1
                    await call.write(pb.LiveRequest(interrupt=pb.Interrupt()))
                else:
                    await call.write(pb.LiveRequest(flush=pb.Flush()))
                await asyncio.sleep(turn.random())
            await call.done_writing()

        talking = asyncio.create_task(talk())
        async for message in call:
            if message.HasField("piece"):
                found["gaps"] += message.piece.number != len(arrivals)
                arrivals.append(time.monotonic() - message.piece.number / FPS)
            elif message.HasField("opened"):
                begin = time.monotonic() + AHEAD
            else:
                kind = message.event.WhichOneof("event")
                total = getattr(getattr(message.event, kind), "total", None)
                found["events"][kind] = total or found["events"].get(kind, 0) + 1
        await talking
    found["late"] = [round(arrival - begin, 4) for arrival in arrivals]
    return found


async def clients(address: str, count: int, seconds: float) -> None:
    """Run the clients, and print what they found as JSON."""
    work = [client(address, number, seconds) for number in range(count)]
    print(json.dumps(await asyncio.gather(*work)))


async def serve(count: int, seconds: float) -> None:
    """Run the server, and print a summary."""
    from tests.engine.tiny import write_avatar
    from tests.serve.rpc.server import serving

    with tempfile.TemporaryDirectory() as folder:
        avatar = Avatar.load(write_avatar(Path(folder) / "tiny"))
        live: Any = Live(avatar, precision="fp32", start=False)
    live._renderer = _Pictures(avatar)
    live.capacity = lambda: 2 * count
    live.scheduler.start()
    with live:
        async with serving({"tiny": live}) as server:
            command = [sys.executable, "-m", "benchmarks.serve_live", "--address", server.address]
            process = await asyncio.create_subprocess_exec(
                *command, "--clients", str(count), "--seconds", str(seconds),
                stdout=asyncio.subprocess.PIPE, limit=1 << 28,
            )  # fmt: skip
            began, cpu = time.monotonic(), time.process_time()
            memory = asyncio.create_task(_memory(began))
            said, _ = await process.communicate()
            memory.cancel()
            cores = (time.process_time() - cpu) / (time.monotonic() - began)
            found = json.loads(said)
            sizes = _sizes
    late = np.concatenate([np.array(one["late"]) for one in found])
    kinds = ("late", "skipped", "underrun", "interrupted")
    events = {kind: sum(one["events"].get(kind, 0) for one in found) for kind in kinds}
    steady = [size for at, size in sizes if at > min(10, seconds / 2)]
    print(
        f"{count} clients, {len(late)} pieces, {sum(one['gaps'] for one in found)} gaps, "
        f"{sum(one['interruptions'] for one in found)} interruptions\n"
        f"after the time at which they were due, as the client sees it: median "
        f"{1000 * np.median(late):.1f} ms, 99% {1000 * np.quantile(late, 0.99):.1f} ms, "
        f"most {1000 * late.max():.1f} ms; {np.mean(late > 1 / FPS):.2%} later than a frame\n"
        f"events: {events}\n"
        f"server: {cores:.2f} cores; resident memory after 10 s {steady[0] / 1e6:.1f} MB, "
        f"at the end {steady[-1] / 1e6:.1f} MB, most {max(steady) / 1e6:.1f} MB"
    )


_sizes: list[tuple[float, int]] = []


async def _memory(began: float) -> None:
    while True:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        _sizes.append((time.monotonic() - began, pages * 4096))
        await asyncio.sleep(1)


class _Pictures(EmptyRenderer):
    """Makes frames out of a few that are there."""

    def __init__(self, avatar: Avatar):
        super().__init__()
        shape = BATCH, 1, avatar.height, avatar.width, 3
        self._frames = list(torch.randint(0, 256, shape, dtype=torch.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_live", description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--address", help="of a server; used by the benchmark itself")
    options = parser.parse_args()
    if options.address:
        asyncio.run(clients(options.address, options.clients, options.seconds))
    else:
        asyncio.run(serve(options.clients, options.seconds))


if __name__ == "__main__":
    main()
