"""The cache of exported checkpoints: its content is checked, and nothing unfinished stays in it."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import cache as cache_module
from engine.cache import LEFTOVER_AGE, cache_folder, remove_leftovers
from engine.errors import InputError
from engine.runtime import exported as module
from engine.runtime import limited, limited_process
from engine.runtime.exported import exported
from engine.runtime.signature import AUDIO_ENCODER
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "a.pth").write_bytes(b"weights")
    return tmp_path / "a.pth"


@pytest.fixture
def exports(monkeypatch) -> list[bytes]:
    """The checkpoints that were exported. The export of b"weights" is b"ONNX of weights"."""
    done = []

    def run(signature, path, copy, made, precision):
        done.append(copy.read_bytes())
        made.write_bytes(b"ONNX of " + done[-1])

    monkeypatch.setattr(module, "_run", run)
    return done


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def test_the_name_has_a_digest_and_a_checksum(source, cache, exports):
    path = exported(AUDIO_ENCODER, source, "fp32")
    name = f"audio_encoder-{digest(b'weights')}-fp32-495f4eeb.onnx"
    assert path == cache / name and list(cache.iterdir()) == [path]
    assert exported(AUDIO_ENCODER, source, "fp32") == path
    assert exported(AUDIO_ENCODER, source, "fp16") != path
    assert exports == [b"weights"] * 2


def test_a_checkpoint_replaced_during_its_export(source, cache, exports, monkeypatch):
    """Otherwise the cache would keep another network under the first one's digest."""
    run = module._run

    def replace_and_run(signature, path, *rest):
        path.write_bytes(b"another network")
        run(signature, path, *rest)

    monkeypatch.setattr(module, "_run", replace_and_run)
    path = exported(AUDIO_ENCODER, source, "fp32")
    assert digest(b"weights") in path.name and path.read_bytes() == b"ONNX of weights"
    assert digest(b"another network") in exported(AUDIO_ENCODER, source, "fp32").name
    assert exports == [b"weights", b"another network"]


def test_a_checkpoint_replaced_before_it_is_copied(source, cache, exports, monkeypatch):
    find = module.find_undamaged

    def find_and_replace(*arguments):
        found = find(*arguments)
        source.write_bytes(b"another network")
        return found

    monkeypatch.setattr(module, "find_undamaged", find_and_replace)
    path = exported(AUDIO_ENCODER, source, "fp32")
    assert digest(b"another network") in path.name
    assert path.read_bytes() == b"ONNX of another network"


ROUNDS = 12
EXPORTER = """
import os, sys
from pathlib import Path
from engine.runtime import exported as module
from engine.runtime.signature import AUDIO_ENCODER
def wait(what):
    print(what, flush=True)
    assert os.read(0, 1)
def run(signature, path, copy, made, precision):
    wait("exporting")
    made.write_bytes(f"ONNX in {precision} of ".encode() + copy.read_bytes())
    wait("exported")
find = module.find_undamaged
def find_and_wait(*arguments):
    found = find(*arguments)
    wait("found" if found else "not found")
    return found
module._run, module.find_undamaged = run, find_and_wait
for round in range(int(sys.argv[2])):
    print(module.exported(AUDIO_ENCODER, Path(sys.argv[1]), f"fp{round}"), flush=True)
"""


def test_two_processes_export_one_checkpoint_at_once(source, cache):
    """Both get the file, also the one that ends last, and the first one's may be in use.

    Each waits at every step until both have reached it; then both are released.
    """
    command = [sys.executable, "-c", EXPORTER, str(source), str(ROUNDS)]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    try:
        for number in range(ROUNDS):
            made = set(cache.iterdir())
            for step in ("not found", "exporting", "exported"):
                assert [process.stdout.readline() for process in both] == [f"{step}\n"] * 2
                # neither is in the other's way
                assert len(set(cache.iterdir()) - made) == (0 if step == "not found" else 2)
                for process in both:
                    os.write(process.stdin.fileno(), b"g")
            first, second = (Path(process.stdout.readline().strip()) for process in both)
            assert first == second and first.read_bytes() == b"ONNX in fp%d of weights" % number
            assert set(cache.iterdir()) - made == {first}
        assert [process.wait(timeout=100) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "damaged", [b"", b"ONNX of", b"ONNX of weighty", bytes(15)], ids=["empty", "cut", "bit", "zero"]
)
@pytest.mark.parametrize("used", [True, False])
def test_a_damaged_file_is_made_again(source, cache, exports, capsys, damaged, used):
    path = exported(AUDIO_ENCODER, source, "fp32")
    if used:  # and found undamaged by this process
        exported(AUDIO_ENCODER, source, "fp32")
    time.sleep(0.01)  # a file system's clock may stand for some milliseconds
    path.write_bytes(damaged)
    assert exported(AUDIO_ENCODER, source, "fp32").read_bytes() == b"ONNX of weights"
    assert exports == [b"weights"] * 2 and list(cache.iterdir()) == [path]
    assert f"{path} is damaged; it is made again" in capsys.readouterr().err


