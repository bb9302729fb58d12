"""Who may import whom, and what no file may be called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"kernels", "models", "export", "engine", "benchmarks", "examples", "tests"}
MAY_IMPORT = {
    "kernels": set(),
    "models": set(),
    "models/train": {"kernels", "engine"},  # a program on top of the others
    "export": {"models"},
    "engine": {"kernels"},
    "engine/runtime/torch.py": {"kernels", "models"},
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} & ROOMS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    inner = path.relative_to(ROOT)
    room = inner.parts[0]
    if room in MAY_IMPORT:
        known = [p.as_posix() for p in (inner, *inner.parents) if p.as_posix() in MAY_IMPORT]
        assert imported(path) <= MAY_IMPORT[known[0]] | {room}


def test_there_are_files_to_look_at():
    assert len(FILES) > 30
    assert imported(ROOT / "engine/runtime/torch.py") == {"models"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_sizes(path):
    assert path.stem not in {"utils", "helpers", "common", "misc", "manager"}
    if path.relative_to(ROOT).parts[0] != "tests":
        assert len(path.read_text().splitlines()) <= 400


def test_what_runs_on_a_gpu_host_loads_with_what_it_has():
    """benchmarks/on_gpu.sh says what that is; without the rest, nothing may fail to be collected."""
    code = (
        "import sys, importlib\n"
        "absent = 'av librosa scipy hypothesis matplotlib tensorrt tensorrt_rtx'.split()\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "for name in 'on_gpu graphs tensorrt runtime avatar'.split():\n"
        "    importlib.import_module(f'tests.engine.test_{name}')\n"
        "import tests.models.test_train_on_gpu\n"
        "import tests.engine.conftest, benchmarks.pipeline, benchmarks.kernels\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
