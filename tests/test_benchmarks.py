"""The benchmarks run, compare only providers that do the same work, and say what they left out."""

import json
import os
import subprocess
import sys
import time
import warnings
import wave
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import kernels as benchmark
from benchmarks import measurements, pipeline, providers, render, report, runner, stages, timing
from benchmarks.providers import Renderer
from benchmarks.report import VISEME, Column
from benchmarks.runner import Job
from engine.runtime import RUNTIMES
from models import checkpoint

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")

# --- the runner ----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> runner.Benchmark:
    """A benchmark whose table is the number of its rows."""

    def table(results: dict) -> str:
        return f"{len(results['measured'])} rows"

    return runner.Benchmark("kernels", tmp_path / "new" / "small.json", CPU, ["torch"], table)


def test_jobs_are_measured_or_left_out_with_the_reason(small):
    def fail() -> dict:
        raise RuntimeError("no luck\nat all")

    rows = [{"provider": name, "batch": 1} for name in ("a", "b", "c", "d")]
    slow = partial(time.sleep, 10)
    jobs = [
        Job(rows[0], lambda: {"x": 1}, 5), Job(rows[1], fail, 5), Job(rows[2], slow, 0.05),
        Job(rows[3], lambda: {"x": 2}, 5),
    ]  # fmt: skip
    begin = time.monotonic()
    small.measure(jobs, benchmark.QUICK)
    assert time.monotonic() - begin < 8
    assert small.results["measured"] == [{**rows[0], "x": 1}, {**rows[3], "x": 2}]
    assert small.results["left out"] == [
        {**rows[1], "reason": "RuntimeError: no luck"},
        {**rows[2], "reason": "TimeoutError: more than 0 s"},
    ]
    assert len(small.results["copy, bytes a second"]) == 2
    assert min(small.results["copy, bytes a second"]) > 1e8
    assert small.results["compared at batch"] == 2


def test_results_are_saved_after_each_job(small):
    saved = []

    def look() -> dict:
        saved.append(small.output.with_suffix(".txt").read_text() if saved else None)
        return {}

    small.measure([Job({"provider": "a"}, look, 5)] * 3, benchmark.QUICK)
    small.save()
    assert saved[1:] == ["1 rows\n", "2 rows\n"]
    results = json.loads(small.output.read_text())
    assert len(results["measured"]) == 3
    assert results["command"].startswith("python -m benchmarks.kernels")
    assert results["machine"]["torch"] == torch.__version__
    assert {"cpu", "cores", "gpu", "python"} <= results["machine"].keys()


def test_no_job_starts_after_the_budget(small):
    job = Job({"provider": "a"}, lambda: {}, 5)
    small.measure([job], replace(benchmark.QUICK, total=0))
    reason = "TimeoutError: the 0 s of the run were over"
    assert small.results["left out"] == [{"provider": "a", "reason": reason}]


def test_a_gpu_that_fails_at_the_end_does_not_lose_the_results(small, monkeypatch):
    figures = iter([1e9])

    def bandwidth(*_: object) -> float:
        for figure in figures:
            return figure
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timing, "copy_bandwidth", bandwidth)
    small.measure([Job({"provider": "a"}, lambda: {}, 5)], benchmark.QUICK)
    assert small.results["copy, bytes a second"] == [1e9]
    assert [row["provider"] for row in small.results["left out"]] == ["copy, at the end"]
    assert len(small.results["measured"]) == 1


# --- timing --------------------------------------------------------------------------------------


def test_a_limit_ends_work_that_takes_too_long():
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="more than 0 s"), timing.time_limit(0.05):
        time.sleep(10)
    assert time.monotonic() - begin < 5


def test_a_timing_is_of_one_call():
    calls = [lambda: time.sleep(0.004), lambda: time.sleep(0.004)]
    took = timing.time_wall_clock(calls, 0.05)
    assert 0.004 <= took.p20 <= took.median <= took.p80


@pytest.mark.parametrize(
    ("samples", "expected"), [([3.0], (3, 3, 3)), ([5.0, 1, 2, 3, 4, 0], (2.5, 1, 4))]
)
def test_percentiles(samples, expected):
    found = timing.percentiles(samples)
    assert (found["median"], found["p20"], found["p80"]) == pytest.approx(expected)


