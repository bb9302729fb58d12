"""`python -m engine.live`: speech through a live session, as a microphone would give it."""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from tqdm import tqdm

from ..avatar import Avatar
from ..command import Parser, program, run
from ..errors import InputError, printable
from ..files import check_output, partial_path
from ..media.files import media_url
from ..media.speech import audio_blocks, audio_frame
from ..runtime import PRECISIONS
from .live import PREBUFFER, Live
from .session import Counts, Piece, Session

STEP = Fraction(1, 50)  # seconds of sound that are pushed at once


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    return run(lambda: print(printable(talk(options))), interrupted="nothing was written")


def talk(options: argparse.Namespace) -> str:
    """Feed the speech to a session in real time, and write what comes out.

    Returns:
        A line that sums up delays and what was late.
    """
    if Path(options.output).suffix.lower() != ".mp4":
        raise InputError(f"{options.output} does not end in .mp4")
    if options.utterance is not None and not options.utterance >= 0.1:
        raise InputError(f"utterance is {options.utterance}; expected at least 0.1 seconds")
    if not 0 <= options.pause <= 600:
        raise InputError(f"pause is {options.pause}; expected 0 to 600 seconds")
    check_output(Path(options.output), options.audio, options.avatar)
    source = _stdin(options) if options.audio == "-" else _file(options.audio)
    rate, channels = next(source)
    avatar = Avatar.load(
        options.avatar, generator=options.generator, audio_encoder=options.audio_encoder
    )
    with (
        Live(avatar, precision=options.precision) as live,
        live.open(sample_rate=rate, channels=channels, prebuffer=options.prebuffer) as session,
        _Writer(Path(options.output), avatar, rate, channels) as writer,
    ):
        print(printable(f"{avatar.name}: {live.description}"), file=sys.stderr)
        feeder = _Feeder(session, source, options.utterance, options.pause)
        feeder.start()
        arrivals = _receive(session, feeder, writer, options.progress)
        if arrivals is None:
            raise (
                live.scheduler.failure
                or feeder.failure
                or InputError("the session was closed: frames could not be written in time")
            )
        counts = session.counts
    return _summary(options.output, session, counts, feeder, arrivals)


def _receive(
    session: Session, feeder: "_Feeder", writer: "_Writer", progress: bool
) -> list[tuple[Piece, float]] | None:
    """Write pieces until the last utterance has been spoken.

    Returns:
        When each came; None if the session was closed before.
    """
    arrivals: list[tuple[Piece, float]] = []
    ends = 0
    # In a thread of its own, because PyAV may swallow what a signal raises: Ctrl-C would be lost.
    with (
        tqdm(unit=" frames", disable=None if progress else True) as bar,
        ThreadPoolExecutor(1, "viseme-write") as writing,
    ):
        for piece in session:
            writing.submit(writer.write, piece).result()
            piece.frames = piece.frames[:0]
            arrivals.append((piece, time.monotonic()))
            bar.update()
            ends += piece.end
            if feeder.done and ends >= feeder.utterances:
                return arrivals
    return None


def _summary(
    output: str,
    session: Session,
    counts: Counts,
    feeder: "_Feeder",
    arrivals: list[tuple[Piece, float]],
) -> str:
    begins = [
        (piece, when)
        for number, (piece, when) in enumerate(arrivals)
        if piece.speaking and (number == 0 or not arrivals[number - 1][0].speaking)
    ]
    delays = [when - pushed for (_, when), pushed in zip(begins, feeder.begins, strict=False)]
    first = f"first frame {1000 * delays[0]:.0f} ms after its first sample, " if delays else ""
    seconds = float(len(arrivals) / session.fps)
    return (
        f"{output}: {len(arrivals)} frames, {seconds:.2f} s, {first}{counts.late} late, "
        f"{counts.skipped} without picture, {counts.underruns} underruns"
    )


class _Feeder(threading.Thread):
    """Pushes sound in real time, 20 ms at a time.

    Attributes:
        begins: when the first sample of each utterance was pushed.
        utterances: how many there are, once `done`.
    """

    def __init__(
        self,
        session: Session,
        blocks: Iterator[Any],
        utterance: float | None,
        pause: float,
    ):
        super().__init__(daemon=True)
        self._session, self._blocks, self._pause = session, blocks, pause
        self._most = round(utterance * session.sample_rate) if utterance else sys.maxsize
        self.begins: list[float] = []
        self.utterances, self.done = 0, False
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._feed()
        except BaseException as error:
            self.failure = error
            self._session.close()
        self.done = True

    def _feed(self) -> None:
        rate, step = self._session.sample_rate, int(STEP * self._session.sample_rate)
        due, spoken = time.monotonic(), 0
        for block in self._blocks:
            while block.shape[1]:
                most = min(step, self._most - spoken)
                part, block = block[:, :most], block[:, most:]
                if spoken == 0:
                    self.begins.append(time.monotonic())
                    self.utterances += 1
                self._session.push(part)
                spoken += part.shape[1]
                due += part.shape[1] / rate
                if spoken == self._most:
                    self._session.flush()
                    spoken, due = 0, due + self._pause
                time.sleep(max(due - time.monotonic(), 0))
        if not self.utterances:
            raise InputError("the speech has 0 samples")
        self._session.flush()


