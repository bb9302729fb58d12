"""What is opened as a media file: regular files, in formats that name no other file."""

import os
import socket
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine import InputError
from engine.avatar.frames import VideoFile
from engine.media import files, limits
from engine.media.packets import PacketReader
from engine.media.speech import read_speech
from engine.media.video import Video
from tests.engine.media.sound_files import write_sound
from tests.engine.videos import encode

ROOT = Path(__file__).parents[3]
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n"
DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"
 profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="0" bandwidth="9"><BaseURL>neighbour.ts</BaseURL></Representation>
</AdaptationSet></Period></MPD>
"""


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> Path:
    """A film in another folder, which no playlist may show."""
    sound = 0.3 * np.sin(np.arange(48000))
    return write_sound(
        tmp_path_factory.mktemp("private") / "film.ts", sound, picture="libx264", frames=25
    )


def segments(victim: Path) -> str:
    return f"{HLS}#EXTINF:1,\n{victim}\n"


PLAYLISTS = {
    "a.m3u8": ("HLS playlist", lambda victim: f"{segments(victim)}#EXT-X-ENDLIST\n"),
    "endless.m3u8": ("HLS playlist", segments),
    "itself.m3u8": ("HLS playlist", lambda _: f"{HLS}#EXT-X-STREAM-INF:BANDWIDTH=9\nitself.m3u8\n"),
    "long.m3u8": ("HLS playlist", lambda victim: segments(victim) * 2000),
    "a.wav": ("FFmpeg concat script", lambda _: "ffconcat version 1.0\nfile neighbour.ts\n"),
    "b.wav": ("FFmpeg concat script", lambda _: "ffconcat version 1.0\nfile b.wav\n"),
    "a.mpd": ("DASH manifest", lambda _: DASH),
    "a.sdp": ("SDP session", lambda _: "v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"),
    "a.pls": ("PLS playlist", lambda victim: f"[playlist]\nFile1={victim}\n"),
}


@pytest.mark.parametrize("read", [read_speech, Video, VideoFile])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_refused(tmp_path, victim, name, read):
    kind, text = PLAYLISTS[name]
    (tmp_path / "neighbour.ts").write_bytes(victim.read_bytes())
    path = tmp_path / name
    path.write_text(text(victim))
    with pytest.raises(
        InputError, match=f"{name} is an? {kind}.*; expected a media file"
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_an_image_is_no_sound_or_film(tmp_path):
    for name in ("a.png", "a.wav"):
        Image.new("RGB", (64, 48)).save(tmp_path / name, "png")
        with pytest.raises(InputError, match="cannot be read as audio or video; expected a media"):
            read_speech(tmp_path / name)
        with pytest.raises(InputError, match="cannot be read as audio or video; expected a media"):
            Video(tmp_path / name)


def test_ffmpeg_knows_each_format():
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(files.FORMATS.split(",")) <= known


def test_media_are_opened_in_one_place():
    opens = {
        str(path.relative_to(ROOT)): path.read_text().count("av.open(")
        for path in (ROOT / "engine").rglob("*.py")
        if "av.open(" in path.read_text()
    }
    writers = {"engine/media/fragmented_mp4.py": 1, "engine/media/mp4.py": 1}
    assert opens == {"engine/media/files.py": 1} | writers


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path) -> Path:
    path.symlink_to(fifo(path.with_name("pipe")))
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "is a pipe; expected a regular file"),
        (link, "is a pipe; expected a regular file"),
        (listening, "is a socket; expected a regular file"),
        (folder, "is a folder; expected a file"),
        (lambda _: Path("/dev/zero"), "is a device; expected a regular file"),
        (lambda _: Path("/dev/null"), "is a device; expected a regular file"),
        (lambda _: Path("/proc/self/environ"), "is empty"),
        (empty, "is empty; expected a media file"),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (lambda path: path / "below a file's name", "does not exist"),
        (lambda path: path.with_name("a\0b"), "does not exist"),
        (lambda path: path.with_name("a" * 300), "cannot be read: File name too long"),
    ],
)
@pytest.mark.parametrize("read", [read_speech, Video])
def test_only_regular_files_are_opened(tmp_path, monkeypatch, make, message, read):
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most 107 bytes long
    path = make(Path("media"))
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_pipe_of_the_shell_is_refused():
    """As in --audio <(ffmpeg ...): the second reading would find it empty."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(InputError, match="is a pipe; .*, because it is read more than once"):
            read_speech(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("name", "codec", "picture"),
    [("a.mkv", "aac", "libx264"), ("a.mpg", "mp2", "mpeg2video"), ("a.mp3", "libmp3lame", None)],
)
def test_a_file_without_a_next_packet(tmp_path, monkeypatch, name, codec, picture):
    """It goes on with 4 GB of zeros, which take no room on the disk."""
    path = write_sound(
        tmp_path / name, np.zeros(44100), rate=44100, codec=codec, picture=picture, frames=25
    )
    os.truncate(path, 4 << 30)
    monkeypatch.setattr(limits, "TIMEOUT", 0.3)
    for read in (read_speech, Video) if picture else (read_speech,):
        with pytest.raises(InputError, match=f"{name} gives no sound or picture within 0.3 s"):
            read(path)


def test_a_long_pause_between_frames(tmp_path, monkeypatch):
    """The time of the caller does not count, also not for the seek after it."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 128, 3), np.uint8)
    options = {"g": "10", "crf": "10", "sc_threshold": "0"}
    path = encode(tmp_path / "a.ts", noise, options=options)
    reopened = []
    monkeypatch.setattr(PacketReader, "_reopen", lambda _: reopened.append(path))
    monkeypatch.setattr(limits, "TIMEOUT", 1.0)
    video, opened = Video(path), []
    for start in (50, 10):
        frames = video.frames(start)
        opened.append(frames)  # so that it is not closed
        number, _ = next(frames)
        time.sleep(1.2)
        assert [number, next(frames)[0]] == [start, start + 1]
        time.sleep(1.2)
    assert reopened == []


@pytest.mark.parametrize("kept", [50, 200, 0.5, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.flv", "a.mov"])
def test_a_truncated_film_ends(tmp_path, name, kept):
    path = write_sound(tmp_path / name, np.zeros(44100), rate=44100, picture="libx264", frames=25)
    size = path.stat().st_size
    os.truncate(path, kept if kept > 1 else int(kept * size))
    for read in (read_speech, Video):
        try:
            assert len(read(path)) > 0
        except InputError as error:
            assert str(path) in str(error)
