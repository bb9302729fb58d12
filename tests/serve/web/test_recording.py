"""Recordings: whole and in time however they end, bounded, and named by nobody."""

import asyncio
import errno
import io
import logging
import os
import signal
import subprocess
import sys

import av
import numpy as np
import pytest

from engine import Avatar
from engine.live import Live
from serve.web import recording as recording_module
from tests.engine.tiny import ENVIRONMENT, write_avatar
from tests.serve.web.site import SECONDS, client, http, run, serving
from tests.serve.web.stage import write_flashing

pytestmark = pytest.mark.usefixtures("left_soon")


def played(data: bytes) -> tuple[int, float]:
    """Return the number of frames, and the seconds of sound."""
    with av.open(io.BytesIO(data)) as file:
        frames = sum(1 for _ in file.decode(video=0))
    with av.open(io.BytesIO(data)) as file:
        sound = list(file.decode(audio=0))
    return frames, sum(block.samples for block in sound) / sound[0].sample_rate


async def post(asked, session: int, kind: str) -> dict:
    return (await asked.post("/record", json={"sessionid": session, "type": kind})).json()


def test_a_recording_is_what_was_shown(live, tmp_path):
    """The same H.264, from a keyframe on, and the sound of the same frames."""
    samples = np.rint(12000 * np.sin(np.arange(48000) / 20)).astype(np.int16)

    async def main():
        async with (
            serving(live, web={"recordings": tmp_path}) as site,
            http(site) as asked,
            client(site, picture="h264", clock="taken") as talk,
        ):
            id = talk.opened["session"]
            await talk.push(samples)
            await talk.tell(type="flush")
            before = await talk.all()
            assert await post(asked, id, "start_record") == {"code": 0, "msg": "ok"}
            again = await post(asked, id, "start_record")
            assert again == {"code": -1, "msg": "the session is being recorded"}
            await talk.push(samples)
            await talk.tell(type="flush")
            pieces = [m for m in before + await talk.all() if not isinstance(m, dict)]
            assert await post(asked, id, "end_record") == {"code": 0, "msg": "ok"}
            again = await post(asked, id, "end_record")
            assert again == {"code": -1, "msg": "the session is not being recorded"}
            film = await asked.get(f"/record/{id}")
            part = await asked.get(f"/record/{id}", headers={"Range": "bytes=0-99"})
            assert part.status_code == 206 and part.content == film.content[:100]
            assert await post(asked, id, "start_record") == {"code": 0, "msg": "ok"}  # another one
            return pieces, film

    pieces, film = run(main())
    assert film.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(film.content)) as file:
        stream = file.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.name) == (80, 96, "h264")
        frames = [frame.to_ndarray() for frame in file.decode(video=0)]
    with av.open(io.BytesIO(film.content)) as file:
        blocks = list(file.decode(audio=0))
    sound = np.concatenate([block.to_ndarray() for block in blocks], axis=1)[0]
    # Where it begins in what was sent: at a keyframe, and there are few.
    decoder = av.CodecContext.create("h264", "r")
    shown = [f.to_ndarray() for p in pieces for f in decoder.decode(av.Packet(p.picture))]
    shown += [f.to_ndarray() for f in decoder.decode(None)]
    sent = np.concatenate([np.frombuffer(p.sound, np.int16) for p in pieces]) / 32768
    keys = [n for n, piece in enumerate(pieces) if piece.keyframe]
    (first,) = (n for n in keys if np.array_equal(shown[n], frames[0]))
    for number, frame in enumerate(frames[: len(shown) - first]):
        assert np.array_equal(shown[first + number], frame)
    heard = sent[first * 1920 :][: len(sound)]
    loud = np.flatnonzero(np.abs(heard) > 0.1)[0]
    assert abs(np.flatnonzero(np.abs(sound) > 0.1)[0] - loud) < 480  # 10 ms
    assert abs(len(sound) / 48000 - len(frames) / 25) < 0.06
    assert np.corrcoef(sound[loud : loud + 24000], heard[loud : loud + 24000])[0, 1] > 0.99


