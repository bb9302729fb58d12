"""`python -m benchmarks.render`: the whole render next to its generator alone and to a frame loop.

Everything is measured in turn, round after round, in one run: machines drift, ratios within a
round less so. Medians over the rounds.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import kernels
from benchmarks import frame_loop, report
from engine import Avatar, InputError, Pipeline
from engine.command import program
from engine.device.stopwatch import Stopwatch
from engine.media.speech import read_speech
from engine.media.video import VideoWriter
from examples.networks import DEMO, networks

LOOP_SECONDS = 1.5  # of speech for the frame-by-frame loop, which is slow
MEMORY_SECONDS = (6, 60)


def main() -> int:
    options = _parse()
    if options.peak_memory_of:
        _render_to_nowhere(options, options.peak_memory_of)
        print(own_peak())
        return 0
    results = {
        "command": report.command("benchmarks.render"),
        "machine": report.machine(options.device, "torch", "onnxruntime"),
        **measure(options),
    }
    if options.memory:
        results["peak memory, MB"] = {
            f"{seconds} s of speech": _peak_memory(options, seconds) / 1e6
            for seconds in tqdm(MEMORY_SECONDS, desc="memory", disable=None)
        }
    _print_table(results)
    output = Path(options.output)
    report.write(results, output)
    print(f"\nwritten to {output}")
    return 0


def measure(options: argparse.Namespace) -> dict:
    """Frames a second of every contender, ratios of medians by round, shares of the stages."""
    pcm = read_speech(options.audio)
    pipeline = _pipeline(options)
    avatar, total = pipeline.avatar, pipeline.frame_count(pcm)
    stages: dict[str, float] = {}

    def whole_render() -> int:
        stopwatch = Stopwatch(pipeline.device)
        for _ in pipeline.render(pcm, stopwatch=stopwatch):
            pass
        for name, seconds in stopwatch.seconds().items():
            stages[name] = stages.get(name, 0) + seconds
        return total

    def whole_render_to_mp4() -> int:
        with tempfile.TemporaryDirectory() as folder:
            _write_mp4(pipeline, pcm, Path(folder) / "out.mp4", options.audio)
        return total

    contenders = {
        "generator alone": _generator_alone(pipeline, total),
        "speech to finished frames": whole_render,
        "speech to mp4": whole_render_to_mp4,
    }
    if options.loop:
        contenders["frame-by-frame loop"] = _frame_loop(avatar, pcm)

    for run in contenders.values():  # warm-up
        run()
    stages.clear()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(options.rounds), desc="rounds", disable=None):
        for name, run in contenders.items():
            # decoded frames that an earlier round left in the cache would be a present
            pipeline.avatar = _load(options)
            begin = time.perf_counter()
            frames = run()
            _synchronize(pipeline.device)
            rates[name].append(frames / (time.perf_counter() - begin))

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[to], strict=True))

    ratios = {
        f"{name} / {to}": ratio(name, to)
        for name in ("speech to finished frames", "speech to mp4")
        for to in ("generator alone", "frame-by-frame loop")
        if to in rates
    }
    spent = sum(stages.values())
    return {
        "speech, s": len(pcm) / kernels.SAMPLE_RATE,
        "frames": total,
        "frame size": [avatar.width, avatar.height],
        "batch size": pipeline.batch_size,
        "runtime": pipeline.generator.description,
        "frames a second": {name: statistics.median(values) for name, values in rates.items()},
        "frames a second, all rounds": rates,
        "ratios": ratios,
        "share of the stages": {name: seconds / spent for name, seconds in stages.items()},
    }


def _load(options: argparse.Namespace) -> Avatar:
    return Avatar.load(options.avatar, device=options.device)


def _pipeline(options: argparse.Namespace) -> Pipeline:
    return Pipeline(_load(options), batch_size=options.batch_size, runtime=options.runtime)


def _generator_alone(pipeline: Pipeline, total: int) -> Callable[[], int]:
    """The generator over as many frames in the same batches, inputs rotated and never zeros."""
    n, network, device = pipeline.batch_size, pipeline.generator, pipeline.device
    pictures = [torch.rand(n, 6, 320, 320, dtype=network.dtype, device=device) for _ in range(3)]
    audio = [torch.randn(n, 32, 16, 16, dtype=network.dtype, device=device) for _ in range(3)]
    out = torch.empty(n, 3, 320, 320, dtype=network.dtype, device=device)

    def run() -> int:
        for number, first in enumerate(range(0, total, n)):
            some = min(n, total - first)
            picture, sound = pictures[number % 3][:some], audio[number % 3][:some]
            network(picture, sound, out=out[:some])
        return total

    return run


def _frame_loop(avatar: Avatar, pcm: torch.Tensor) -> Callable[[], int]:
    """The same frames through OpenCV and eager PyTorch; reading them is spared it."""
    samples = pcm[: int(LOOP_SECONDS * kernels.SAMPLE_RATE)].numpy()
    boxes = [tuple(box) for box in avatar.boxes.tolist()]
    count = min(len(boxes), 64)
    frames = [avatar.batch([i])[0][0].cpu().numpy()[..., ::-1].copy() for i in range(count)]
    trained = networks()

    def run() -> int:
        rendered = frame_loop.render(
            samples, frames.__getitem__, boxes[:count], trained["audio_encoder"],
            trained["generator"],
        )  # fmt: skip
        return sum(1 for _ in rendered)

    return run


def _write_mp4(pipeline: Pipeline, pcm: torch.Tensor, path: Path, audio: str) -> None:
    avatar = pipeline.avatar
    writer = VideoWriter(
        path, height=avatar.height, width=avatar.width, fps=avatar.fps, speech=audio
    )
    with writer:
        for frames in pipeline.render(pcm):
            writer.write(frames.cpu().numpy())


def _render_to_nowhere(options: argparse.Namespace, seconds: int) -> None:
    """A render with its mp4, of the speech over and over until it is that long."""
    import wave

    pcm = read_speech(options.audio)
    pcm = pcm.repeat(1 + seconds * kernels.SAMPLE_RATE // len(pcm))[: seconds * kernels.SAMPLE_RATE]
    pipeline = _pipeline(options)
    with tempfile.TemporaryDirectory() as folder:
        with wave.open(f"{folder}/speech.wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(kernels.SAMPLE_RATE)
            file.writeframes((pcm.numpy() * 32767).astype(np.int16).tobytes())
        _write_mp4(pipeline, pcm, Path(folder) / "out.mp4", f"{folder}/speech.wav")


def _peak_memory(options: argparse.Namespace, seconds: int) -> int:
    """Bytes, of a process of its own."""
    arguments = ["--peak-memory-of", str(seconds), "--device", options.device]
    arguments += ["--avatar", options.avatar, "--audio", options.audio]
    if options.batch_size:
        arguments += ["--batch-size", str(options.batch_size)]
    if options.runtime:
        arguments += ["--runtime", options.runtime]
    command = [sys.executable, "-m", "benchmarks.render", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak() -> int:
    """Bytes. The peak that `getrusage` tells may be the parent's, from before the exec."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _print_table(results: dict) -> None:
    machine = results["machine"]
    print(f"\n{machine['gpu'] or machine['cpu']}, {machine['cores']} cores; {results['runtime']}")
    width, height = results["frame size"]
    print(f"{results['frames']} frames of {width} x {height}, batches of {results['batch size']}\n")
    for title, rows, form in [
        ("frames a second", results["frames a second"], "{:10.2f}"),
        ("ratios", results["ratios"], "{:10.2f}"),
        ("share of the stages", results["share of the stages"], "{:10.1%}"),
        ("peak memory, MB", results.get("peak memory, MB", {}), "{:10.0f}"),
    ]:
        if rows:
            print(title)
            for name, value in rows.items():
                print(f"  {name:50}" + form.format(value))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    add = parser.add_argument
    add("--avatar", default=str(DEMO))
    add("--audio", default=str(DEMO / "speech.wav"))
    add("--batch-size", type=int)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--runtime")
    add("--rounds", type=int, default=5)
    add("--no-loop", dest="loop", action="store_false", help="without the frame-by-frame loop")
    add("--no-memory", dest="memory", action="store_false", help="without the peak memory")
    add("-o", "--output", default="out/benchmark-render.json")
    add("--peak-memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        program(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