# --- tables and plots ----------------------------------------------------------------------------

ROWS = [
    {"provider": "other", "stage": "b", "batch": 2, "frame size": [4, 3], "s": {"median": 2e-3}},
    {"provider": VISEME, "stage": "b", "batch": 2, "frame size": [4, 3], "s": {"median": 1e-3}},
    {"provider": VISEME, "stage": "b", "batch": 1, "frame size": [4, 3], "s": {"median": 5e-4}},
    {"provider": "other", "stage": "c", "batch": 2, "frame size": None, "s": {"median": 3e-3}},
    {
        "provider": f"{VISEME}, x",
        "stage": "b",
        "batch": 2,
        "frame size": [4, 3],
        "s": {"median": 4e-3},
    },
]
RESULTS = {
    "machine": {"gpu": None, "cpu": "Some CPU", "cores": 2},
    "compared at batch": 2,
    "measured": ROWS,
    "left out": [
        {"provider": "q", "stage": "b", "batch": 2, "frame size": [4, 3], "reason": "why"},
        {"provider": "q", "stage": "c", "batch": 1, "frame size": None, "reason": "why"},
        {"provider": "GPU", "reason": "none"},
    ],
}  # fmt: skip


def test_a_table():
    columns = [
        report.CASE, report.PROVIDER, report.BATCH,
        Column("ms", "s/median", ".1f", 1e3), Column("not there", "s/p20", ".1f"),
    ]  # fmt: skip
    assert report.table(report.ordered(RESULTS), columns) == [
        "case      provider   batch   ms",
        "b, 4 x 3  viseme         1  0.5",
        "          viseme         2  1.0",
        "          viseme, x      2  4.0",
        "          other          2  2.0",
        "c         other          2  3.0",
    ]
    assert report.table([], columns) == []


def test_a_report_names_the_machine_and_what_is_left_out():
    assert report.text(RESULTS, ["one", "table"], []).split("\n") == [
        "Some CPU, 2 cores", "", "one", "table", "", "left out",
        "  q: why (b, 4 x 3, batch 2; c, batch 1)", "  GPU: none",
    ]  # fmt: skip


def test_a_long_list_of_cases_is_cut():
    def left_out(count: int) -> str:
        rows = [{"provider": "q", "batch": n, "reason": "why"} for n in range(count)]
        return report.text({**RESULTS, "left out": rows}).splitlines()[-1]

    assert left_out(5) == "  q: why (batch 0; batch 1; batch 2; batch 3; batch 4)"
    assert left_out(9) == "  q: why (batch 0; batch 1; batch 2; batch 3; 5 more)"


def test_speed_ups_are_over_the_fastest_of_ours_at_one_batch_size():
    found = report.speed_ups(RESULTS, lambda row: row["s"]["median"])
    assert [(row["provider"], row["case"], row["speed-up"]) for row in found] == [
        ("other", "b, 4 x 3", pytest.approx(2.0))
    ]


