"""The render command with few descriptors, on full and read-only disks, and without streams."""

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import av
import pytest

from engine.cache import VERSION
from tests.conftest import DEMO
from tests.engine import tiny


@pytest.fixture(scope="module")
def avatar(tmp_path_factory):
    return tiny.write_avatar(tmp_path_factory.mktemp("avatars") / "tiny")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return tiny.write_speech(tmp_path_factory.mktemp("audio") / "speech.wav", 4)


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=tiny.ENVIRONMENT, capture_output=True, text=True, timeout=200, **options
    )


def is_whole(path: Path) -> bool:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0)) == 99


def test_32_descriptors(avatar, audio, tmp_path):
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))  # noqa: E731
    command = tiny.command(avatar, audio, tmp_path / "o.mp4", "--frames", tmp_path / "frames")
    done = run(command, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path / "o.mp4")


def test_closed_streams(avatar, audio, tmp_path):
    """The files that are opened next get the descriptors 0 to 2, and must not get any text."""
    command = shlex.join(tiny.command(avatar, audio, tmp_path / "o.mp4"))
    done = run(["sh", "-c", f"{command} <&- >&- 2>&-"])
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path / "o.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


def test_a_limit_on_file_sizes(avatar, audio, tmp_path):
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    done = run(tiny.command(avatar, audio, tmp_path / "o.mp4"), preexec_fn=small)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path / 'o.mp4'}: File too large"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """A command before a script that mounts what no other process sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        done = subprocess.run([*command, "mount -t tmpfs tmpfs /mnt"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode != 0:
        pytest.skip("this user may not mount anything, even in a namespace of its own")
    return command


@pytest.mark.parametrize(
    ("images", "options", "reason"),
    [
        ([], "size=64k", "No space left on device"),
        (["png"], "size=64k", "No space left on device"),
        (["jpg"], "size=64k", "No space left on device"),
        ([], "ro", "Read-only file system"),
        (["png"], "ro", "Read-only file system"),
    ],
)
def test_a_disk_that_cannot_be_written(avatar, audio, namespace, tmp_path, images, options, reason):
    if images:
        images = ["--frames", tmp_path / "frames", "--frames-format", *images]
    command = shlex.join(tiny.command(avatar, audio, tmp_path / "o.mp4", *images))
    folder = shlex.quote(str(tmp_path))
    script = f"mount -t tmpfs -o {options} tmpfs {folder} && {command}; code=$?; ls -A {folder}"
    done = run([*namespace, f"{script}; exit $code"])
    assert done.returncode == 2, done.stderr
    *_, line = done.stderr.splitlines()
    named = f"error: {tmp_path / 'frames'}", f"error: {tmp_path / 'o.mp4'}"
    assert line.startswith(named) and line.endswith(reason) and "Traceback" not in done.stderr
    assert done.stdout == ""  # nothing is left in the folder


# Exports with the cache in a folder, and to a file in it; the ONNX itself is made of zeros.
EXPORTS = """
import sys
from pathlib import Path
from engine.errors import InputError
from engine.runtime.exported import exported
from engine.runtime.signature import AUDIO_ENCODER
import onnx
import export.onnx
from export.__main__ import main

def to_onnx(*_):
    zeros = onnx.helper.make_tensor("zeros", onnx.TensorProto.FLOAT, [40_000], [0.0] * 40_000)
    return onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], [zeros]))

export.onnx._to_onnx = to_onnx
checkpoint, output = sys.argv[1:]
try:
    exported(AUDIO_ENCODER, Path(checkpoint), "fp32")
except InputError as error:
    print(error, file=sys.stderr)
sys.exit(main(["audio-encoder", checkpoint, "-o", output]))
"""


@pytest.mark.parametrize(
    ("options", "reasons", "kept"),
    [
        (
            "size=64k",
            [
                "{checkpoint} cannot be exported to {cache}: No space left on device",
                "error: {output}: No space left on device",
            ],
            ["viseme", f"viseme/{VERSION}"],  # the cache's own folder
        ),
        (
            "ro",
            [
                "{cache} cannot be created: Read-only file system",
                "error: {folder}: cannot be written: Read-only file system",
            ],
            [],
        ),
    ],
)
def test_exports_to_a_disk_that_cannot_be_written(namespace, tmp_path, options, reasons, kept):
    checkpoint, output = DEMO / "audio_encoder.safetensors", tmp_path / "a.onnx"
    command = shlex.join([sys.executable, "-c", EXPORTS, str(checkpoint), str(output)])
    folder = shlex.quote(str(tmp_path))
    script = (
        f"mount -t tmpfs -o {options} tmpfs {folder} && XDG_CACHE_HOME={folder} {command}; "
        f"code=$?; find {folder} -mindepth 1 -printf '%P\\n'; exit $code"
    )
    done = run([*namespace, script])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    cache = tmp_path / "viseme" / VERSION
    said = [
        reason.format(checkpoint=checkpoint, cache=cache, output=output, folder=tmp_path)
        for reason in reasons
    ]
    assert [line for line in done.stderr.splitlines() if line in said] == said, done.stderr
    assert done.stdout.splitlines() == kept
