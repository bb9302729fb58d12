"""The kernels' benchmark runs, compares only sides that do the same work, and says what it left out."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import kernels as benchmark
from benchmarks import report_kernels, stages, timing

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
