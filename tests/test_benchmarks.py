"""The benchmarks run, compare only sides that do the same work, and say what they left out."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import kernels as benchmark
from benchmarks import pipeline, renders, report_kernels, report_pipeline, stages, systems, timing
from benchmarks.systems import System
from engine.runtime import RUNTIMES

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("results") / "of the kernels"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--quick", "--out", str(folder)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_quick_run_measures_every_stage(quick):
    folder, done = quick
    results = json.loads((folder / "kernels.json").read_text())
    assert results["command"].startswith("python -m benchmarks.kernels --quick --out ")
    assert {"cpu", "cores", "gpu", "python", "torch"} <= results["machine"].keys()
    assert min(results["copy, bytes a second"]) > 1e8
    ours = [row for row in results["measured"] if row["side"] == stages.OURS]
    assert {(row["stage"], row["batch"]) for row in ours} == {
        (stage.name, stage.batch) for stage in benchmark._stages(benchmark.QUICK)
    }
    for row in results["measured"]:
        assert 0 < row["p20"] <= row["median"] <= row["p80"] and row["samples"] >= 3
    assert all(row["bytes"] > 0 for row in ours)
    sides = {row["side"] for row in results["measured"]}
    assert {"torch interpolate", "torchaudio", "CPU, 1 worker", "CPU, 8 workers"} <= sides
    # nothing was left out but what is not there
    reasons = {row["reason"].split(":")[0] for row in results["left out"]}
    assert reasons <= {"no CUDA GPU", "ModuleNotFoundError"}
    assert (folder / "kernels.txt").read_text().strip() in done.stdout
    assert "the Triton kernels: no CUDA GPU" in done.stdout


def test_a_quick_run_draws_where_it_can(quick):
    folder, done = quick
    if find_spec("matplotlib"):
        assert (folder / "kernels.png").stat().st_size > 10_000
    else:
        assert "no plot" in done.stderr


def test_bytes_of_the_face_stages_are_those_of_the_design():
    """1.65 MB a frame for face_input, 6.5 MB for composite, at 720 x 1280 and 182 pixels."""
    for make, megabytes in ((stages.face_input, 1.65), (stages.composite, 6.5)):
        stage = make(2, 1280, 720)
        assert stage.bytes(stage.inputs(CPU)) / 2 / 1e6 == pytest.approx(megabytes, rel=0.02)


def test_inputs_are_random_and_boxes_move():
    x = stages.face_input(40, 320, 180).inputs(CPU)
    assert x.frames.float().std() > 70
    assert len(x.boxes.unique(dim=0)) > 30
    assert len({x1 - x0 for x0, _, x1, _ in x.box_list}) > 2
    assert sorted(x.index_list) == list(range(40)) != x.index_list


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # what torch.compile imports
def test_the_jobs_on_a_gpu():
    """Their list is made without one; what they do is not."""
    jobs = list(benchmark.jobs(benchmark.GPU, torch.device("cuda")))
    names = {stage.name for stage in benchmark._stages(benchmark.GPU)}
    for side in (report_kernels.ALONE, stages.OURS, "reference", "torch.compile"):
        assert {job.stage.name for job in jobs if job.side == side} == names
    batches = {job.stage.batch for job in jobs if job.side == "reference"}
    assert batches == {1, 8, 25, 40, 100}


def test_a_side_that_does_other_work_is_refused():
    stage = stages.convert_color(2, 32, 24)
    job = benchmark.Job(
        stage, "other", lambda: [stage.inputs(CPU)], lambda x: x.images, timing.hosted
    )
    with pytest.raises(ValueError, match="gives something else"):
        benchmark.measure(job, 0.001)
    with pytest.raises(ValueError, match="gives \\(1, 32, 24, 3\\)"):
        benchmark.measure(replace(job, run=lambda x: x.images[:1].flip(3)), 0.001)
    assert benchmark.measure(replace(job, run=lambda x: x.images.flip(3)), 0.001)["median"] > 0


def test_a_limit_ends_what_takes_too_long():
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="more than 0 s"), timing.limit(0.05):
        time.sleep(10)
    assert time.monotonic() - begin < 5


def test_a_timing_is_of_one_call():
    calls = [lambda: time.sleep(0.004), lambda: time.sleep(0.004)]
    took = timing.hosted(calls, 0.05)
    assert 0.004 <= took.p20 <= took.median <= took.p80


# --- PCM to finished frames ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_pipeline(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Without PyAV and librosa, which GPU hosts do not have."""
    folder = tmp_path_factory.mktemp("results") / "of the pipeline"
    code = (
        "import runpy, sys; sys.modules['av'] = sys.modules['librosa'] = None; "
        "runpy.run_module('benchmarks.pipeline', run_name='__main__', alter_sys=True)"
    )
    cache = tmp_path_factory.mktemp("cache")
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--out", str(folder)],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_quick_run_renders_with_every_system(quick_pipeline):
    folder, done = quick_pipeline
    results = json.loads((folder / "pipeline.json").read_text())
    assert results["command"].startswith("python -m benchmarks.pipeline --quick --out ")
    main = results["compared at batch"]
    sides = {(row["side"], row["batch"]) for row in results["measured"]}
    assert sides == {
        ("viseme, ONNX Runtime", 1), ("viseme, ONNX Runtime", main), ("CPU, ONNX Runtime", 1),
        ("CPU, ONNX Runtime", main), ("PyTorch eager", main),
    }  # fmt: skip
    assert {row["side"] for row in results["left out"]} == {
        "GPU", "split design", "viseme, TensorRT", "viseme, PyTorch",
    }  # fmt: skip
    assert results["mel on the CPU"] == "the reference stage"
    assert (folder / "pipeline.txt").read_text().strip() in done.stdout
    if find_spec("matplotlib"):
        assert (folder / "pipeline.png").stat().st_size > 10_000
    else:
        assert "no plot" in done.stderr


