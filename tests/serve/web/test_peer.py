"""What a player sees and hears, and what its reports change."""

import asyncio
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from engine import Avatar
from engine.live import Live
from serve.web.peer import Peer, connect
from serve.web.sender import Timeline
from serve.web.session import EncodedPiece
from serve.web.tracks import PacketTrack
from tests.serve.web.player import Player
from tests.serve.web.stage import Kept, run, serving, until, write_flashing

pytestmark = pytest.mark.usefixtures("left_late")

RATE = 48000
FRAME = 0.04  # seconds


@pytest.fixture(scope="module")
def flashing(tmp_path_factory) -> Live:
    """An avatar whose mouth is bright in the frames that are loud."""
    folder = write_flashing(tmp_path_factory.mktemp("flashing") / "tiny")
    with Live(Avatar.load(folder), precision="fp32") as live:
        yield live


async def watching(server, session) -> Player:
    """Return a player that has seen some pictures."""
    player = Player()
    answer = await connect(session, await player.offer(), server.server.config)
    await player.take(answer.answer)
    await player.until("video", 3)
    return player


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(5).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def test_after_a_network_that_is_gone_pictures_begin_with_a_keyframe():
    """The player could not decode those between what was dropped and the keyframe."""

    def piece(number: int, keyframe: bool = False) -> EncodedPiece:
        silence = np.zeros((1, 640), np.float32)
        return EncodedPiece(
            number, Fraction(number, 25), bytes([number]), keyframe, None, silence, False, False
        )

    async def main():
        asked = []
        session = SimpleNamespace(fps=Fraction(25), request_keyframe=lambda: asked.append(1))
        peer, track = Peer.__new__(Peer), PacketTrack("video", 90000)
        peer._session, peer._cut, peer._timeline = session, False, Timeline(lambda: 0.0)
        peer._tracks = {"video": track}
        waiting = []
        for number in range(12):
            peer.put(piece(number, keyframe=number in (0, 9)))
            waiting.append(track.waiting)
        first = await track.recv()
        track.stop()
        return waiting, len(asked), bytes(first), first.pts

    waiting, asked, first, pts = run(main())
    assert waiting == [1, 2, 3, 4, 5, 0, 0, 0, 0, 1, 2, 3]
    assert (asked, first, pts) == (1, b"\x09", 9 * 3600)


