"""The cache folder, for users with and without a home."""

import os
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from engine import InputError
from engine.cache import cache_folder

ROOT = Path(__file__).parents[2]
NOBODY = 54321  # a user that the system does not know


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """A home and a temporary folder in `tmp_path`, without environment variables."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def quiet() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cache_folder()


def no_home(monkeypatch, folders: Path) -> None:
    """Set HOME to a path below a file, so that even root cannot create it."""
    (folders / "file").write_text("")
    monkeypatch.setenv("HOME", str(folders / "file" / "home"))


def test_a_cache_in_the_home(folders):
    made = quiet()
    assert made.is_dir() and made.parent == folders / "home" / ".cache" / "viseme"
    assert quiet() == made


def test_a_cache_where_the_environment_says(folders, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "elsewhere"))
    assert quiet().parent == folders / "elsewhere" / "viseme"


@pytest.mark.parametrize("value", ["", "relative", "./x", "~/.cache"])
def test_a_relative_path_is_ignored(folders, monkeypatch, value):
    """https://specifications.freedesktop.org/basedir requires it."""
    monkeypatch.chdir(folders)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert quiet().parent == folders / "home" / ".cache" / "viseme"
    assert sorted(path.name for path in folders.iterdir()) == ["home", "tmp"]


def test_a_cache_that_cannot_be_made_where_the_environment_says(folders, monkeypatch):
    (folders / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "file"))
    with pytest.raises(InputError, match="file/viseme/.* cannot be created: Not a directory"):
        cache_folder()


def test_a_home_that_cannot_be_written(folders, monkeypatch):
    no_home(monkeypatch, folders)
    with pytest.warns(UserWarning, match="file/home cannot be written; .* Set XDG_CACHE_HOME"):
        made = cache_folder()
    private = folders / "tmp" / f"viseme-{os.getuid()}"
    assert made.is_dir() and made.parent == private / "viseme"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with pytest.warns(UserWarning):
        assert cache_folder() == made


def test_no_home(folders, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])  # the system does not know it
    with pytest.warns(UserWarning, match="HOME is not set; .* Set XDG_CACHE_HOME"):
        assert cache_folder().is_relative_to(folders / "tmp")


def test_a_relative_home(folders, monkeypatch):
    monkeypatch.setenv("HOME", "some/where")
    with pytest.warns(UserWarning, match="HOME is 'some/where', which is not an absolute path"):
        assert cache_folder().is_relative_to(folders / "tmp")


def link(folders, private):
    (folders / "other").mkdir(mode=0o700)
    private.symlink_to(folders / "other")


def give_away(folders, private):
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    private.mkdir(mode=0o700)
    os.chown(private, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "prepare",
    [
        link,
        give_away,
        lambda folders, private: private.mkdir() or private.chmod(0o755),
        lambda folders, private: private.mkdir() or private.chmod(0o770),
    ],
)
def test_a_temporary_folder_of_others_is_refused(folders, monkeypatch, prepare):
    no_home(monkeypatch, folders)
    private = folders / "tmp" / f"viseme-{os.getuid()}"
    prepare(folders, private)
    with pytest.raises(InputError, match="is not a private folder of this user.*XDG_CACHE_HOME"):  # fmt: skip
        cache_folder()
    assert not list(private.iterdir())


def test_no_writable_folder(folders, monkeypatch):
    no_home(monkeypatch, folders)
    (folders / "tmp" / f"viseme-{os.getuid()}").write_text("")
    with pytest.raises(InputError, match="cannot be written, and .*File exists.*XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_that_the_system_does_not_know(tmp_path):
    """There is neither HOME nor a line in /etc/passwd, as with `docker run --user 54321`."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are private to root
        os.chmod(folder, 0o1777)
        code = (
            "import os, sys; from engine.cache import cache_folder\n"
            f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            "print(cache_folder())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(ROOT), "TMPDIR": folder, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        private = Path(folder) / f"viseme-{NOBODY}"
        assert done.stdout.startswith(f"{private}/viseme/")
        assert "HOME is not set" in done.stderr and "XDG_CACHE_HOME" in done.stderr
        assert private.stat().st_uid == NOBODY and stat.S_IMODE(private.stat().st_mode) == 0o700