def test_figures_of_a_render_agree_with_each_other(quick_pipeline):
    results = json.loads((quick_pipeline[0] / "pipeline.json").read_text())
    for row in results["measured"]:
        took, rate = row["seconds"], row["frames a second"]
        assert 0 < took["p20"] <= took["median"] <= took["p80"] and took["samples"] >= 3
        assert row["frames"] % row["batch"] == 0
        assert rate["median"] == pytest.approx(row["frames"] / took["median"])
        assert rate["p20"] <= rate["median"] <= rate["p80"]
        assert row["sessions at 25 fps"] == int(rate["median"] / 25)
        assert sum(row["share of the stages"].values()) == pytest.approx(1)
        assert set(row["share of the stages"]) <= set(report_pipeline.STAGES)
        networks = [row["share of the stages"][name] for name in ("audio encoder", "generator")]
        assert row["share of all but the networks"] == pytest.approx(1 - sum(networks))
        assert ("frame, s" in row) == (row["batch"] == 1)
        for latency in ("first frame, s", "frame, s") if row["batch"] == 1 else ():
            assert 0 < row[latency]["median"] <= row[latency]["p99"]
    (ratios,) = report_pipeline.speed_ups(results).values()
    rates = {
        row["side"]: row["frames a second"]["median"]
        for row in results["measured"]
        if row["batch"] == results["compared at batch"]
    }
    ours = rates.pop("viseme, ONNX Runtime")
    assert ratios == {side: pytest.approx(ours / rate) for side, rate in rates.items()}


def test_the_floors_are_those_of_the_design():
    """86 and 19 us of the generator's and 1.9 us of the stages, at 4.3 TB/s and 790 TFLOP/s."""
    floors = renders.floors(720, 1280, 4.3e12, 790e12)
    assert floors["layer by layer"] == pytest.approx(86e-6, rel=0.03)
    assert floors["fused blocks"] == pytest.approx(19e-6, rel=0.08)
    # where arithmetic is slow, bytes do not matter
    slow = renders.floors(720, 1280, 4.3e12, 9.77e12)
    assert slow["fused blocks"] == slow["layer by layer"] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("frames", [4, 9, 25, 96, 240])
def test_speech_of_a_benchmark_has_the_frames_asked_for(frames):
    pcm = renders.speech(frames)
    rows = renders.kernels.mel_rows(len(pcm))
    assert renders.kernels.frame_count(renders.kernels.mel_window_count(rows, 25.0)) == frames
    assert pcm.std() > 0.05


@pytest.fixture(scope="module")
def scene(tmp_path_factory, checkpoints) -> systems.Scene:
    return systems.make_scene(tmp_path_factory.mktemp("scene") / "s", checkpoints, 180, 320, 8)