def test_flashes_and_beeps_are_in_time(tmp_path):
    """Of an avatar whose mouth is bright while it is loud: within a frame, in the file's times."""
    folder = tmp_path / "films"
    folder.mkdir()
    beeps = np.zeros(3 * 48000, np.float32)
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, 9600).astype(np.float32)
    for second in (0.4, 1.2, 2.0):
        beeps[int(second * 48000) :][:9600] = noise

    async def main(live):
        async with (
            serving(live, web={"recordings": folder}) as site,
            client(site, sample_rate=48000, sample_format="f32", clock="taken") as talk,
        ):
            site.recordings.start(site.sessions.find(talk.opened["session"]))
            await talk.push(beeps)
            await talk.tell(type="flush")
            await talk.all()

    avatar = Avatar.load(write_flashing(tmp_path / "tiny"))
    with Live(avatar, precision="fp32") as live:
        run(main(live))
    (path,) = folder.iterdir()
    with av.open(str(path)) as file:
        frames = [(f.time, f.to_ndarray(format="gray").mean()) for f in file.decode(video=0)]
    with av.open(str(path)) as file:
        sound = np.concatenate([block.to_ndarray()[0] for block in file.decode(audio=0)])
    light = np.array([value for _, value in frames])
    bright = light > (light.min() + light.max()) / 2
    flashes = [frames[n + 1][0] for n in np.flatnonzero(~bright[:-1] & bright[1:])]
    loud = np.abs(sound[: len(sound) // 256 * 256]).reshape(-1, 256).max(1) > 0.1
    beats = [256 * n / 48000 for n in np.flatnonzero(~loud[:-1] & loud[1:]) + 1]
    assert len(flashes) == len(beats) == 3
    assert np.abs(np.array(flashes) - beats).max() < 0.04


def test_a_recording_ends_with_its_session(live, tmp_path):
    """Nobody has to end it. It can be read meanwhile, and afterwards."""

    async def main():
        async with serving(live, web={"recordings": tmp_path}) as site, http(site) as asked:
            async with client(site) as talk:
                id = talk.opened["session"]
                await post(asked, id, "start_record")
                async with asyncio.timeout(SECONDS):
                    while not site.recordings.find(str(id)).size:
                        await asyncio.sleep(0.05)
                meanwhile = await asked.get(f"/record/{id}")
                await talk.tell(type="close")
                await talk.refusal()
            await site.until_free()
            await site.recordings.find(str(id)).finished.wait()
            afterwards = await asked.get(f"/record/{id}")
            (path,) = tmp_path.iterdir()
            data = path.read_bytes()
            path.unlink()
            gone = await asked.get(f"/record/{id}")
            assert gone.status_code == 404 and gone.text.startswith("the recording is gone")
            return meanwhile.content, afterwards.content, data

    meanwhile, afterwards, data = run(main())
    assert data == afterwards and afterwards.startswith(meanwhile)
    for data in (meanwhile, afterwards):
        frames, seconds = played(data)
        assert frames >= 25 and abs(frames / 25 - seconds) < 0.06


def test_a_recording_ends_with_the_server(live, tmp_path):
    async def main():
        async with serving(live, web={"recordings": tmp_path}) as site, client(site) as talk:
            site.recordings.start(site.sessions.find(talk.opened["session"]))
            for _ in range(2):
                await talk.event("stats")
            await site.sessions.close()

    run(main())
    (path,) = tmp_path.iterdir()
    frames, seconds = played(path.read_bytes())
    assert frames >= 25 and abs(frames / 25 - seconds) < 0.06


def test_a_server_that_is_killed_leaves_a_film(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    avatar = write_avatar(tmp_path / "tiny")
    command = [sys.executable, "-m", "tests.serve.web.recorded_server", str(avatar), str(folder)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as process:
        sizes = set()
        for line in process.stdout:
            sizes.add(int(line))
            if len(sizes) > 3:  # three fragments
                break
        process.send_signal(signal.SIGKILL)
    (path,) = folder.iterdir()
    frames, seconds = played(path.read_bytes())
    assert frames >= 50 and abs(frames / 25 - seconds) < 0.06
    assert path.stat().st_size >= max(sizes)


@pytest.mark.parametrize("fault", ["full", "large", "slow"])
def test_recordings_end_before_the_disk_does(live, tmp_path, monkeypatch, caplog, fault):
    """One line is logged, the session goes on, and what there is can be played."""
    write = os.write
    room = 250_000

    def full(descriptor, data):
        """Write a part of what there is no room for, as a disk does."""
        nonlocal room
        if sys._getframe(1).f_code.co_name != "_write":
            return write(descriptor, data)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= (count := write(descriptor, data[:room]))
        return count

    web = {"recordings": tmp_path}
    line = {
        "full": "No space left on device",
        "large": "has 30000 bytes, the most",
        "slow": "is too slow",
    }[fault]
    if fault == "full":
        monkeypatch.setattr(recording_module.os, "write", full)
    elif fault == "large":
        web["max_recording_mb"] = 0.03
    else:
        monkeypatch.setattr(recording_module, "MOST_WAITING", 100)

    async def main():
        clock = "wall" if fault == "slow" else "taken"  # where pieces wait for the disk
        seconds = {"full": 5, "large": 1, "slow": 0.1}[fault]  # enough for it to happen
        async with serving(live, web=web) as site, client(site, clock=clock) as talk:
            session = site.sessions.find(talk.opened["session"])
            site.recordings.start(session)
            recording = site.recordings.find(str(session.id))
            for _ in range(2):
                await talk.push(np.full(int(seconds * 48000), 5000, np.int16))
                await talk.tell(type="flush")
                assert (await talk.all())[-1]["type"] == "end"
                async with asyncio.timeout(SECONDS):
                    await recording.finished.wait()
            return recording.size

    with caplog.at_level(logging.INFO):
        size = run(main())
    (record,) = caplog.records
    assert line in record.getMessage() and record.exc_info is None
    if fault == "slow":
        return
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == size and 1000 < size < (45_000 if fault == "large" else 250_000)
    frames, seconds = played(path.read_bytes())
    assert frames and abs(frames / 25 - seconds) < 0.06


def test_recordings_that_cannot_begin(live, tmp_path, caplog):
    async def main():
        web = {"recordings": tmp_path / "nowhere"}
        async with serving(live, web=web) as site, http(site) as asked, client(site) as talk:
            answer = await post(asked, talk.opened["session"], "start_record")
            assert answer["code"] == -1
            return answer["msg"]

    assert run(main()) == "the recording cannot be written: No such file or directory"
    assert len(caplog.records) == 1
