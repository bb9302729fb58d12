"""Which packages may import which, no import cycles, and names and sizes of files."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "kernels",
    "models",
    "export",
    "engine",
    "serve",
    "integrations",
    "train",
    "benchmarks",
    "examples",
    "tests",
}
MAY_IMPORT = {
    "kernels": set(),
    "models": set(),
    "export": {"models", "engine"},
    "engine": {"kernels"},
    "engine/runtime/torch.py": {"kernels", "models"},
    "serve": {"kernels", "engine"},
    "integrations": {"engine", "serve"},
    "train": {"kernels", "models", "engine"},
}
# `integrations` are distributions of their own, which import of `serve` only these.
FOR_INTEGRATIONS = ("serve.livekit",)
# In `engine`, the folders do not import the modules built on them, and nothing imports the
# commands.
FOLDERS = {"avatar", "media", "device", "faces", "preparing", "runtime", "plans"}
ABOVE_FOLDERS = {
    "engine.pipeline",
    "engine.session",
    "engine.scheduler",
    "engine.live",
    "engine.batches",
}
COMMANDS = {"engine.render", "engine.build", "engine.prepare"}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Return the full names that a file imports, at its top or in functions: modules, or names in
    them."""
    package = path.relative_to(root).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def import_graph(root: Path, files: list[Path]) -> dict[str, set[str]]:
    """Return, for each module, the modules among `files` that it imports."""
    modules = {name_of(path, root): path for path in files}

    def module(name: str) -> str | None:
        """Return the module of this name, or the one that contains the name."""
        parent = name.rpartition(".")[0]
        return name if name in modules else parent if parent in modules else None

    graph = {}
    for name, path in modules.items():
        graph[name] = {found for found in map(module, imports(path, root)) if found} - {name}
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next one, and the last the first; [] if there are
    none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name not in done:
            for other in sorted(graph[name]):
                if found := follow(other, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    inner = path.relative_to(ROOT)
    room, known = inner.parts[0], imports(path)
    rooms = {name.split(".")[0] for name in known} & ROOMS
    if room in MAY_IMPORT:
        rules = [p.as_posix() for p in (inner, *inner.parents) if p.as_posix() in MAY_IMPORT]
        assert rooms <= MAY_IMPORT[rules[0]] | {room}
    modules = {name.rpartition(".")[0] for name in known} | known
    if room not in ("benchmarks", "examples", "tests"):
        assert not modules & COMMANDS
    if room == "integrations":
        ours = {name for name in known if name.split(".")[0] == "serve"}
        assert all(name.startswith(FOR_INTEGRATIONS) for name in ours)
    if room == "engine" and inner.parts[1] in FOLDERS:
        assert not modules & ABOVE_FOLDERS
    if inner.parts[:2] == ("engine", "faces"):  # it knows pictures and points only
        assert not any(name.startswith(("engine.avatar", "engine.media")) for name in modules)


def test_the_files_are_found():
    assert len(FILES) > 30
    assert all((ROOT / "engine" / folder / "__init__.py").exists() for folder in FOLDERS)
    graph = import_graph(ROOT, FILES)
    assert graph["engine.runtime.torch"] >= {"models.checkpoint", "engine.runtime.signature"}
    assert graph["engine.runtime.open"] >= {"engine.plans.record", "engine.runtime.tensorrt"}


def test_there_are_no_import_cycles():
    assert cycle(import_graph(ROOT, FILES)) == []


def test_cycles_are_found(tmp_path):
    """A cycle as there once was: plan -> runtime -> tensorrt -> plan, through an import in a
    function."""
    (tmp_path / "engine" / "runtime").mkdir(parents=True)
    for name, code in {
        "__init__": "",
        "plan": "from .runtime import Signature",
        "runtime/__init__": "def open():\n    from .tensorrt import TensorRTNetwork",
        "runtime/tensorrt": "from ..plan import check",
        "build": "from . import plan",
    }.items():
        (tmp_path / "engine" / f"{name}.py").write_text(code)
    graph = import_graph(tmp_path, sorted(tmp_path.rglob("*.py")))
    assert cycle(graph) == ["engine.plan", "engine.runtime", "engine.runtime.tensorrt"]
    assert graph["engine.build"] == {"engine.plan"}
    graph["engine.plan"] = set()
    assert cycle(graph) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_sizes(path):
    assert path.stem not in {"utils", "helpers", "common", "misc", "manager"}
    if path.relative_to(ROOT).parts[0] != "tests":
        assert len(path.read_text().splitlines()) <= 400


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = set(project["tool"]["setuptools"]["packages"])
    found = {path.parent.relative_to(ROOT) for path in FILES if path.name == "__init__.py"}
    packages = {
        ".".join(folder.parts)
        for folder in found
        if folder.parts[0] in MAY_IMPORT.keys() - {"integrations"}
    }
    assert packages == installed


def test_gpu_tests_import_without_optional_packages():
    """benchmarks/on_gpu.sh runs them on hosts with few packages, where collecting them must not
    fail."""
    code = (
        "import sys, importlib\n"
        "absent = 'av librosa scipy hypothesis matplotlib tensorrt tensorrt_rtx'.split()\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "names = 'test_on_gpu device.test_buffers device.test_check runtime.test_tensorrt runtime.test_runtime'\n"
        "for name in [*names.split(), 'avatar.test_avatar', 'live.test_live_on_gpu',\n"
        "    'batches.test_batches_on_gpu', 'faces.test_faces_on_gpu']:\n"
        "    importlib.import_module(f'tests.engine.{name}')\n"
        "import tests.train.test_train_on_gpu\n"
        "import tests.engine.conftest, benchmarks.pipeline, benchmarks.kernels, benchmarks.live\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
