"""`python -m engine.render`: speech and an avatar in, an mp4 out."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import COMPOSITE_MODES, CompositeMode

from .avatar import Avatar
from .command import Apart, Parser, program, run
from .device.host_copy import copy_to_host
from .device.stopwatch import Stopwatch
from .errors import DeviceError, InputError, printable
from .files import Outputs, check_output
from .loop import LOOPS, Loop
from .media.images import IMAGE_FORMATS, QUALITY, ImageWriter
from .media.video import VideoWriter
from .pcm import open_speech
from .pipeline import Pipeline
from .runtime import PRECISIONS, RUNTIMES

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Summary:
    """The result of a render, and its times."""

    output: StrPath
    """Name of the mp4."""
    frames: int
    """Number of rendered frames."""
    video_seconds: float
    """Length of the video in seconds, with the repetitions of the last frame."""
    render_seconds: float
    """Seconds for rendering and writing all batches."""
    total_seconds: float
    """Seconds for everything, including reading the speech and opening the networks."""
    stages: dict[str, float]
    """Seconds of each stage by name; empty if not measured."""

    def __str__(self) -> str:
        line = (
            f"{self.output}: {self.frames} frames, {self.video_seconds:.2f} s of video, "
            f"{self.frames / self.render_seconds:.1f} frames/s, {self.total_seconds:.1f} s in all"
        )
        stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.stages.items())
        return f"{line} ({stages})" if stages else line


def main(arguments: list[str] | None = None) -> int:
    options = vars(_parse(arguments))
    if folder := options.pop("jpeg"):
        options |= {"images": folder, "image_format": "jpg"}
    outputs = Outputs(options["output"], options["images"])
    return run(lambda: print(printable(render(**options))), interrupted=outputs)


def render(
    *,
    avatar: StrPath,
    audio: StrPath,
    output: StrPath,
    audio_track: int | None = None,
    images: StrPath | None = None,
    image_format: str = "png",
    quality: int = QUALITY,
    batch_size: int | None = None,
    loop: Loop = "pingpong",
    start_frame: int | None = None,
    mode: CompositeMode = "crop",
    device: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    generator: StrPath | None = None,
    audio_encoder: StrPath | None = None,
    parsing: bool = False,
    stats: bool = False,
    progress: bool = True,
) -> Summary:
    """Render speech with an avatar to an mp4. The arguments are the command's options.

    Warnings and the runtimes in use are printed to stderr. After an error, no partial file stays.

    Args:
        images: folder for the frames as numbered images.
        stats: measure each stage, which costs a few microseconds a batch on a GPU. On a CPU the
            stages are always measured.

    Raises:
        InputError: a file or an option cannot be used.
        DeviceError: the device cannot be used.
    """
    begin = time.perf_counter()
    check_output(Path(output), audio, avatar)
    if images and os.path.realpath(images) == os.path.realpath(output):
        raise InputError(f"{output} is the video and the folder of the images; give two names")
    with ExitStack() as outputs:
        # Speech and folders first, so that their errors come before the networks are opened.
        with Apart() as apart:
            speech = apart(open_speech, audio, track=audio_track)
        speech_read = time.perf_counter() - begin
        image_writer = None
        if images:
            image_writer = outputs.enter_context(ImageWriter(images, image_format, quality=quality))
        pipeline = _open_pipeline(
            avatar, device, generator, audio_encoder, batch_size, runtime, precision, parsing
        )
        opened = pipeline.avatar
        measured = stats or opened.device.type == "cpu"
        stopwatch = Stopwatch(pipeline.device) if measured else Stopwatch.off(pipeline.device)
        video = outputs.enter_context(
            VideoWriter(
                output,
                height=opened.height,
                width=opened.width,
                fps=opened.fps,
                pixel_aspect=opened.pixel_aspect,
                speech=audio,
                audio_track=audio_track,
            )
        )
        if images:
            _warn_of_wide_pixels(opened, output, images)
        batches = pipeline.render(
            speech, loop=loop, start_frame=start_frame, mode=mode, stopwatch=stopwatch
        )
        total = pipeline.frame_count(speech)
        print(printable(f"{opened.name}: {_describe(pipeline)}"), file=sys.stderr)
        started = time.perf_counter()
        with tqdm(total=total, unit=" frames", disable=None if progress else True) as bar:
            _write(batches, video, image_writer, stopwatch, bar)
        render_seconds = time.perf_counter() - started
    return Summary(
        output=output,
        frames=total,
        video_seconds=float((total + video.repeated) / opened.fps),
        render_seconds=render_seconds,
        total_seconds=time.perf_counter() - begin,
        stages={"read speech": speech_read, **stopwatch.seconds()} if measured else {},
    )


def _write(
    batches: Iterable[Tensor],
    video: VideoWriter,
    images: ImageWriter | None,
    stopwatch: Stopwatch,
    bar: "tqdm[NoReturn]",
) -> None:
    with Apart() as apart:
        for frames, pixels in copy_to_host(batches):
            with stopwatch.stage("write", host=True):
                apart(video.write, pixels)
                if images:
                    images.write(frames, pixels)
            bar.update(len(pixels))


def _describe(pipeline: Pipeline) -> str:
    """Describe the chosen runtimes, the reasons, and the GPU memory of the buffers."""
    generator, encoder = pipeline.generator, pipeline.audio_encoder
    text = f"generator in {generator.description} ({generator.reason})"
    if encoder.description != generator.description:
        text += f", audio encoder in {encoder.description} ({encoder.reason})"
    buffers = pipeline.buffer_bytes
    return text + (f", {buffers / 2**30:.2f} GiB of buffers" if buffers else "")


def _open_pipeline(
    avatar: StrPath,
    device: str | None,
    generator: StrPath | None,
    audio_encoder: StrPath | None,
    batch_size: int | None,
    runtime: str | None,
    precision: str | None,
    parsing: bool = False,
) -> Pipeline:
    """Open an avatar and its networks on a device.

    Without `device`, use a GPU if PyTorch finds one. If it cannot be used, warn, and use the CPU.
    """
    devices = [device] if device else ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    for name in devices:
        try:
            opened = Avatar.load(
                avatar,
                device=name,
                generator=generator,
                audio_encoder=audio_encoder,
                parsing=parsing,
            )
            return Pipeline(opened, batch_size=batch_size, runtime=runtime, precision=precision)
        except DeviceError as error:
            if name == devices[-1]:
                raise
            warnings.warn(f"rendering on the CPU: {error}", stacklevel=2)
    raise AssertionError


def _warn_of_wide_pixels(avatar: Avatar, output: StrPath, images: StrPath) -> None:
    if abs(avatar.pixel_aspect - 1) > 0.01:
        warnings.warn(
            f"avatar {avatar.name!r} has a pixel aspect ratio of {float(avatar.pixel_aspect):.3g}: "
            f"{output} stores it, but the images in {images} cannot",
            stacklevel=2,
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m engine.render",
        description="Render speech with an avatar to an mp4 (H.264, AAC).",
    )
    add = parser.add_argument
    add("--avatar", required=True, metavar="DIR", help="avatar folder, any of the four layouts")
    add("--audio", required=True, metavar="FILE", help="speech: any audio or video file")
    add(
        "--audio-track",
        type=int,
        metavar="N",
        help="audio track of FILE, counted from 0 (the one marked as the default)",
    )
    add("-o", "--output", required=True, metavar="OUT.mp4")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--frames", dest="images", metavar="DIR", help="also write the frames as numbered images"
    )
    images.add_argument(
        "--jpeg", metavar="DIR", help="the same as JPEG, encoded on the GPU if nvImageCodec can"
    )
    add(
        "--frames-format",
        dest="image_format",
        choices=IMAGE_FORMATS,
        default="png",
        help="format of --frames (png)",
    )
    add("--quality", type=int, default=QUALITY, metavar="Q", help="JPEG quality, 1 to 100 (95)")
    add("--batch-size", type=int, metavar="N", help="frames at once (25 on a GPU, 8 on a CPU)")
    add("--loop", choices=LOOPS, default="pingpong", help="how the avatar's frames repeat")
    add("--start-frame", type=int, metavar="N", help="number of the avatar's first frame (1 or 0)")
    add("--mode", choices=COMPOSITE_MODES, default="crop", help="how the mouth is pasted")
    add("--device", choices=("cpu", "cuda"), help="cuda if there is a GPU, else cpu")
    add("--runtime", choices=RUNTIMES, help="runtime of the networks (the best for their files)")
    add("--precision", choices=PRECISIONS, help="precision of the generator on a CPU (fp32)")
    add("--generator", metavar="FILE", help="generator to use instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="audio encoder to use instead of the avatar's")
    add(
        "--parsing",
        action="store_true",
        help="keep what the masks in the avatar's folder parsing/ keep, in front of the face",
    )
    add(
        "--stats",
        action="store_true",
        help="print the time of each stage (always printed on a CPU)",
    )
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