def test_plots(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    drawn = report.plot(RESULTS, "seconds", "s/median", lambda _: {"a mark": 1e-3}, path)
    assert drawn == bool(find_spec("matplotlib"))
    assert not drawn or path.stat().st_size > 10_000
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not report.plot(RESULTS, "seconds", "s/median", lambda _: {}, path)


def test_kept_results_are_readable():
    """Those that the README quotes, with the report of today."""
    results = json.loads((ROOT / "benchmarks/results/cpu-2-cores/render.json").read_text())
    assert results["command"].startswith("python -m benchmarks.render ")
    lines = render.table(results).splitlines()
    assert any(line.split() == ["generator", "alone", "24.06", "23.10", "24.43"] for line in lines)
    assert "speech to finished frames / frame-by-frame loop  6.27" in lines
    assert "60 s of speech   1594" in lines


# --- kernels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("results") / "of the kernels" / "kernels.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--quick", "-o", str(output)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output, done


def test_a_quick_run_measures_every_stage(quick):
    output, done = quick
    results = json.loads(output.read_text())
    assert results["command"].startswith("python -m benchmarks.kernels --quick -o ")
    ours = [row for row in results["measured"] if row["provider"] == VISEME]
    assert {(row["stage"], row["batch"]) for row in ours} == {
        (stage.name, stage.batch) for stage in benchmark._stages(benchmark.QUICK)
    }
    for row in results["measured"]:
        took = row["seconds"]
        assert 0 < took["p20"] <= took["median"] <= took["p80"] and took["samples"] >= 3
        assert row["bytes"] > 0
        assert row["bytes a second"] == pytest.approx(row["bytes"] / took["median"])
    found = {row["provider"] for row in results["measured"]}
    assert {"torch interpolate", "torchaudio", "CPU, 1 worker", "CPU, 8 workers"} <= found
    # nothing is left out but what is not installed
    reasons = {row["reason"].split(":")[0] for row in results["left out"]}
    assert reasons <= {"no CUDA GPU", "ModuleNotFoundError"}
    assert output.with_suffix(".txt").read_text().strip() in done.stdout
    assert "the Triton kernels: no CUDA GPU" in done.stdout
    times = {
        (row["case"], row["provider"]): row["seconds"]["median"]
        for row in report.ordered(results)
        if row["batch"] == results["compared at batch"]
    }
    for row in benchmark.speed_ups(results):
        ratio = times[row["case"], row["provider"]] / times[row["case"], VISEME]
        assert row["speed-up"] == pytest.approx(ratio)


def test_a_quick_run_draws_where_it_can(quick):
    output, done = quick
    if find_spec("matplotlib"):
        assert output.with_suffix(".png").stat().st_size > 10_000
    else:
        assert "no plot" in done.stderr


def test_bytes_of_the_face_stages():
    """Of a frame of 720 x 1280, with a box of about 182 pixels, and of its crop and ROI.

    `face_input` reads the box and writes the crop and float16 planes. `composite` reads the frame
    but for the box, the crop but for the ROI, and the generated ROI, and writes the frame.
    """
    frame, box, crop, roi = (3 * pixels for pixels in (720 * 1280, 182**2, 328**2, 320**2))
    for make, expected in (
        (stages.face_input, box + crop + 2 * 2 * roi),
        (stages.composite, frame - box + crop - roi + 2 * roi + frame),
        (partial(stages.composite, layout="nv12"), frame - box + crop - roi + 2 * roi + frame / 2),
        (partial(stages.composite, layout="i420"), frame - box + crop - roi + 2 * roi + frame / 2),
    ):
        stage = make(2, 720, 1280)
        assert stage.bytes(stage.inputs(CPU)) / 2 == pytest.approx(expected, rel=0.015)
    stage = stages.resize(2, 64, 32)
    assert stage.bytes(stage.inputs(CPU)) == 2 * 3 * (64 * 32 + 32 * 16)


def test_inputs_are_random_and_boxes_move():
    x = stages.face_input(40, 180, 320).inputs(CPU)
    assert x.frames.shape == (40, 320, 180, 3) and x.frames.float().std() > 70
    assert len(x.boxes.unique(dim=0)) > 30
    assert len({x1 - x0 for x0, _, x1, _ in x.box_list}) > 2
    assert sorted(x.index_list) == list(range(40)) != x.index_list


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # imported by torch.compile
def test_the_jobs_on_a_gpu():
    """Only the list of jobs is made here."""
    jobs = list(benchmark.jobs(benchmark.GPU, CUDA))
    names = {stage.name for stage in benchmark._stages(benchmark.GPU)}
    for provider in (benchmark.KERNEL_ONLY, VISEME, "reference", "torch.compile"):
        assert {job.row["stage"] for job in jobs if job.row["provider"] == provider} == names
    for provider in (benchmark.KERNEL_ONLY, VISEME, "reference"):
        batches = {job.row["batch"] for job in jobs if job.row["provider"] == provider}
        assert batches == {1, 8, 25, 40, 100}
    rows = [(*job.row.items(),) for job in jobs]
    assert len({str(row) for row in rows}) == len(rows)
    # the batch size of the comparisons comes first, with what torch.compile compiles and before
    # anything at other batch sizes; the references at these come last
    mains = [job.row["batch"] == 25 for job in jobs if not job.row["provider"].startswith("CPU")]
    assert mains == sorted(mains, reverse=True) and jobs[0].row["batch"] == 25
    order = [job.row["provider"] for job in jobs]
    assert "torch.compile" not in order[order.index("CPU, 1 worker") :]
    late = [job for job in jobs if job.row["provider"] == "reference" and job.row["batch"] != 25]
    assert jobs[-len(late) :] == late
    # each part alone
    parts = [list(benchmark.jobs(benchmark.GPU, CUDA, (part,))) for part in benchmark.PARTS]
    assert {job.row["batch"] for job in parts[0]} == {25}
    assert {job.row["provider"] for job in parts[0]} >= {"torch.compile", "reference", VISEME}
    assert {job.row["batch"] for job in parts[1]} == {1, 8, 40, 100}
    assert all(job.row["provider"].startswith("CPU, ") for job in parts[2])
    assert sum(map(len, parts)) == len(jobs)


def test_a_copy_moves_as_much_as_the_kernel(monkeypatch):
    """It is timed in the same way. Stages that a copy says nothing about have none."""
    timed = []

    def time(calls, seconds):
        timed.append(len(calls))
        for call in calls:
            call()
        return timing.Timing(1e-6 * len(timed), 0, 0, 3, "CUDA graph")

    monkeypatch.setattr(timing, "time_cuda_graph", time)
    monkeypatch.setattr(benchmark, "time_cuda_graph", time, raising=False)
    key = "copy of that size, bytes a second"
    for stage in (stages.face_input(2, 60, 80), stages.composite(2, 60, 80)):
        figures = benchmark.measure(stage, stage.viseme, CPU, time, 0.01)
        kernel, copy = timed[-2:]
        assert kernel == copy == figures["sets of inputs"]
        moved = figures["bytes"] // 2 * 2
        assert figures[key] == pytest.approx(moved / (1e-6 * len(timed)))
    for stage in (stages.mel_windows(2), stages.log_mel(1, 1)):
        assert key not in benchmark.measure(stage, stage.viseme, CPU, time, 0.01)
    stage = stages.face_input(2, 60, 80)
    other = partial(benchmark.measure, stage, stage.viseme, CPU)
    assert key not in other(timing.time_wall_clock, 0.001)


def test_shares_are_of_a_copy_of_the_same_size():
    """Where they mean something: of kernels alone, at the batch size of comparisons or more."""
    row = {
        "provider": benchmark.KERNEL_ONLY, "stage": "composite", "frame size": [720, 1280],
        "seconds": {"median": 5e-5, "p20": 4e-5, "p80": 6e-5}, "bytes a second": 3e12,
        "copy of that size, bytes a second": 4e12,
    }  # fmt: skip
    others = [
        {**row, "provider": VISEME, "copy of that size, bytes a second": None},
        {**row, "stage": "log_mel", "copy of that size, bytes a second": None},
    ]
    results = {
        "machine": {"gpu": "NVIDIA H200"}, "left out": [], "compared at batch": 25,
        "copy, bytes a second": [4.2e12, 4.3e12],
        "measured": [{**r, "batch": n} for r in (row, *others) for n in (1, 25, 100)],
    }  # fmt: skip
    text = benchmark.table(results)
    assert "a plain copy of much memory moves 4300 GB/s" in text
    lines = [line.split() for line in text.splitlines()]
    shares = [line for line in lines if line and line[-1] == "75.0%"]
    assert len(shares) == 2 and all("kernel" in line and line[-2] == "4e+03" for line in shares)
    assert text.count("%") == 2


def test_the_jobs_on_a_cpu():
    """What is compared comes before Viseme at other batch sizes."""
    jobs = [job.row for job in benchmark.jobs(benchmark.CPU, CPU)]
    assert [row["batch"] == 25 for row in jobs] == sorted(
        (row["batch"] == 25 for row in jobs), reverse=True
    )
    assert {row["provider"] for row in jobs if row["batch"] != 25} == {VISEME}
    assert {row["batch"] for row in jobs} == {1, 8, 25}
    assert {"CPU, 1 worker", "CPU, 8 workers", "torchaudio"} <= {row["provider"] for row in jobs}


def test_a_provider_that_does_other_work_is_refused():
    stage = stages.convert_color(2, 24, 32)
    measure = partial(benchmark.measure, stage, device=CPU, sample=0.001)
    timed = partial(measure, method=timing.time_wall_clock)
    with pytest.raises(ValueError, match="its result differs from Viseme's by"):
        timed(run=lambda x: x.images)
    with pytest.raises(ValueError, match=r"its shape is \(1, 32, 24, 3\), Viseme's is \(2, 32"):
        timed(run=lambda x: x.images[:1].flip(3))
    assert timed(run=lambda x: x.images.flip(3))["seconds"]["median"] > 0


# --- PCM to finished frames ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_pipeline(tmp_path_factory, demo_cache) -> tuple[Path, subprocess.CompletedProcess]:
    """A run without PyAV and librosa, which GPU hosts do not have."""
    output = tmp_path_factory.mktemp("results") / "of the pipeline" / "pipeline.json"
    code = (
        "import runpy, sys; sys.modules['av'] = sys.modules['librosa'] = None; "
        "runpy.run_module('benchmarks.pipeline', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "-o", str(output)],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(demo_cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output, done


def test_a_quick_run_renders_with_every_provider(quick_pipeline):
    output, done = quick_pipeline
    results = json.loads(output.read_text())
    assert results["command"].startswith("python -m benchmarks.pipeline --quick -o ")
    main = results["compared at batch"]
    found = {(row["provider"], row["batch"]) for row in results["measured"]}
    optional = {"viseme, OpenVINO"}
    without = set() if find_spec("openvino") else optional
    assert found == {
        ("viseme, ONNX Runtime", 1), ("viseme, ONNX Runtime", main), ("CPU, ONNX Runtime", 1),
        ("CPU, ONNX Runtime", main), ("PyTorch eager", main),
        *((name, batch) for name in optional - without for batch in (1, main)),
    }, results["left out"]  # fmt: skip
    assert {row["provider"] for row in results["left out"]} == {
        *("GPU", "split design", "viseme, fused kernels", "viseme, TensorRT", "viseme, PyTorch"),
        *without,
    }
    assert results["mel on the CPU"] == "the reference stage"
    assert output.with_suffix(".txt").read_text().strip() in done.stdout
    if find_spec("matplotlib"):
        assert output.with_suffix(".png").stat().st_size > 10_000
    else:
        assert "no plot" in done.stderr


def test_figures_of_a_render_agree_with_each_other(quick_pipeline):
    results = json.loads(quick_pipeline[0].read_text())
    for row in results["measured"]:
        took, rate = row["seconds"], row["frames a second"]
        assert 0 < took["p20"] <= took["median"] <= took["p80"] and took["samples"] >= 3
        assert row["frames"] % row["batch"] == 0
        assert rate["median"] == pytest.approx(row["frames"] / took["median"])
        assert rate["p20"] <= rate["median"] <= rate["p80"]
        assert row["sessions at 25 fps"] == int(rate["median"] / 25)
        assert sum(row["share of the stages"].values()) == pytest.approx(1)
        assert set(row["share of the stages"]) <= set(pipeline.STAGES)
        networks = [row["share of the stages"][name] for name in ("audio encoder", "generator")]
        assert row["share of all but the networks"] == pytest.approx(1 - sum(networks))
        assert ("frame, s" in row) == (row["batch"] == 1)
        for latency in ("first frame, s", "frame, s") if row["batch"] == 1 else ():
            assert 0 < row[latency]["median"] <= row[latency]["p99"]
    rates = {
        row["provider"]: row["frames a second"]["median"]
        for row in results["measured"]
        if row["batch"] == results["compared at batch"]
    }
    ours = max(rates.pop(name) for name in list(rates) if name.startswith("viseme, "))
    ratios = {row["provider"]: row["speed-up"] for row in pipeline.speed_ups(results)}
    assert ratios == {name: pytest.approx(ours / rate) for name, rate in rates.items()}


def test_rooflines_are_those_of_the_design():
    """86 and 19 us of the generator and 1.8 us of the stages, at 4.3 TB/s and 790 TFLOP/s."""
    results = {
        "copy, bytes a second": [4.0e12, 4.3e12],
        "arithmetic, FLOP a second": 790e12,
        "face stages, bytes a frame": {"720 x 1280": pipeline.face_stage_bytes(720, 1280)},
    }
    (least,) = pipeline.rooflines(results).values()
    assert least["layer by layer"] == pytest.approx(85.1e-6, rel=0.01)
    assert least["fused blocks"] == pytest.approx(17.8e-6, rel=0.01)
    # where arithmetic is slow, bytes do not matter
    (slow,) = pipeline.rooflines({**results, "arithmetic, FLOP a second": 9.77e12}).values()
    assert slow["fused blocks"] == slow["layer by layer"] == pytest.approx(1e-3, rel=0.01)


def test_a_gpus_figures_are_in_the_table():
    """Made up: none is measured here."""
    row = {
        "provider": "viseme, TensorRT", "batch": 1, "frame size": [720, 1280],
        "frames a second": {"median": 5000.0, "p20": 4900.0, "p80": 5100.0},
        "sessions at 25 fps": 200, "allocations a batch": 0.0, "synchronisations a batch": 0.5,
        "device memory, bytes": 3 << 30, "share of the stages": {"generator": 0.9},
        "share of all but the networks": 0.05, "first frame, s": {"median": 1e-3, "p99": 2e-3},
        "frame, s": {"median": 3e-4, "p99": 4e-4},
    }  # fmt: skip
    results = {
        "machine": {"gpu": "NVIDIA H200"}, "measured": [row], "left out": [],
        "compared at batch": 1, "copy, bytes a second": [4.3e12],
        "arithmetic, FLOP a second": 790e12, "face stages, bytes a frame": {"720 x 1280": 7.7e6},
    }  # fmt: skip
    lines = [line.split() for line in pipeline.table(results).splitlines()]
    name = ["720", "x", "1280", "viseme,", "TensorRT", "1"]
    figures = ["5000.0", "4900.0", "5100.0", "200", "42.5%", "0.0", "0.5", "3072"]
    assert [*name, *figures] in lines
    assert [*name, "1.00", "2.00", "0.30", "0.40"] in lines
    assert [*name, "90.0%", "5.0%"] in lines


@pytest.mark.parametrize("frames", [4, 9, 25, 96, 240])
def test_speech_of_a_benchmark_has_the_frames_asked_for(frames):
    kernels = measurements.kernels
    pcm = measurements.speech(frames)
    rows = kernels.mel_rows(len(pcm))
    assert kernels.frame_count(kernels.mel_window_count(rows, 25.0)) == frames
    assert pcm.std() > 0.05


@pytest.fixture(scope="module")
def scene(tmp_path_factory, checkpoints) -> providers.Scene:
    return providers.make_scene(tmp_path_factory.mktemp("scene") / "s", checkpoints, 180, 320, 8)


class Quick:
    """A network whose output depends on all its inputs, and costs nothing."""

    dtype, description = torch.float32, "quick"
    capturable, stream = True, None
    graph_bytes = 0

    def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 1:  # the audio encoder
            return out.copy_(inputs[0].flatten(1)[:, :512])
        tint = torch.sigmoid(inputs[1].flatten(1)[:, ::97].mean(dim=1))
        return out.copy_((inputs[0][:, :3] + tint[:, None, None, None]) / 2)


def test_a_plan_is_for_all_batches_that_are_measured(monkeypatch):
    """A plan for fewer would run the largest batches in two parts."""
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: (commands.append(command), done)[1])
    monkeypatch.setattr(providers, "unavailable", lambda *_: None)
    networks = {"generator": Path("g.pth"), "audio_encoder": Path("e.pth")}
    prepare = partial(providers.prepare, "tensorrt", CUDA, networks=networks, seconds=60)
    assert prepare(batches=(1, 25, 40)) is None
    encoder, generator = (command[2:] for command in commands)
    assert generator == ["engine.build", "generator", "g.pth", "--batch", "1", "25", "40"]
    assert encoder == ["engine.build", "audio-encoder", "e.pth"]
    failed = subprocess.CompletedProcess([], 2, stderr="a warning\nerror: no TensorRT\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert prepare(batches=(1, 25, 40)) == "RuntimeError: no TensorRT"


def test_all_providers_render_the_same_frames(scene, monkeypatch):
    """Batches of 3: 7 frames are two whole ones and a part of one, of a ring of two buffers."""
    for module in ("benchmarks.providers", "engine.pipeline"):
        monkeypatch.setattr(f"{module}.open_network", lambda *_, **__: Quick())
    monkeypatch.setattr(providers, "_open_and_keep", providers._open)
    pcm = measurements.speech(7)
    ours = providers.viseme(scene, CPU, 3, "torch")
    expected = torch.cat(list(ours.render(pcm, None))).int()
    assert len(expected) == 7
    eager = providers.eager(scene, CPU, 3)
    assert torch.equal(torch.cat(list(eager.render(pcm, None))).int(), expected)
    split = providers.split(scene, CPU, 3, "torch")
    frames = [frame for batch in split.render(pcm, None) for frame in batch]
    bgr = torch.stack([torch.from_numpy(frame) for frame in frames]).int()
    # JPEG decoders differ by little
    assert ((bgr.flip(-1) - expected).abs() <= 3).float().mean() > 0.99
    box = [slice(*ends) for ends in ((106, 176), (45, 115))]  # within the face
    assert ((bgr.flip(-1) - expected)[:, box[0], box[1]].abs() <= 3).float().mean() > 0.98


def test_pytorch_networks_are_opened_once_for_all_providers(scene, monkeypatch):
    """On a GPU, each one that is opened is compiled for minutes."""
    opened = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint, "load", lambda *a, **o: (opened.append(a[0].name), load(*a, **o))[1]
    )
    for make in (providers.viseme, providers.eager, providers.split, providers.viseme):
        make(scene, CPU, 2, "torch")
    assert sorted(opened) == ["audio_encoder.safetensors", "generator.safetensors"]


def test_the_jobs_of_the_pipeline_on_a_gpu(scene):
    """Only the list of jobs is made here."""
    scenes = [scene, replace(scene, width=181)]
    available = [runtime for runtime in RUNTIMES if runtime != "openvino"]  # of CPUs only
    chosen = pipeline.choose_providers(CUDA, available, "torch")
    for provider in chosen:
        assert (provider.device.type == "cpu") == provider.name.startswith("CPU, ")
        assert provider.compiled == provider.name.endswith("compiled")
    names = {provider.name for provider in chosen}
    assert len(names) == len(chosen) == 12
    assert {"viseme, fused kernels", "split design, fused kernels"} <= names
    assert {"viseme, TensorRT", "viseme, PyTorch compiled", "split design, TensorRT"} <= names
    assert {"PyTorch eager", "CPU, PyTorch"} <= names
    jobs = list(pipeline.jobs(pipeline.GPU, scenes, chosen))
    for name in names:  # each at every batch size and frame size, once
        own = [job for job in jobs if job.row["provider"] == name]
        settings = {(job.row["batch"], *job.row["frame size"]) for job in own}
        assert len(own) == len(settings) == 12
        limit = 150 if name.endswith("compiled") else 20
        assert {job.limit for job in own} == {limit}
    # the batch sizes that are compared come first, and of these the one of the comparisons
    assert {job.row["batch"] for job in jobs[: 4 * len(names)]} == {25, 1}
    assert jobs[0].row["batch"] == 25


def test_allocations_and_waits_of_a_batch_are_counted(monkeypatch):
    state = {"allocation.all.allocated": 0}

    def render(pcm: torch.Tensor, stopwatch: object) -> Iterator[None]:
        for batch in range(6):
            state["allocation.all.allocated"] += 3 if batch > 1 else 100
            if batch % 2:
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            yield

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: state)
    counted = measurements.counts(Renderer(render, "", CPU), torch.zeros(1), 6)
    assert counted == {"allocations a batch": 3.0, "synchronisations a batch": 0.5}
    assert modes == ["warn", "default"]


