"""The render command is interrupted, killed, or runs twice at a time: what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from tests.conftest import ROOT
from tests.engine import tiny


@pytest.fixture(autouse=True)
def hangups_end_what_is_started():
    """Also where the tests are run by nohup: a signal that is handled here is not ignored there."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def avatar(tmp_path_factory):
    return tiny.write_avatar(tmp_path_factory.mktemp("avatars") / "tiny")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """So long that no render of it ends before its signal."""
    return tiny.write_speech(tmp_path_factory.mktemp("audio") / "speech.wav", 120)


def start(command: list[str], **options) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=tiny.ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, **options
    )


def wait_for(process: subprocess.Popen, reached) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


# What can be seen from outside when a render has come this far, by the files in its folder.
MOMENTS = {
    "a folder for images": lambda folder: any(folder.glob(".frames.*.partial")),
    "an mp4": lambda folder: any(folder.glob(".o.*.partial.mp4")),
    "the first images": lambda folder: any(folder.glob(".frames.*/000003.png")),
    "many images": lambda folder: any(folder.glob(".frames.*/000200.png")),
}


@pytest.mark.parametrize(
    ("kind", "code", "moment"),
    [
        (signal.SIGINT, 130, "a folder for images"),
        (signal.SIGINT, 130, "the first images"),
        (signal.SIGTERM, 143, "an mp4"),
        (signal.SIGTERM, 143, "many images"),
        (signal.SIGHUP, 129, "the first images"),
    ],
)
def test_a_signal_leaves_nothing(avatar, audio, tmp_path, kind, code, moment):
    output = tmp_path / "o.mp4"
    command = tiny.command(avatar, audio, output, "--frames", tmp_path / "frames")
    with start(command) as process:
        wait_for(process, lambda: MOMENTS[moment](tmp_path))
        os.kill(process.pid, kind)
        out, error = process.communicate(timeout=100)
    assert process.returncode == code, error
    assert "Traceback" not in error and out == ""
    assert ("interrupted: nothing was written" in error) == (kind == signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="other systems have no /proc")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_modules_are_imported(avatar, audio, tmp_path, kind):
    """PyTorch's library takes most of the time; nothing is printed."""
    with start(tiny.command(avatar, audio, tmp_path / "o.mp4")) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(process, lambda: "libtorch" in maps.read_text())
        os.kill(process.pid, kind)
        out, error = process.communicate(timeout=100)
    assert process.returncode == -kind  # for a shell 128 + kind
    assert out == error == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="other systems have no /proc")
@pytest.mark.parametrize("module", ["train", "export", "serve.cluster"])
def test_ctrl_c_while_other_commands_are_imported(module):
    with start([sys.executable, "-m", module, "--help"], cwd=ROOT) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(process, lambda: "libtorch" in maps.read_text())
        os.kill(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=100)
    assert (process.returncode, out, error) == (-signal.SIGINT, "", "")


# It sends a signal when the process begins to import a module.
SITE = """
import os, sys
def watch(event, arguments):
    if event == "import" and arguments[0] == os.environ["SIGNAL_AT_IMPORT_OF"]:
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.addaudithook(watch)
"""


@pytest.mark.parametrize(
    ("kind", "module", "code"),
    [
        (signal.SIGINT, "numpy", -signal.SIGINT),
        (signal.SIGTERM, "PIL", -signal.SIGTERM),
        (signal.SIGINT, "torch.nn", -signal.SIGINT),
        (signal.SIGHUP, "av", -signal.SIGHUP),
        (signal.SIGINT, "tqdm", -signal.SIGINT),
        # the speech has been read, and the folder for images is there
        (signal.SIGINT, "onnxruntime", 130),
        (signal.SIGTERM, "onnxruntime", 143),
    ],
)
def test_a_signal_at_the_import_of_a_module(avatar, audio, tmp_path, kind, module, code):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    folder = tmp_path / "out"
    folder.mkdir()
    environment = {
        **tiny.ENVIRONMENT,
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
        "SIGNAL_AT_IMPORT_OF": module,
        "SIGNAL": str(int(kind)),
    }
    command = tiny.command(avatar, audio, folder / "o.mp4", "--frames", folder / "frames")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    expected = "interrupted: nothing was written\n" if code == 130 else ""
    assert done.stderr == expected
    assert list(folder.iterdir()) == []


MOMENTS_OF_A_RENDER = 42


