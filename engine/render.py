"""`python -m engine.render`: speech and an avatar in, an mp4 out."""

import argparse
import os
import shutil
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from kernels import COMPOSITE_MODES

from .avatar import Avatar
from .errors import DeviceError, InputError
from .media import VideoWriter
from .pipeline import LOOPS, Pipeline, load_pcm
from .runtime import RUNTIMES
from .stopwatch import Stopwatch

IMAGE_FORMATS = {"png": {"compress_level": 1}, "jpg": {"quality": 95, "subsampling": 0}}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            print(render(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that may not be read, a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def render(options: argparse.Namespace) -> str:
    """Do what the options say, and return the line that sums it up."""
    begin = time.perf_counter()
    _refuse_to_overwrite(options)
    with ExitStack() as outputs:
        # Speech and folders first: what is wrong there should not wait for the networks.
        speech = load_pcm(options.audio)
        speech_read = time.perf_counter() - begin
        images = options.frames and outputs.enter_context(
            ImageWriter(options.frames, options.frames_format)
        )
        pipeline = _open_pipeline(options)
        avatar, stopwatch = pipeline.avatar, Stopwatch(pipeline.device)
        writer = outputs.enter_context(
            VideoWriter(
                options.output,
                height=avatar.height,
                width=avatar.width,
                fps=avatar.fps,
                speech=options.audio,
            )
        )
        batches = pipeline.render(
            speech,
            loop=options.loop,
            start_frame=options.start_frame,
            mode=options.mode,
            stopwatch=stopwatch,
        )
        total = pipeline.frame_count(speech)
        chosen = pipeline.generator
        print(
            f"{avatar.name}: generator in {chosen.description} ({chosen.reason})", file=sys.stderr
        )
        started = time.perf_counter()
        with tqdm(total=total, unit=" frames", disable=None if options.progress else True) as bar:
            for frames in batches:
                with stopwatch.stage("write", host=True):
                    pixels = frames.cpu().numpy()
                    writer.write(pixels)
                    if images:
                        images.write(pixels)
                bar.update(len(pixels))
        rate = total / (time.perf_counter() - started)
    took = time.perf_counter() - begin
    times = {"read speech": speech_read, **stopwatch.seconds()}
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items())
    return (
        f"{options.output}: {total} frames, {float(total / avatar.fps):.2f} s of video, "
        f"{rate:.1f} frames/s, {took:.1f} s in all ({stages})"
    )


class ImageWriter:
    """Numbered images in a folder that appears whole or not at all: 000000.png, 000001.png, ...

    Raises:
        InputError: the folder exists and holds something, or cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, kind: str):
        self.folder, self._kind, self._written = Path(folder).absolute(), kind, 0
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder")
        self._partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        try:
            self._partial.mkdir()
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}") from error

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB."""
        for frame in frames:
            name = f"{self._written:06}.{self._kind}"
            Image.fromarray(frame).save(self._partial / name, **IMAGE_FORMATS[self._kind])
            self._written += 1

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._partial.replace(self.folder)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)


def _open_pipeline(options: argparse.Namespace) -> Pipeline:
    """On the device asked for, or on the best one that can be used."""
    devices = [options.device] if options.device else ["cuda", "cpu"]
    if not options.device and not torch.cuda.is_available():
        devices = ["cpu"]
    for device in devices:
        try:
            avatar = Avatar.load(
                options.avatar,
                device=device,
                generator=options.generator,
                audio_encoder=options.audio_encoder,
            )
            return Pipeline(avatar, batch_size=options.batch_size, runtime=options.runtime)
        except DeviceError as error:
            if device == devices[-1]:
                raise
            warnings.warn(f"rendering on the CPU: {error}", stacklevel=2)
    raise AssertionError


def _refuse_to_overwrite(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if not output.exists():
        return
    if Path(options.audio).exists() and output.samefile(options.audio):
        raise InputError(f"{output} is the speech itself")
    if output.resolve().is_relative_to(Path(options.avatar).resolve()):
        raise InputError(f"{output} is a file of the avatar")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m engine.render",
        description="Render speech with an avatar to an mp4 (H.264, AAC).",
    )
    add = parser.add_argument
    add("--avatar", required=True, metavar="DIR", help="avatar folder, any of the four layouts")
    add("--audio", required=True, metavar="FILE", help="speech: any audio or video file")
    add("-o", "--output", required=True, metavar="OUT.mp4")
    add("--frames", metavar="DIR", help="also write the frames as numbered images")
    add("--frames-format", choices=IMAGE_FORMATS, default="png")
    add("--batch-size", type=int, metavar="N", help="frames at once (25 on a GPU, 8 on a CPU)")
    add("--loop", choices=LOOPS, default="pingpong", help="how the avatar's frames repeat")
    add("--start-frame", type=int, metavar="N", help="the avatar's frame to begin with")
    add("--mode", choices=COMPOSITE_MODES, default="crop", help="how the mouth is pasted")
    add("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU, else cpu")
    add("--runtime", choices=RUNTIMES, help="what runs the networks; what suits them by default")
    add("--generator", metavar="FILE", help="a generator to use instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="an audio encoder to use instead of the avatar's")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that cleaning up happens
    sys.exit(main())