def test_a_compiler_that_compiles_nothing_is_noticed(scene, monkeypatch):
    monkeypatch.setattr(measurements, "measure", lambda *_, **__: {})
    monkeypatch.setattr(torch._dynamo.utils, "counters", {"stats": {"unique_graphs": 0}})
    provider = pipeline.Provider("viseme, PyTorch compiled", providers.viseme, CPU, "torch", True)
    with pytest.raises(RuntimeError, match="nothing was compiled"):
        pipeline.measure(provider, scene, 1, pipeline.QUICK)
    assert pipeline.measure(provider._replace(compiled=False), scene, 1, pipeline.QUICK) == {}


# --- speech to mp4 -------------------------------------------------------------------------------


@pytest.fixture
def one_second(tmp_path, speech) -> Path:
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((speech[:16000].numpy() * 32767).astype(np.int16).tobytes())
    return path


def run_render(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["render", *map(str, arguments)])
    return render.main()


def test_a_whole_render_is_measured(one_second, tmp_path, monkeypatch, capsys):
    """With networks that cost nothing."""
    pytest.importorskip("av", reason="PyAV writes the mp4")
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
    stubs = {"audio_encoder": lambda x: x.flatten(1)[:, :512], "generator": lambda x, _: x[:, :3]}
    monkeypatch.setattr(checkpoint, "load", lambda path, kind: stubs[kind])
    output = tmp_path / "render.json"
    options = ["--audio", one_second, "--rounds", 2, "--no-memory", "--device", "cpu", "-o", output]
    assert run_render(monkeypatch, *options) == 0
    results = json.loads(output.read_text())
    assert results["command"].startswith("python -m benchmarks.render --audio ")
    assert results["frames"] == 24 and results["speech, s"] == 1
    rates = {row["provider"]: row["frames a second, all rounds"] for row in results["measured"]}
    assert list(rates) == [render.GENERATOR, render.FRAMES, render.MP4, render.LOOP]
    for row in results["measured"]:
        assert (row["batch"], row["frame size"]) == (8, [720, 1280])
        low, high = sorted(row["frames a second, all rounds"])
        assert row["frames a second"]["median"] == pytest.approx((low + high) / 2)
        assert ("share of the stages" in row) == (row["provider"] == render.FRAMES)
    ratios = [a / b for a, b in zip(rates[render.MP4], rates[render.LOOP], strict=True)]
    assert results["ratios"][f"{render.MP4} / {render.LOOP}"] == pytest.approx(sum(ratios) / 2)
    assert [row["provider"] for row in results["left out"]] == ["peak memory"]
    assert "24 frames of 720 x 1280, batches of 8; quick" in capsys.readouterr().out
    assert output.with_suffix(".txt").exists()


