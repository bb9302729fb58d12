"""`python -m benchmarks.render`: a whole render, next to its generator alone and to a frame loop.

All providers are measured in turn, round after round in one run, because machines drift: ratios
within a round vary less than rates. Figures are medians over the rounds.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from benchmarks import frame_loop, measurements, report, runner, timing
from benchmarks.report import PROVIDER, Column
from engine import Avatar, Pipeline
from engine.command import program, run
from engine.device.stopwatch import Stopwatch
from engine.errors import InputError
from engine.media.speech import read_speech
from engine.media.video import VideoWriter
from examples import DEMO, network_files
from models import checkpoint

GENERATOR, FRAMES, MP4 = "generator alone", "speech to finished frames", "speech to mp4"
LOOP = "frame-by-frame loop"
LOOP_SECONDS = 1.5  # of speech for the loop, which is slow
MEMORY_SECONDS = (6, 60)  # of speech for the peak memory


def main() -> int:
    parser = runner.parser("render", "Compare a render with its generator and with a frame loop.")
    add = parser.add_argument
    add("--avatar", default=str(DEMO), metavar="DIR")
    add("--audio", default=str(DEMO / "speech.wav"), metavar="FILE")
    add("--batch-size", type=int, metavar="N")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--runtime")
    add("--rounds", type=int, default=5, metavar="N")
    add("--no-loop", action="store_true", help="leave out the frame-by-frame loop")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--peak-memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = print_peak_memory if options.peak_memory_of else measure
    return run(lambda: work(options), interrupted="nothing was written")


def measure(options: argparse.Namespace) -> None:
    """Measure all rounds, then the peak memory, and write the results."""
    if options.rounds < 1:
        raise InputError(f"rounds is {options.rounds}; expected 1 or more")
    pcm = read_speech(options.audio)
    pipeline = _open(options)
    avatar, total = pipeline.avatar, pipeline.frame_count(pcm)
    row = {"batch": pipeline.batch_size, "frame size": [avatar.width, avatar.height]}
    device, packages = torch.device(options.device), ("torch", "onnxruntime")
    benchmark = runner.Benchmark("render", options.output, device, packages, table)
    results = benchmark.results
    results["speech, s"] = len(pcm) / kernels.SAMPLE_RATE
    results["frames"] = total
    results["runtime"] = pipeline.generator.description

    spent: dict[str, float] = {}
    providers: dict[str, Callable[[], int]] = {
        GENERATOR: measurements.generator_alone(pipeline, total),
        FRAMES: partial(_render, pipeline, pcm, spent),
        MP4: partial(_render_mp4, pipeline, pcm, options.audio),
    }
    if options.no_loop:
        benchmark.leave_out(LOOP, "--no-loop", **row)
    else:
        providers[LOOP] = _frame_loop(avatar, pcm)
    for provider in providers.values():  # warm-up
        provider()
    spent.clear()
    rates = _measure_rounds(providers, pipeline, options)
    for name, values in rates.items():
        figures = {"frames a second": timing.percentiles(values)}
        results["measured"].append(
            {"provider": name, **row, **figures, "frames a second, all rounds": values}
        )
        if name == FRAMES:
            shares = {stage: part / sum(spent.values()) for stage, part in spent.items()}
            results["measured"][-1]["share of the stages"] = shares
    results["ratios"] = {
        f"{name} / {to}": statistics.median(map(float.__truediv__, rates[name], rates[to]))
        for name in (FRAMES, MP4)
        for to in (GENERATOR, LOOP)
        if to in rates
    }
    if options.no_memory:
        benchmark.leave_out("peak memory", "--no-memory")
    else:
        results["peak memory, MB"] = {
            f"{seconds} s of speech": _peak_memory(seconds) / 1e6
            for seconds in tqdm(MEMORY_SECONDS, desc="memory", disable=None)
        }
    benchmark.finish("frames a second", "frames a second/median", lambda _: {})


def _measure_rounds(
    providers: dict[str, Callable[[], int]], pipeline: Pipeline, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return each provider's frames per second in all rounds."""
    rates: dict[str, list[float]] = {name: [] for name in providers}
    for _ in tqdm(range(options.rounds), desc="rounds", disable=None):
        for name, provider in providers.items():
            if pipeline.device.type == "cpu":
                pipeline.avatar = _load(options)  # whose cache holds no decoded frames yet
            begin = time.perf_counter()
            frames = provider()
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            rates[name].append(frames / (time.perf_counter() - begin))
    return rates


