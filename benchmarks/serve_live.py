"""Many clients of `viseme.v1.Viseme` at once, for a while: python -m benchmarks.serve_live

Small frames that are not computed, so that what is measured is the server: gRPC, the scheduler, the
encoders. Clients run in a process of their own. Each talks for a while, pauses, and interrupts now
and then. Meanwhile others leave in the middle of their speech: how long the server keeps their
sessions is measured too, and the exit code is 1 if it is more than a second.
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
from engine.command import program
from engine.live import Live
from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc

STEP = 0.02  # seconds of speech in a message
FPS = 25
AHEAD = 3 / FPS  # seconds by which frames may be made before they are due
WAYS = ("cancelled", "reached its deadline", "was killed")
TIMES, MOST = 5, 1.0  # of each; seconds until the session is freed


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


async def speak(address: str, timeout: float | None = None) -> Any:
    """Return a call in the middle of its speech."""
    channel = grpc.aio.insecure_channel(address)
    call = viseme_pb2_grpc.VisemeStub(channel).Live(timeout=timeout)
    await call.write(pb.LiveRequest(open=pb.OpenSession(avatar="tiny")))
    await call.write(pb.LiveRequest(pcm=bytes(32000 * 30)))
    async for message in call:
        if message.piece.speaking:
            return call, channel
    raise RuntimeError("the call ended")


async def stay(address: str) -> None:
    """Print a line when a call is in the middle of its speech, and read it to its end."""
    call, _ = await speak(address)
    print("speaking", flush=True)
    async for _ in call:
        pass


async def seconds_until_free(server: Any, way: str) -> float:
    """Open a session, leave it in the middle of speech, and return how long it is there."""

    def held() -> set[Any]:
        (live,) = server.lives.values()
        return {*list(live.scheduler._sessions), *server.service._calls}

    before = held()
    begin = time.monotonic()
    if way == "was killed":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.serve_live", "--address", server.address, "--stay",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()
        ours = held() - before
        begin = time.monotonic()
        process.kill()
    else:
        timeout = 2.0 if way == "reached its deadline" else None
        call, channel = await speak(server.address, timeout)
        ours = held() - before
        if timeout is None:
            begin = time.monotonic()
            call.cancel()
        else:
            begin += timeout
    assert len(ours) == 2, "a session and its call"
    while ours & held():
        await asyncio.sleep(0.001)
    freed = time.monotonic() - begin
    if way == "was killed":
        await process.wait()
    else:
        await channel.close()
    return freed


async def serve(count: int, seconds: float) -> bool:
    """Run the server, and print a summary.

    Returns:
        Whether sessions were freed within a second.
    """
    from tests.engine.tiny import write_avatar
    from tests.serve.rpc.server import serving

    with tempfile.TemporaryDirectory() as folder:
        avatar = Avatar.load(write_avatar(Path(folder) / "tiny"))
        live: Any = Live(avatar, precision="fp32", start=False)
    live._renderer = _Pictures(avatar)
    live.capacity = lambda: 2 * count + 1
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
            everybody = asyncio.create_task(process.communicate())
            while server.sessions() < count and not everybody.done():
                await asyncio.sleep(0.01)
            kept = {
                way: [await seconds_until_free(server, way) for _ in range(TIMES)] for way in WAYS
            }
            said, _ = await everybody
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
    for way, waits in kept.items():
        print(
            f"after its client {way}, a session is freed in {1000 * np.median(waits):.0f} ms, "
            f"at most {1000 * max(waits):.0f} ms"
        )
    return max(map(max, kept.values())) <= MOST


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_live", description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--address", help="of a server; used by the benchmark itself")
    parser.add_argument("--stay", action="store_true", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.stay:
        asyncio.run(stay(options.address))
    elif options.address:
        asyncio.run(clients(options.address, options.clients, options.seconds))
    elif not asyncio.run(serve(options.clients, options.seconds)):
        return 1
    return 0


if __name__ == "__main__":
    program(main)