def test_providers_take_turns_in_every_round(monkeypatch):
    calls = []
    providers = {
        "a": lambda: calls.append("a") or 10,  # finished frames
        "b": lambda: calls.append("b") or 20,
    }
    loaded = iter("1234")
    monkeypatch.setattr(render, "_load", lambda _: next(loaded))
    clock = iter([0.0, 2.0, 3.0, 7.0, 7.0, 8.0, 10.0, 11.0]).__next__
    monkeypatch.setattr(render, "time", SimpleNamespace(perf_counter=clock))
    stub = SimpleNamespace(device=CPU)
    rates = render._measure_rounds(providers, stub, SimpleNamespace(rounds=2))
    assert rates == {"a": [5.0, 10.0], "b": [5.0, 20.0]}
    assert calls == ["a", "b", "a", "b"]
    assert stub.avatar == "4"  # a new one each time: its cache is empty


def test_the_peak_memory_is_that_of_a_longer_render(one_second, monkeypatch, capsys):
    pytest.importorskip("av", reason="PyAV writes the mp4")
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
    rendered = []
    write = render._render_mp4
    monkeypatch.setattr(render, "_render_mp4", lambda *a: rendered.append(write(*a)))
    options = ["--audio", one_second, "--peak-memory-of", 2, "--device", "cpu"]
    assert run_render(monkeypatch, *options) == 0
    assert rendered == [49]
    assert 1e8 < int(capsys.readouterr().out) == pytest.approx(render.own_peak(), rel=0.2)


def test_a_render_refuses(one_second, monkeypatch, capsys, tmp_path):
    assert run_render(monkeypatch, "--rounds", 0) == 2
    assert capsys.readouterr().err == "error: rounds is 0; expected 1 or more\n"
    assert run_render(monkeypatch, "--audio", tmp_path / "no.wav") == 2
    assert "no.wav does not exist" in capsys.readouterr().err
