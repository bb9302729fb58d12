"""Send speech to a server, as a microphone would, and write what comes back to an mp4.

python -m examples.client --avatar demo examples/demo/speech.wav -o out.mp4
"""

import argparse
import io
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
from PIL import Image

from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc

STEP = 0.02  # seconds of sound that are sent at once
ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    path = Path(options.output)
    partial, before = path.with_name(f"{path.name}.part"), _identity(path)
    if not path.parent.is_dir():
        print(f"error: {path.parent} is not a folder", file=sys.stderr)
        return 2
    try:
        with _channel(options) as channel:
            stub = viseme_pb2_grpc.VisemeStub(channel)
            work = render if options.render else talk
            summary = work(stub, options, partial)
        partial.replace(path)
    except grpc.RpcError as error:
        print(f"error: {error.code().name}: {error.details()}", file=sys.stderr)
        return 2
    except (OSError, av.FFmpegError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        done = "nothing" if _identity(path) == before else path
        print(f"interrupted: {done} was written", file=sys.stderr)
        return 130
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    print(f"{path}: {summary}")
    return 0


def _identity(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _channel(options: argparse.Namespace) -> Any:
    if not options.tls and options.ca is None:
        return grpc.insecure_channel(options.address, options=ANY_SIZE)
    authorities = None if options.ca is None else Path(options.ca).read_bytes()
    credentials = grpc.ssl_channel_credentials(authorities)
    return grpc.secure_channel(options.address, credentials, options=ANY_SIZE)


def talk(stub: Any, options: argparse.Namespace, path: Path) -> str:
    """Send the speech in real time to a live session, and write its pieces."""
    source = _stdin(options) if options.speech == "-" else _file(options.speech)
    rate = next(source)
    sent = time.monotonic()

    def requests() -> Iterator[pb.LiveRequest]:
        """The end of the requests ends the utterance; then the session ends when it was shown."""
        nonlocal sent
        yield pb.LiveRequest(open=pb.OpenSession(avatar=options.avatar, sample_rate=rate))
        sent = due = time.monotonic()
        for samples in source:
            yield pb.LiveRequest(pcm=samples.tobytes())
            due += len(samples) / rate
            time.sleep(max(due - time.monotonic(), 0))

    call = stub.Live(requests(), metadata=_metadata(options))
    opened = next(call).opened
    first, skipped, late = None, 0, 0
    with _Mp4(path, opened, rate) as video:
        for message in call:
            if message.HasField("event"):
                late = message.event.late.total or late
                continue
            piece = message.piece
            if piece.speaking and first is None:
                first = time.monotonic() - sent
            skipped += not piece.picture
            video.write(piece.picture, np.frombuffer(piece.sound, "<i2"))
            _show(options, f"{piece.time:.1f} s")
    delay = "" if first is None else f"first frame after {1000 * first:.0f} ms, "
    return f"{video.frames} frames, {delay}{late} late, {skipped} without picture"


def render(stub: Any, options: argparse.Namespace, path: Path) -> str:
    """Let the server render the speech at once, and write the mp4 that it makes."""
    if options.speech == "-":
        pcm = pb.Pcm(samples=sys.stdin.buffer.read(), sample_rate=options.sample_rate)
        request = pb.RenderRequest(avatar=options.avatar, pcm=pcm)
    else:
        file = Path(options.speech).read_bytes()
        request = pb.RenderRequest(avatar=options.avatar, file=file)
    frames = 0
    with path.open("wb") as written:
        for message in stub.Render(request, metadata=_metadata(options)):
            frames = message.opened.frames or frames
            written.write(message.mp4)
            if message.HasField("progress"):
                _show(options, f"{message.progress.frames} of {frames} frames")
    return f"{frames} frames"


def _metadata(options: argparse.Namespace) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {options.token}")] if options.token else []


def _show(options: argparse.Namespace, text: str) -> None:
    if options.progress:
        print(f"\r{text}  ", end="", file=sys.stderr, flush=True)


def _file(path: str) -> Iterator[Any]:
    """Yield the rate of a file's sound, then its samples: (n,) int16, mono."""
    with av.open(path) as container:
        if not container.streams.audio:
            raise OSError(f"{path} has no sound")
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler("s16", "mono", rate)
        yield rate
        step = int(STEP * rate)
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[0]
                for begin in range(0, len(samples), step):
                    yield samples[begin : begin + step]


def _stdin(options: argparse.Namespace) -> Iterator[Any]:
    """Yield the rate, then what comes from stdin: int16, mono, little-endian."""
    yield options.sample_rate
    stdin: Any = sys.stdin.buffer
    kept = b""
    while data := stdin.read1(2 * int(STEP * options.sample_rate)):
        kept += data
        whole = len(kept) // 2 * 2
        yield np.frombuffer(kept[:whole], "<i2")
        kept = kept[whole:]


class _Mp4:
    """Writes pictures and sound. A picture that is missing repeats the last one."""

    def __init__(self, path: Path, opened: pb.SessionOpened, rate: int):
        self._fps = Fraction(opened.fps_numerator, opened.fps_denominator)
        self._rate, self._heard, self.frames = rate, 0, 0
        self._container = av.open(str(path), "w", format="mp4")
        self._video: Any = self._container.add_stream("libx264", rate=self._fps)
        self._video.width, self._video.height = opened.width // 2 * 2, opened.height // 2 * 2
        self._video.pix_fmt = "yuv420p"
        coded = min(max(rate, 16000), 96000)  # what AAC has; PyAV converts
        self._audio: Any = self._container.add_stream("aac", rate=coded, layout="mono")
        self._last: av.VideoFrame | None = None

    def write(self, picture: bytes, sound: np.ndarray) -> None:
        if picture:
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            self._last = av.VideoFrame.from_ndarray(pixels, "rgb24")
        if self._last is not None:
            self._last.pts, self._last.time_base = self.frames, 1 / self._fps
            self._container.mux(self._video.encode(self._last))
        self.frames += 1
        frame = av.AudioFrame.from_ndarray(sound[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = (
            self._rate,
            self._heard,
            Fraction(1, self._rate),
        )
        self._container.mux(self._audio.encode(frame))
        self._heard += len(sound)

    def __enter__(self) -> "_Mp4":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for stream in (self._video, self._audio):
                self._container.mux(stream.encode(None))
        self._container.close()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.client",
        description="Send speech to a server of viseme.v1.Viseme, and write what comes back.",
    )
    add = parser.add_argument
    add("speech", metavar="SPEECH|-", help="audio or video file; - for raw int16 PCM from stdin")
    add("-o", "--output", required=True, metavar="OUT.mp4")
    add("--address", default="127.0.0.1:50053", help="host and port (127.0.0.1:50053)")
    add("--avatar", default="demo", metavar="NAME", help="one that the server has (demo)")
    add("--token", help="if the server wants one")
    add("--tls", action="store_true", help="encrypt, and check the server's certificate")
    add("--ca", metavar="FILE.pem", help="with TLS; certificate of its authority, or its own")
    add("--render", action="store_true", help="all at once, not in real time")
    add("--sample-rate", type=int, default=16000, metavar="HZ", help="of stdin (16000)")
    add("--no-progress", dest="progress", action="store_false", help="show no progress")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