def table(results: dict) -> str:
    """Format the results as text."""
    rows = results["measured"]
    size, rate = report.case(rows[0]), "frames a second"
    rates = [
        Column(title, f"{rate}/{key}", ".2f")
        for title, key in ((rate, "median"), ("p20", "p20"), ("p80", "p80"))
    ]
    shares: dict[str, float] = next(
        (row["share of the stages"] for row in rows if row["provider"] == FRAMES), {}
    )
    return report.text(
        results,
        [
            f"{results['frames']} frames of {size}, batches of {rows[0]['batch']}; "
            f"{results['runtime']}"
        ],
        report.table(rows, [PROVIDER, *rates]),
        report.named("ratio, median of the rounds", results["ratios"], ".2f"),
        report.named("share of the stages", shares, ".1%"),
        report.named("peak memory, MB", results.get("peak memory, MB", {}), ".0f"),
    )


def _load(options: argparse.Namespace) -> Avatar:
    return Avatar.load(options.avatar, device=options.device)


def _open(options: argparse.Namespace) -> Pipeline:
    return Pipeline(_load(options), batch_size=options.batch_size, runtime=options.runtime)


# --- providers: each renders once and returns the number of frames -------------------------------


def _render(pipeline: Pipeline, pcm: Tensor, spent: dict[str, float]) -> int:
    """Render to finished frames; add the seconds of the stages to `spent`."""
    stopwatch = Stopwatch(pipeline.device)
    frames = sum(map(len, pipeline.render(pcm, stopwatch=stopwatch)))
    for name, seconds in stopwatch.seconds().items():
        spent[name] = spent.get(name, 0) + seconds
    return frames


def _render_mp4(pipeline: Pipeline, pcm: Tensor, audio: str) -> int:
    avatar, frames = pipeline.avatar, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoWriter(
            Path(folder) / "out.mp4",
            height=avatar.height,
            width=avatar.width,
            fps=avatar.fps,
            speech=audio,
        ) as writer,
    ):
        for batch in pipeline.render(pcm):
            writer.write(batch.cpu().numpy())
            frames += len(batch)
    return frames


def _frame_loop(avatar: Avatar, pcm: Tensor) -> Callable[[], int]:
    """Render with OpenCV and eager PyTorch, from frames that are decoded beforehand."""
    samples = pcm[: int(LOOP_SECONDS * kernels.SAMPLE_RATE)].numpy()
    boxes = [tuple(box) for box in avatar.boxes.tolist()][:64]
    frames = [avatar.batch([i])[0][0].cpu().numpy()[..., ::-1].copy() for i in range(len(boxes))]
    networks = {kind: checkpoint.load(path, kind) for kind, path in network_files().items()}
    encoder, generator = networks["audio_encoder"], networks["generator"]

    def render() -> int:
        rendered = frame_loop.render(samples, frames.__getitem__, boxes, encoder, generator)
        return sum(1 for _ in rendered)

    return render


# --- peak memory ---------------------------------------------------------------------------------


def _peak_memory(seconds: int) -> int:
    """Measure the peak of a process that renders an mp4 of that much speech, in bytes."""
    command = [sys.executable, "-m", "benchmarks.render", *sys.argv[1:]]
    command += ["--peak-memory-of", str(seconds)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_memory(options: argparse.Namespace) -> None:
    """Render an mp4 of `options.peak_memory_of` seconds, repeating the speech; print the peak."""
    samples = options.peak_memory_of * kernels.SAMPLE_RATE
    pcm = read_speech(options.audio)
    pcm = pcm.repeat(1 + samples // len(pcm))[:samples]
    pipeline = _open(options)
    with tempfile.TemporaryDirectory() as folder:
        with wave.open(f"{folder}/speech.wav", "wb") as file:
            file.setparams((1, 2, kernels.SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((pcm.numpy() * 32767).astype(np.int16).tobytes())
        _render_mp4(pipeline, pcm, f"{folder}/speech.wav")
    print(own_peak())


def own_peak() -> int:
    """Return this process's peak memory in bytes."""
    # On Linux, getrusage may report the peak of the parent, from before the exec.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    program(main)