class Quick:
    """A network whose output depends on all its inputs, and costs nothing."""

    dtype, description = torch.float32, "quick"
    capturable, stream = True, None

    def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 1:  # the audio encoder
            return out.copy_(inputs[0].flatten(1)[:, :512])
        tint = torch.sigmoid(inputs[1].flatten(1)[:, ::97].mean(dim=1))
        return out.copy_((inputs[0][:, :3] + tint[:, None, None, None]) / 2)


def test_a_plan_is_for_all_batches_that_are_measured(monkeypatch):
    """One that ends below would run the largest batches in two parts."""
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: (commands.append(command), done)[1])
    files = {"generator": Path("g.pth"), "audio_encoder": Path("e.pth")}
    monkeypatch.setattr(systems, "absent", lambda *_: None)
    assert pipeline._fault("tensorrt", torch.device("cuda"), files, pipeline.GPU) is None
    generator, encoder = (command[2:] for command in commands)
    assert generator == ["engine.build", "generator", "g.pth", "--batch", "1", "25", "40"]
    assert encoder == ["engine.build", "audio-encoder", "e.pth"]


def test_all_systems_make_the_same_frames(scene, monkeypatch):
    """Batches of 3: 7 frames are two whole ones and a part of one, of a ring of two buffers."""
    monkeypatch.setattr(systems, "_kept", lambda *_: Quick())
    pcm = renders.speech(7)
    ours = systems.viseme(scene, CPU, 3, runtime="torch")
    expected = torch.cat(list(ours.render(pcm, None))).int()
    assert len(expected) == 7
    eager = systems.eager(scene, CPU, 3)
    assert torch.equal(torch.cat(list(eager.render(pcm, None))).int(), expected)
    split = systems.split(scene, CPU, 3, runtime="torch")
    frames = [frame for batch in split.render(pcm, None) for frame in batch]
    bgr = torch.stack([torch.from_numpy(frame) for frame in frames]).int()
    # JPEG decoders differ by little
    assert ((bgr.flip(-1) - expected).abs() <= 3).float().mean() > 0.99
    box = [slice(*ends) for ends in ((106, 176), (45, 115))]  # within the face
    assert ((bgr.flip(-1) - expected)[:, box[0], box[1]].abs() <= 3).float().mean() > 0.98


def test_the_jobs_of_the_pipeline_on_a_gpu(scene):
    """Their list is made without one; what they do is not."""
    scenes = [scene, replace(scene, width=181)]
    jobs = list(pipeline.jobs(pipeline.GPU, scenes, torch.device("cuda"), list(RUNTIMES), "torch"))
    settings = {(job.scene, job.batch) for job in jobs}
    assert len(settings) == 12
    sides = {job.side for job in jobs}
    for side in sides:  # all of them everywhere, and once
        own = [(job.scene, job.batch) for job in jobs if job.side == side]
        assert len(own) == 12 and set(own) == settings
    assert {"viseme, TensorRT", "viseme, PyTorch compiled", "split design, TensorRT"} <= sides
    assert "PyTorch eager" in sides and any(side.startswith("CPU, ") for side in sides)
    for job in jobs:
        assert (job.device.type == "cpu") == job.side.startswith("CPU, ")
    # what is compared comes before what is not, and the batch of the targets first
    assert {job.batch for job in jobs[: len(sides)]} <= {25, 1} and jobs[0].batch == 25


def test_what_a_batch_allocates_and_waits_for_is_counted(monkeypatch):
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
    counted = renders.counts(System(render, "", CPU), torch.zeros(1), 6)
    assert counted == {"allocations a batch": 3.0, "synchronisations a batch": 0.5}
    assert modes == ["warn", "default"]


def test_a_system_that_fails_is_left_out_in_one_line(scene):
    def make(*_: object) -> System:
        raise RuntimeError("no luck\nat all")

    job = pipeline.Job("viseme, x", scene, 1, make, CPU, 10.0)
    results = {"measured": [], "left out": [], "floors, s a frame": {}}
    pipeline._measure_one(job, pipeline.QUICK, time.monotonic() + 60, results)
    pipeline._measure_one(job, pipeline.QUICK, time.monotonic(), results)
    reasons = [row["reason"] for row in results["left out"]]
    assert reasons == ["RuntimeError: no luck", "TimeoutError: the 300 s of the run were over"]
    assert results["measured"] == []
