"""`python -m engine.render`: speech and an avatar in, an mp4 out."""

import argparse
import sys
import time
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from kernels import COMPOSITE_MODES

from .avatar import Avatar
from .command import Parser, program, run
from .device.on_host import on_host
from .device.stopwatch import Stopwatch
from .errors import DeviceError, InputError, printable
from .media.images import IMAGE_FORMATS, QUALITY, ImageWriter
from .media.video import VideoWriter
from .pipeline import LOOPS, Pipeline, load_pcm
from .runtime import RUNTIMES


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    return run(lambda: print(printable(render(options))), interrupted="nothing was written")


def render(options: argparse.Namespace) -> str:
    """Do what the options say, and return the line that sums it up."""
    begin = time.perf_counter()
    _refuse_to_overwrite(options)
    with ExitStack() as outputs:
        # Speech and folders first: what is wrong there should not wait for the networks.
        speech = load_pcm(options.audio, track=options.audio_track)
        speech_read = time.perf_counter() - begin
        folder, kind = options.frames, options.frames_format
        if options.jpeg:
            folder, kind = options.jpeg, "jpg"
        images = folder and outputs.enter_context(
            ImageWriter(folder, kind, quality=options.quality)
        )
        pipeline = _open_pipeline(options)
        avatar = pipeline.avatar
        # On a GPU, measuring takes the batches' graphs apart.
        measured = options.stats or avatar.device.type == "cpu"
        stopwatch = Stopwatch(pipeline.device) if measured else None
        writer = outputs.enter_context(
            VideoWriter(
                options.output,
                height=avatar.height,
                width=avatar.width,
                fps=avatar.fps,
                pixel_aspect=avatar.pixel_aspect,
                speech=options.audio,
                audio_track=options.audio_track,
            )
        )
        if images and abs(avatar.pixel_aspect - 1) > 0.01:
            warnings.warn(
                f"the pixels of avatar {avatar.name!r} are shown {float(avatar.pixel_aspect):.3g} "
                f"times as wide as high: {options.output} says so, the images in {folder} cannot",
                stacklevel=2,
            )
        batches = pipeline.render(
            speech,
            loop=options.loop,
            start_frame=options.start_frame,
            mode=options.mode,
            stopwatch=stopwatch,
        )
        total = pipeline.frame_count(speech)
        print(printable(f"{avatar.name}: {_choices(pipeline)}"), file=sys.stderr)
        started = time.perf_counter()
        with tqdm(total=total, unit=" frames", disable=None if options.progress else True) as bar:
            for frames, pixels in on_host(batches):
                with stopwatch.stage("write", host=True) if stopwatch else nullcontext():
                    writer.write(pixels)
                    if images:
                        images.write(frames, pixels)
                bar.update(len(pixels))
        rate = total / (time.perf_counter() - started)
    took = time.perf_counter() - begin
    length = float((total + writer.held) / avatar.fps)
    said = (
        f"{options.output}: {total} frames, {length:.2f} s of video, "
        f"{rate:.1f} frames/s, {took:.1f} s in all"
    )
    if stopwatch is None:
        return said
    times = {"read speech": speech_read, **stopwatch.seconds()}
    return f"{said} ({', '.join(f'{name} {seconds:.2f}' for name, seconds in times.items())})"


def _choices(pipeline: Pipeline) -> str:
    """Which runtimes were chosen and why, and what they and the buffers take of a GPU."""
    generator, encoder = pipeline.generator, pipeline.audio_encoder
    said = f"generator in {generator.description} ({generator.reason})"
    if encoder.description != generator.description:
        said += f", audio encoder in {encoder.description} ({encoder.reason})"
    buffers = pipeline.buffer_bytes
    return said + (f", {buffers / 2**30:.2f} GiB of buffers" if buffers else "")


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
        help="which audio track of FILE, from 0 on (the one marked as the default)",
    )
    add("-o", "--output", required=True, metavar="OUT.mp4")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--frames", metavar="DIR", help="also write the frames as numbered images")
    images.add_argument(
        "--jpeg", metavar="DIR", help="the same as JPEG, made on the GPU with nvImageCodec there"
    )
    add("--frames-format", choices=IMAGE_FORMATS, default="png", help="of --frames")
    add("--quality", type=int, default=QUALITY, metavar="Q", help="of a JPEG, 1 to 100 (95)")
    add("--batch-size", type=int, metavar="N", help="frames at once (25 on a GPU, 8 on a CPU)")
    add("--loop", choices=LOOPS, default="pingpong", help="how the avatar's frames repeat")
    add("--start-frame", type=int, metavar="N", help="the avatar's frame to begin with")
    add("--mode", choices=COMPOSITE_MODES, default="crop", help="how the mouth is pasted")
    add("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU, else cpu")
    add("--runtime", choices=RUNTIMES, help="what runs the networks; what suits them by default")
    add("--generator", metavar="FILE", help="a generator to use instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="an audio encoder to use instead of the avatar's")
    add(
        "--stats",
        action="store_true",
        help="say how long each stage took (always said on a CPU, where it costs nothing)",
    )
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
