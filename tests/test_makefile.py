"""The Makefile's environments."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MAKEFILE = ROOT / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_linked_environment_is_not_emptied(tmp_path):
    """`.venv-oldest` may lead to that of another checkout; packages cannot be installed here."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --without-pip\n')
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / ".ready").touch()
    kept = tmp_path / "linked" / "kept"
    kept.parent.mkdir()
    kept.touch()
    (tmp_path / ".venv-oldest").symlink_to("linked")
    command = ["make", "-f", str(MAKEFILE), "oldest"]
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "No module named pip" in done.stderr
    assert kept.exists() and not (tmp_path / ".venv-oldest").is_symlink()
    assert not (tmp_path / ".venv-oldest" / ".ready").exists()  # the next time makes it anew
