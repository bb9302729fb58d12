"""What players of WebRTC cost a server: python -m benchmarks.web

The demo's frames, 720 x 1280 at 25 a second, which are not computed: what is measured is the server
beside the networks, that is the scheduler, x264, Opus, SRTP and the event loop. Players run in a
process of their own, and do not decode. The exit code is 1 if a session costs more of a core than
`--most`.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiortc
import aiortc.rtcrtpreceiver
import av
import httpx
import numpy as np
import torch
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from benchmarks.live_scheduler import EmptyRenderer
from engine import Avatar
from engine.command import program
from engine.live import Live
from engine.live.job import Rendered
from examples import DEMO

PICTURES = 100
RATE = 48000
STEP = 0.02  # seconds of speech in a message
SETTLE = 3.0  # seconds before what is measured
SDP = {"Content-Type": "application/sdp"}


class Pictures(EmptyRenderer):
    """Hands out the demo's frames, forth and back."""

    def __init__(self) -> None:
        super().__init__()
        with av.open(str(DEMO / "frames.mp4")) as container:
            frames = [f.to_ndarray(format="rgb24") for _, f in zip(
                range(PICTURES), container.decode(video=0), strict=False
            )]  # fmt: skip
        self._pictures = [torch.from_numpy(frame)[None] for frame in [*frames, *frames[-2:0:-1]]]
        self.height, self.width = frames[0].shape[:2]

    def render(self, jobs: list[Any]) -> Rendered:
        self.calls.clear()
        return Rendered([self._pictures[job.frame % len(self._pictures)] for job in jobs])


# --- players -------------------------------------------------------------------------------------


class NoDecoder:
    def decode(self, _: Any) -> list[Any]:
        return []


async def play(url: str, session: int, seconds: float) -> dict[str, Any]:
    """Watch a session, and return what came in so many seconds."""
    connection = RTCPeerConnection(RTCConfiguration([]))
    found: dict[str, Any] = {"packets": 0, "bytes": 0, "pictures": 0, "late": []}
    first: list[float] = []
    counting = False

    def keep(receiver: Any, kind: str) -> None:
        take = receiver._handle_rtp_packet

        async def taken(packet: Any, arrival_time_ms: int) -> None:
            if counting:
                found["packets"] += 1
                found["bytes"] += len(packet.payload)
                if kind == "video" and packet.marker:
                    found["pictures"] += 1
                    at = time.monotonic() - packet.timestamp / 90000
                    first.append(at)
                    found["late"].append(at - first[0])
            await take(packet, arrival_time_ms)

        receiver._handle_rtp_packet = taken

    for kind in ("video", "audio"):
        keep(connection.addTransceiver(kind, "recvonly").receiver, kind)
    await connection.setLocalDescription(await connection.createOffer())
    async with httpx.AsyncClient(trust_env=False) as http:
        offer = connection.localDescription.sdp
        answer = await http.post(f"{url}/whep/{session}", content=offer, headers=SDP)
        answer.raise_for_status()
    await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
    await asyncio.sleep(SETTLE)
    counting = True
    await asyncio.sleep(seconds)
    counting = False
    print("measured", flush=True)
    await asyncio.sleep(0.5)
    await connection.close()
    return found


async def players(url: str, sessions: list[int], seconds: float) -> None:
    """Watch all sessions; the last line that is printed is JSON of what came."""
    found = await asyncio.gather(*(play(url, session, seconds) for session in sessions))
    print(json.dumps(found), flush=True)


# --- the server ----------------------------------------------------------------------------------


async def talk(session: Any) -> None:
    """Speak without an end, as a microphone does."""
    noise = np.random.default_rng(session.id).integers(-9000, 9000, RATE, np.int16)
    due, size = time.monotonic(), int(STEP * RATE)
    while True:
        for first in range(0, RATE - size, size):
            session.push(noise[first : first + size])
            due += STEP
            await asyncio.sleep(max(due - time.monotonic(), 0))


