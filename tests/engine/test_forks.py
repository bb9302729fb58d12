"""A process that was forked: it renders, or says in one line that it cannot; it never hangs."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engine import tiny

# Each child prints what came out, and is killed by SIGALRM if it hangs.
START = """
import os, signal, sys, threading, numpy as np, torch
from engine import Avatar, InputError, Pipeline
from engine.live import Live
torch.set_num_threads(2)  # with one, PyTorch has no threads that the child could miss
avatar = Avatar.load(sys.argv[1])
pipeline = Pipeline(avatar, batch_size=4)
speech = torch.rand(16000, generator=torch.Generator().manual_seed(1)) - 0.5

def rendered(pipeline=pipeline):
    return sum(frames.sum().item() for frames in pipeline.render(speech))

def forked(*calls):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        for call in calls:
            try:
                print(call())
            except InputError as error:
                print("InputError:", error)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the child hung"
"""


@pytest.fixture(scope="module")
def avatar(tmp_path_factory):
    return tiny.write_avatar(tmp_path_factory.mktemp("avatars") / "tiny")


def printed(avatar, code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", START + code, avatar],
        capture_output=True, text=True, cwd=ROOT, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def refused(lines: list[str]) -> bool:
    return all(
        line.startswith("InputError: process ")
        and "was forked from one that had rendered" in line
        and 'start processes with multiprocessing.get_context("spawn")' in line
        for line in lines
    )


def test_a_process_forked_after_loading_renders(avatar):
    of_child, of_parent = printed(avatar, "forked(rendered); print(rendered())")
    assert of_child == of_parent and float(of_child) > 0


def test_a_process_forked_after_a_render_is_refused(avatar):
    """With the pipeline, a new one, a render that has begun, and in a process that it forks."""
    lines = printed(
        avatar,
        "before, begun = rendered(), pipeline.render(speech)\n"
        "next(begun)\n"
        "forked(rendered, lambda: rendered(Pipeline(avatar)), lambda: next(begun),\n"
        "       lambda: forked(rendered))\n"
        "assert rendered() == before, 'the parent renders on'\n"
        "print(len(list(begun)))\n",
    )
    *of_child, nothing, rest = lines
    assert len(of_child) == 4 and refused(of_child)
    assert nothing == "None" and rest == "5"  # 24 frames, of which 4 were taken


def test_a_process_forked_after_frames_were_read_is_refused(avatar):
    """Those of a video are decoded by threads of FFmpeg."""
    (line,) = printed(avatar, "pipeline.avatar.batch([0, 1])\nforked(rendered)\n")
    assert refused([line])


def test_a_process_forked_beside_a_live_session_is_refused(avatar):
    lines = printed(
        avatar,
        "live = Live(avatar, runtime='onnxruntime')\n"
        "session = live.open(clock='taken')\n"
        "forked(lambda: live.open(), lambda: session.push(np.zeros(160, np.float32)),\n"
        "       lambda: session.take(), lambda: next(iter(session)))\n"
        "session.push(speech)\n"
        "print(session.take().frames.shape)\n"
        "live.close()\n",
    )
    *of_child, of_parent = lines
    assert len(of_child) == 4 and refused(of_child)
    assert of_parent == "torch.Size([1, 96, 80, 3])"


def test_a_process_forked_beside_threads_ends(avatar, tmp_path):
    """Those of FFmpeg, which resamples in a live session and in a render of a long file, and of
    ONNX Runtime."""
    speech = tiny.write_speech(tmp_path / "speech.wav", 20)
    lines = printed(
        avatar,
        "torch.set_num_threads(1)  # the child would also wait for PyTorch's threads\n"
        "import engine.pcm\n"
        "from engine.media.resampling import Resampler\n"
        f"file, engine.pcm.KEPT_SECONDS = {str(speech)!r}, 1\n"
        "resample, begun = Resampler(48000), pipeline.render(file)\n"
        "resample(np.zeros(4800, np.float32))\n"
        "next(begun)\n"
        "sys.stdout.flush()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(40)\n"
        "    sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n",
    )
    assert lines == ["5"]