# --- lip sync ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (16000, 2)])
def test_flash_and_beep(flashing, rate, channels):
    """By the reports of both tracks, as a browser does it, what is seen and what is heard of a loud
    second come at the same time, its begin as its end."""

    async def main():
        async with serving(flashing) as server:
            session = await server.web.open("tiny", sample_rate=rate, channels=channels)
            player = await watching(server, session)
            for _ in range(2):
                quiet, loud = np.zeros(rate // 5, np.float32), noise(0.4, rate)
                sound = np.concatenate([quiet, loud, quiet])
                session.push(np.stack([sound] * channels))
                session.flush()
            await until(lambda: session.speaking)
            await until(lambda: not session.speaking)
            await until(lambda: all(player.reports.values()))
            await asyncio.sleep(0.2)
            await player.close()
            await session.close()
            return player

    player = run(main())

    def when(kind: str, timestamp: float, clock: int) -> float:
        """The time, in NTP's, of a moment in a track."""
        report = player.reports[kind][-1]
        behind = (report.rtp_timestamp - timestamp) % 2**32
        behind -= 2**32 if behind > 2**31 else 0
        return report.ntp_timestamp / 2**32 - behind / clock

    pictures = [
        (when("video", stamp, 90000), picture[30:66, 30:66].mean())
        for stamp, picture in player.pictures()
    ]
    bright = [light > 125 for _, light in pictures]
    first, samples = player.sound()
    level = np.abs(samples[: len(samples) // 480 * 480]).reshape(-1, 480).mean(1)  # of 10 ms
    loud = [False, *(level > 0.05)]
    # The decoder's own delay makes up for the encoder's, as a player does not know either. A picture
    # may be missing on a busy machine: then the change is somewhere between those that are there.
    seen = [
        (pictures[n - 1][0], pictures[n][0])
        for n in range(1, len(bright))
        if bright[n] != bright[n - 1]
    ]
    heard = [
        when("audio", first + 480 * (n - 1), 48000)
        for n in range(1, len(loud))
        if loud[n] != loud[n - 1]
    ]
    assert len(seen) == len(heard) == 4, (seen, heard)
    for (before, after), moment in zip(seen, heard, strict=True):
        assert before < moment < after + FRAME, (seen, heard)


# --- keyframes -----------------------------------------------------------------------------------


def test_players_that_ask_get_a_keyframe(live):
    """By PLI and by FIR, but not by each of many. Without, there is one a second."""

    async def main():
        async with serving(live) as server:
            session = await server.web.open("tiny")
            kept = Kept("h264")
            session.attach(kept)
            player = await watching(server, session)
            player.say_no_reports()
            counts = []
            for fir, times in [(False, 1), (True, 1), (False, 12)]:
                await until(lambda: kept.pieces[-1].keyframe)  # the usual one
                await kept.until(len(kept.pieces) + 9)
                begin = len(kept.pieces)
                for number in range(times):
                    await player.ask_for_keyframe(fir=fir)
                    await kept.until(begin + number + 1)
                await kept.until(begin + 12)
                counts.append(sum(p.keyframe for p in kept.pieces[begin : begin + 12]))
            await player.close()
            await session.close()
            return player, counts

    player, counts = run(main())
    assert counts[:2] == [1, 1] and 1 <= counts[2] <= 2
    assert player.keyframes()[0] == 0
    assert len(player.pictures()) == len(player.access_units())


# --- congestion ----------------------------------------------------------------------------------


def test_the_bitrate_follows_the_player(live):
    """Of the noise of the tiny avatar: a second's pictures are much smaller after an estimate, and as
    large again when all is well. None is left out. Losses do the same to the bitrate."""

    async def main():
        async with serving(live, web={"bitrate_kbps": 800}) as server:
            session = await server.web.open("tiny")
            player = await watching(server, session)
            player.say_no_reports()
            peer, sizes, kept = session.peer, [], Kept("h264")
            session.attach(kept)
            await until(lambda: bool(kept.pieces[-1:] and kept.pieces[-1].picture))

            async def of_a_second() -> None:
                begin = len(kept.pieces) + 2  # after what is being encoded
                pieces = await kept.until(begin + 25)
                sizes.append(sum(len(piece.picture) for piece in pieces[begin : begin + 25]))

            assert peer.bitrate == 800_000
            await of_a_second()
            await player.report_loss(0.05)  # which confirms the estimate
            await player.estimate(250_000)
            await until(lambda: peer.bitrate < 250_000)
            low = peer.bitrate
            await of_a_second()
            await player.estimate(5_000_000)
            await until(lambda: peer.bitrate == 800_000)
            await of_a_second()
            for _ in range(10):
                await player.report_loss(0.3)
            await until(lambda: peer.bitrate < 250_000)
            assert session._pictures.bitrate == peer.bitrate
            for _ in range(30):
                await player.report_loss(0.0)
            await until(lambda: peer.bitrate == 800_000)
            assert session._pictures.bitrate == peer.bitrate
            await player.close()
            await session.close()
            return sizes, kept.pieces, low, session.counts

    sizes, pieces, low, counts = run(main())
    assert low >= 150_000
    assert sizes[1] < 0.45 * sizes[0] and sizes[2] > 0.8 * sizes[0]
    assert 8 * sizes[1] < 1.5 * low
    first = next(n for n, piece in enumerate(pieces) if piece.picture)
    missing = sum(not piece.picture for piece in pieces[first:])
    assert missing <= counts.skipped


# --- interruptions -------------------------------------------------------------------------------


def test_interrupted(flashing):
    """Of the old speech only what is on its way is heard: few frames."""

    async def main():
        async with serving(flashing) as server:
            session = await server.web.open("tiny", sample_rate=RATE)
            player = await watching(server, session)
            session.push(noise(20))
            session.flush()
            await until(lambda: session.speaking)
            await asyncio.sleep(0.5)
            position = session.interrupt()
            begin = session.counts.frames
            await until(lambda: session.counts.frames > begin + 25)
            await player.close()
            await session.close()
            return player, position

    player, position = run(main())
    _, samples = player.sound()
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    quiet_after = len(samples) - loud[-1]
    assert len(loud) > 0.3 * RATE  # it had begun
    assert quiet_after > 0.6 * RATE  # of the second since the interruption
    pictures = player.pictures()
    bright = [picture[30:66, 30:66].mean() > 125 for _, picture in pictures]
    assert any(bright) and not any(bright[-12:])
    assert position * 25 == Fraction(position * 25).numerator