@pytest.fixture(scope="module")
def interrupted(avatar, tmp_path_factory) -> list[dict]:
    """What renders left that were interrupted at so many moments, after one that was not."""
    root = tmp_path_factory.mktemp("interrupted")
    audio = tiny.write_speech(root / "speech.wav", 1)
    arguments = map(str, (avatar, audio, root / "out", MOMENTS_OF_A_RENDER))
    command = [sys.executable, "-m", "tests.engine.interrupted_renders", *arguments]
    done = subprocess.run(
        command, env=tiny.ENVIRONMENT, capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("moment", range(MOMENTS_OF_A_RENDER))
def test_a_signal_at_any_moment_of_a_render(interrupted, moment):
    whole, found = interrupted[0], interrupted[1 + moment]
    assert whole["code"] == 0 and len(whole["left"]) == 26  # an mp4, a folder, 24 images
    assert "Traceback" not in found["errors"] and found["threads"] == []
    if "interrupted: " in found["errors"]:
        said = found["errors"].splitlines()[-1]
        assert ("nothing was written" in said) == (found["left"] == []), found
        assert ("frames not" in said) == (found["left"] == ["o.mp4"]), found
    if found["left"] == []:
        codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
        assert found["code"] == codes[found["kind"]], found
    elif found["left"] == ["o.mp4"]:  # which is renamed just before the folder of images
        assert found["place"] in ("images.__exit__", "files.whole"), found
    else:  # all was done
        assert found["left"] == whole["left"], found


def test_the_moments_of_a_render_are_all_over_it(interrupted):
    places = {found["place"] for found in interrupted[1:]}
    assert len(places) >= 15
    assert sum(found["left"] == [] for found in interrupted[1:]) >= 22


IMPORTS = "import engine, signal; print(signal.getsignal(signal.SIGINT))"
PROGRAM = """
import os, signal, sys, time
from engine.command import program
def main():
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)  # the handler would run here
        print("removed")
program(main)
"""


def test_the_library_does_not_change_how_ctrl_c_is_handled():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, "-m", "engine.render"], env=tiny.ENVIRONMENT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "default_int_handler" in done.stdout


@pytest.mark.parametrize("second", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_signal_does_not_interrupt_the_removal(second):
    """The shell and the kernel both send SIGHUP when a terminal is closed."""
    with start([sys.executable, "-c", PROGRAM, str(int(second))]) as process:
        out, error = process.communicate(timeout=100)
    assert (process.returncode, out, error) == (129, "removed\n", "")


def test_nohup_is_respected(avatar, tmp_path):
    audio = tiny.write_speech(tmp_path / "speech.wav", 8)
    command = tiny.command(avatar, audio, tmp_path / "o.mp4", "--frames", tmp_path / "frames")
    # as nohup does
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with start(command, preexec_fn=ignore) as process:
        wait_for(process, lambda: MOMENTS["the first images"](tmp_path))
        os.kill(process.pid, signal.SIGHUP)
        _, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert (tmp_path / "o.mp4").exists()


def test_what_a_killed_render_left_does_not_hinder_the_next(avatar, audio, tmp_path):
    """Nor does the next one remove it: it may be that of a render that still runs."""
    output, frames = tmp_path / "o.mp4", tmp_path / "frames"
    with start(tiny.command(avatar, audio, output, "--frames", frames)) as process:
        wait_for(process, lambda: MOMENTS["the first images"](tmp_path))
        process.kill()
    left = set(tmp_path.iterdir())
    assert len(left) == 2 and all(".partial" in path.name for path in left)
    short = tiny.write_speech(tmp_path / "short.wav", 0.5)
    command = tiny.command(avatar, short, output, "--frames", frames)
    subprocess.run(command, env=tiny.ENVIRONMENT, check=True, capture_output=True)
    assert set(tmp_path.iterdir()) == {*left, short, output, frames}
    assert frame_count(output) == 12 and len(list(frames.iterdir())) == 11


def frame_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_two_containers_write_one_output(avatar, tmp_path):
    """In both, the render has the process ID 1, where the system allows that."""
    audio, output = tiny.write_speech(tmp_path / "speech.wav", 2), tmp_path / "o.mp4"
    own = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    try:
        allowed = subprocess.run([*own, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    command = [*(own if allowed else []), *tiny.command(avatar, audio, output)]
    renders = [start(command, cwd=ROOT) for _ in range(2)]
    for render in renders:
        _, error = render.communicate(timeout=200)
        assert render.returncode == 0, error
    assert frame_count(output) == 49
    assert set(tmp_path.iterdir()) == {audio, output}