def _file(path: str) -> Iterator[Any]:
    """Yield (rate, channels), then the file's sound in (C, n) float32 blocks."""
    blocks = audio_blocks(path)
    block, rate, _ = next(blocks, (None, 0, 0))
    if block is None:
        raise InputError(f"{path} has an audio stream of 0 samples")
    yield rate, block.shape[0]
    yield block
    for block, _, _ in blocks:
        yield block


def _stdin(options: argparse.Namespace) -> Iterator[Any]:
    """Yield (rate, channels), then what comes from stdin: int16, interleaved, little-endian."""
    yield options.sample_rate, options.channels
    size = 2 * options.channels
    kept = b""
    stdin: Any = sys.stdin.buffer
    while data := stdin.read1(size * options.sample_rate // 50):
        data = kept + data
        whole = len(data) // size * size
        kept = data[whole:]
        samples = np.frombuffer(data[:whole], "<i2").reshape(-1, options.channels)
        yield np.ascontiguousarray(samples.T).astype(np.int16)


class _Writer:
    """Writes pieces to an mp4, whole or not at all. A skipped picture repeats the last one."""

    def __init__(self, path: Path, avatar: Avatar, rate: int, channels: int):
        self._path, self._partial, self._rate = path, partial_path(path), rate
        self._time_base = (
            1 / avatar.fps
        )  # the stream's becomes the muxer's own with the first packet
        try:
            self._partial.touch()
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        self._pad = (avatar.height % 2, avatar.width % 2)
        self._converter, self._samples, self._number = VideoReformatter(), 0, 0
        self._last: av.VideoFrame | None = None
        self._container = av.open(media_url(self._partial), "w", format="mp4")
        options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}
        self._video: Any = self._container.add_stream("libx264", rate=avatar.fps, options=options)
        self._video.height = avatar.height + self._pad[0]
        self._video.width = avatar.width + self._pad[1]
        self._video.pix_fmt, self._video.time_base = "yuv420p", self._time_base
        self._video.thread_count = 1
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        self._audio: Any = self._container.add_stream("aac", rate=rate)
        self._audio.layout = "mono" if channels == 1 else "stereo"

    def write(self, piece: Piece) -> None:
        if len(piece.frames):
            rgb = piece.frames[0].numpy()
            if any(self._pad):
                rgb = np.pad(rgb, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
            self._last = self._converter.reformat(
                av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), "rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
            )
        if self._last is not None:
            self._last.pts, self._last.time_base = piece.number, self._time_base
            self._container.mux(self._video.encode(self._last))
        self._container.mux(self._audio.encode(audio_frame(piece.sound, self._rate, self._samples)))
        self._samples += piece.sound.shape[1]

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for stream in (self._video, self._audio):
                    self._container.mux(stream.encode(None))
                self._container.close()
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m engine.live",
        description="Feed speech to a live session in real time, as a microphone would, and write "
        "what comes out to an mp4.",
    )
    add = parser.add_argument
    add("--avatar", required=True, metavar="DIR", help="avatar folder, any of the four layouts")
    add("--audio", required=True, metavar="FILE|-", help="speech; - for raw int16 PCM from stdin")
    add("-o", "--output", required=True, metavar="OUT.mp4")
    add("--generator", metavar="FILE", help="use this generator instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="use this encoder instead of the avatar's")
    add("--precision", choices=PRECISIONS, help="of the generator (bf16 where the CPU has it)")
    add("--sample-rate", type=int, default=16000, metavar="HZ", help="of stdin (default: 16000)")
    add("--channels", type=int, choices=(1, 2), default=1, help="of stdin (default: 1)")
    add("--prebuffer", type=float, default=PREBUFFER, metavar="S", help="see the docs (0.45)")
    add("--utterance", type=float, metavar="S", help="cut the speech into utterances this long")
    add("--pause", type=float, default=1.0, metavar="S", help="between these (default: 1)")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