async def measure(server: Any, count: int, seconds: float) -> dict[str, Any]:
    """Return what so many sessions cost, that nobody or that a player watches."""
    sessions = [await server.web.open("tiny") for _ in range(count)]
    releases = [session.held() for session in sessions]
    talking = [asyncio.create_task(talk(session)) for session in sessions]
    await asyncio.sleep(SETTLE)
    alone = await cores(seconds)
    command = [
        sys.executable, "-m", "benchmarks.web", "--url", server.url, "--seconds", str(seconds),
        "--watch", ",".join(str(session.id) for session in sessions),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, limit=1 << 26
    )
    assert process.stdout is not None
    for session in sessions:
        while session.peer is None or not session.peer.connected:
            await asyncio.sleep(0.01)
    await asyncio.sleep(SETTLE / 2)
    watched = await cores(seconds)
    said, _ = await process.communicate()
    for task in talking:
        task.cancel()
    counts = [session.counts for session in sessions]
    for release in releases:
        release()
    for session in sessions:
        await session.close()
    return {
        "alone": alone,
        "watched": watched,
        "players": json.loads(said.splitlines()[-1]),
        "skipped": sum(count.skipped for count in counts),
        "late": sum(count.late for count in counts),
    }


async def cores(seconds: float) -> float:
    """Return how many cores this process uses for so many seconds."""
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - began)


async def serve(counts: list[int], seconds: float, most: float) -> bool:
    """Run the server, and print a summary.

    Returns:
        Whether each session costs at most so much of a core.
    """
    from tests.engine.tiny import write_avatar
    from tests.serve.web.stage import serving

    with tempfile.TemporaryDirectory() as folder:
        avatar: Any = Avatar.load(write_avatar(Path(folder) / "tiny"))
        live: Any = Live(avatar, precision="fp32", start=False)
    pictures = Pictures()
    live._renderer = pictures
    avatar.fps = Fraction(25)
    live.avatar = _Sized(avatar, pictures.height, pictures.width)
    live.capacity = lambda: 1_000_000
    live.scheduler.start()
    cheap = True
    with live:
        async with serving(live) as server:
            for count in counts:
                found = await measure(server, count, seconds)
                each = (found["watched"] - found["alone"]) / count
                cheap &= found["watched"] / count <= most
                print(summary(count, seconds, found, each), flush=True)
    return cheap


def summary(count: int, seconds: float, found: dict[str, Any], each: float) -> str:
    rates = [one["pictures"] / seconds for one in found["players"]]
    bits = [8 * one["bytes"] / seconds for one in found["players"]]
    packets = [one["packets"] / seconds for one in found["players"]]
    late = 1000 * np.concatenate([np.array(one["late"]) for one in found["players"]])
    return (
        f"{count} sessions: {found['watched'] / count:.1%} of a core each "
        f"({found['alone'] / count:.1%} if nobody watches, {each:.1%} for the player)\n"
        f"  players: {np.mean(rates):.1f} pictures a second, {np.mean(bits) / 1e3:.0f} kbit/s in "
        f"{np.mean(packets):.0f} packets; pictures come {np.quantile(late, 0.01):.0f} to "
        f"{np.quantile(late, 0.99):.0f} ms from the first one's time; "
        f"{found['late']} late, {found['skipped']} skipped"
    )


class _Sized:
    """An avatar with the size of other frames."""

    def __init__(self, avatar: Avatar, height: int, width: int):
        self._avatar, self.height, self.width = avatar, height, width

    def __getattr__(self, name: str) -> Any:
        return getattr(self._avatar, name)

    def __len__(self) -> int:
        return len(self._avatar)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--sessions", default="1,4", help="how many at once, by turns")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--most", type=float, default=0.15, help="of a core, for each session")
    parser.add_argument("--url", help="of a server; used by the benchmark itself")
    parser.add_argument("--watch", help="sessions; used by the benchmark itself")
    options = parser.parse_args()
    if options.watch:
        setattr(aiortc.rtcrtpreceiver, "get_decoder", lambda _: NoDecoder())  # noqa: B010
        watched = [int(session) for session in options.watch.split(",")]
        asyncio.run(players(options.url, watched, options.seconds))
        return 0
    counts = [int(count) for count in options.sessions.split(",")]
    return 0 if asyncio.run(serve(counts, options.seconds, options.most)) else 1


if __name__ == "__main__":
    program(main)
