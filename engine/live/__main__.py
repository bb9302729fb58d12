"""`python -m engine.live`: speech through a live session, as a microphone would give it."""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..avatar import Avatar
from ..command import Apart, Parser, program, run
from ..errors import InputError, printable
from ..files import Outputs, check_output
from ..media import h264
from ..media.mp4 import Mp4Writer
from ..media.speech import audio_blocks
from ..runtime import PRECISIONS
from .live import PREBUFFER, Live
from .piece import Counts, Piece
from .session import Session

STEP = Fraction(1, 50)  # seconds of sound that are pushed at once


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    return run(lambda: print(printable(talk(options))), interrupted=Outputs(options.output))


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
        options.avatar,
        device=options.device,
        generator=options.generator,
        audio_encoder=options.audio_encoder,
        parsing=options.parsing,
    )
    with (
        Live(avatar, precision=options.precision) as live,
        live.open(sample_rate=rate, channels=channels, prebuffer=options.prebuffer) as session,
        _Writer(Path(options.output), avatar, rate, channels) as writer,
    ):
        print(printable(f"{avatar.name}: {live.description}"), file=sys.stderr)
        feeder = _Feeder(session, source, options.utterance, options.pause)
        feeder.start()
        first = _receive(session, feeder, writer, options.progress)
        counts = session.counts
    return _summary(options.output, session, counts, first)


def _receive(
    session: Session, feeder: "_Feeder", writer: "_Writer", progress: bool
) -> float | None:
    """Write pieces until the last utterance has been spoken.

    Returns:
        Seconds from the first sample of speech to the frame that plays it; None without speech.
    """
    delay, ends = None, 0
    with tqdm(unit=" frames", disable=None if progress else True) as bar, Apart() as apart:
        for piece in session:
            if delay is None and piece.speaking:
                delay = time.monotonic() - feeder.begin
            apart(writer.write, piece)
            bar.update()
            ends += piece.end
            if feeder.done and ends >= feeder.utterances:
                return delay
    raise feeder.failure or InputError("the session was closed")


def _summary(output: str, session: Session, counts: Counts, delay: float | None) -> str:
    first = "" if delay is None else f"first frame {1000 * delay:.0f} ms after its first sample, "
    seconds = float(counts.frames / session.fps)
    return (
        f"{output}: {counts.frames} frames, {seconds:.2f} s, {first}{counts.late} late, "
        f"{counts.skipped} without picture, {counts.underruns} underruns"
    )


class _Feeder(threading.Thread):
    """Pushes sound in real time, 20 ms at a time.

    Attributes:
        begin: when the first sample was pushed.
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
        self.begin = 0.0
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
                    self.begin = self.begin or time.monotonic()
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


class _Writer(Mp4Writer):
    """Writes pieces to an mp4. A skipped picture repeats the last one."""

    def __init__(self, path: Path, avatar: Avatar, rate: int, channels: int):
        super().__init__(
            path,
            height=avatar.height,
            width=avatar.width,
            fps=avatar.fps,
            x264={**h264.LIVE, "crf": "20"},
            threads=1,
            sound=(channels, rate),
        )
        self._heard = 0  # samples

    def write(self, piece: Piece) -> None:
        self.write_frame(piece.frames[0].numpy() if len(piece.frames) else None)
        self.write_sound(piece.sound, self._heard)
        self._heard += piece.sound.shape[1]


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
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where frames are made (cpu)")
    add("--generator", metavar="FILE", help="use this generator instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="use this encoder instead of the avatar's")
    add("--parsing", action="store_true", help="keep what the masks in the folder parsing/ keep")
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