def test_an_undamaged_file_is_checked_once(source, exports, monkeypatch):
    path = exported(AUDIO_ENCODER, source, "fp32")
    checked, checksum = [], cache_module.checksum
    monkeypatch.setattr(
        cache_module, "checksum", lambda path: checked.append(path) or checksum(path)
    )
    for _ in range(3):
        exported(AUDIO_ENCODER, source, "fp32")
    assert checked == [path]


def test_leftovers_of_killed_runs(source, cache, exports):
    old, new = cache / ".export.old.partial", cache / ".export.new.partial"
    for folder in (old, new):
        folder.mkdir()
        (folder / "checkpoint.pth").write_bytes(b"weights")
    (cache / ".timing.0123.partial.cache").write_bytes(b"unfinished")
    (cache / "timing.cache").write_bytes(b"finished")
    link = cache / ".export.link.partial"
    link.symlink_to(source.parent)
    hour_ago = time.time() - LEFTOVER_AGE - 10
    for path in (old, cache / ".timing.0123.partial.cache", cache / "timing.cache", link):
        os.utime(path, (hour_ago, hour_ago), follow_symlinks=False)
    made = exported(AUDIO_ENCODER, source, "fp32")
    assert set(cache.iterdir()) == {new, cache / "timing.cache", made}
    assert source.exists()
    remove_leftovers(cache)
    assert new.exists()


@pytest.fixture
def small_files():
    """Files of more than 50 kB cannot be written, nearly as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def large(source) -> Path:
    source.write_bytes(bytes(60_000))
    return source


def test_a_full_disk_is_named(large, cache, exports, small_files):
    source = large
    with pytest.raises(InputError, match="File too large") as caught:
        exported(AUDIO_ENCODER, source, "fp32")
    assert str(caught.value) == f"{source} cannot be exported to {cache}: File too large"
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (lambda path: None, "no such file"),
        (lambda path: path.touch() or os.truncate(path, 32 << 30), "has 34359738368 bytes"),
    ],
    ids=["pipe", "device", "folder", "nothing", "sparse"],
)
def test_files_that_are_not_read(tmp_path, cache, make, message):
    make(tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        exported(AUDIO_ENCODER, tmp_path / "x.pth", "fp32")
    assert list(cache.iterdir()) == []


def test_an_export_that_does_not_end(source, cache, monkeypatch):
    """The process is ended while it loads its libraries."""
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    with pytest.raises(InputError, match=r"a\.pth was not exported to ONNX within 0\.005 minutes"):
        exported(AUDIO_ENCODER, source, "fp32")
    assert list(cache.iterdir()) == []


def test_an_export_ended_by_the_system(source, cache, monkeypatch):
    done = SimpleNamespace(returncode=-signal.SIGKILL, stderr="loading a.pth\n")
    monkeypatch.setattr(limited, "run_module", lambda *_, **__: done)
    with pytest.raises(InputError, match=r"ended by SIGKILL, perhaps because of too little memory"):
        exported(AUDIO_ENCODER, source, "fp32")
    assert list(cache.iterdir()) == []


@pytest.fixture
def package(tmp_path) -> Path:
    """A package `export` that says its limit, and waits."""
    (tmp_path / "search" / "export").mkdir(parents=True)
    (tmp_path / "search" / "export" / "__main__.py").write_text(
        "import os, resource, sys, time\n"
        "limit, _ = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "print(os.getpid(), limit, *sys.argv[1:], flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "search" / "export" / "__init__.py").touch()
    return tmp_path / "search"


def test_the_export_ends_with_its_parent(package):
    start = (
        "import os, subprocess, sys\n"
        f"subprocess.run([sys.executable, '-P', {limited_process.__file__!r}, str(os.getpid()), "
        f"'{limited.MAX_BYTES}', 'export', 'generator'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(package)}
    parent = subprocess.Popen(
        [sys.executable, "-c", start], env=environment, stdout=subprocess.PIPE, text=True
    )
    child, limit, argument = parent.stdout.readline().split()
    assert (int(limit), argument) == (limited.MAX_BYTES, "generator")
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(int(child), signal.SIGKILL)
    pytest.fail("the export goes on without its parent")


def test_an_export_without_its_parent(package):
    """The parent ended before the export could ask to be told."""
    done = subprocess.run(
        [sys.executable, "-P", limited_process.__file__, "1", "0", "export", "generator"],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, b"")
