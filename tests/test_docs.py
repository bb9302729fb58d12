"""The documentation is correct: links, commands, options, figures, the API, and the Python in
it."""

import importlib
import inspect
import json
import re
import runpy
import shlex
import signal
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.live
import kernels
from engine import InputError
from engine.loop import frame_numbers
from engine.media.speech import SpeechScan
from tests.conftest import DEMO, ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", DEMO / "TRAINING.md", *sorted(DOCS.glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
# the commands whose options a page lists, all of them
DOCUMENTED = {
    "engine.render": "rendering.md",
    "engine.prepare": "avatars.md",
    "engine.live": "live.md",
    "engine.build": "networks.md",
    "serve": "serving.md",
    "export": "networks.md",
    "train": "training.md",
}
# the pages with Python, which the tests below run
WITH_PYTHON = {
    "README.md",
    "rendering.md",
    "kernels.md",
    "live.md",
    "clients.md",
    "integrations.md",
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def every_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", prose(page))


# --- links ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def links(page: Path) -> list[str]:
    """Return the targets of links and images within the repository."""
    text = prose(page)
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text) + re.findall(
        r'(?:src|href)="([^"]+)"', text
    )
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def test_links_and_anchors_are_found():
    assert {"examples/demo/sheet.jpg", "docs/kernels.md#how-exact-each-stage-is"} <= set(
        links(README)
    )
    assert {"how-fast", "what-is-where"} <= anchors(README)


@every_page
def test_link_targets_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_a_front_page():
    assert len(README.read_text().splitlines()) <= 150
    for page in DOCS.glob("*.md"):
        assert f"docs/{page.name}" in links(README)


# --- commands ------------------------------------------------------------------------------------


def modules(text: str) -> set[str]:
    return set(re.findall(r"python3? -m ([\w.]*\w)", text))


def file_of(module: str) -> Path | None:
    """Return the file that `python -m` runs for a module of ours; None for other modules."""
    if not (ROOT / module.partition(".")[0]).is_dir():
        return None
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@every_page
def test_modules_are_commands(page):
    for module in modules(page.read_text()):
        file = file_of(module)
        if file is None:
            assert find_spec(module), module
        else:
            assert file.exists(), module
            assert file.name == "__main__.py" or '__name__ == "__main__"' in file.read_text(), (
                module
            )


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return our commands in a page's code: the module and its options."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "-m" not in words[:-1] or not words[0].startswith("python"):
                continue
            at = words.index("-m") + 1
            if file_of(words[at]):
                options = [word.partition("=")[0] for word in words[at + 1 :]]
                found.append((words[at], [o for o in options if re.match(r"--?[a-z]", o)]))
    return found


OURS = sorted({m for page in PAGES for m in modules(page.read_text()) if file_of(m)})


@cache
def options_of(module: str) -> frozenset[str]:
    """Return the options that `python -m module --help` lists."""
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.setattr(signal, "signal", lambda *_: None)  # keep pytest's handlers
        patch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    heads = re.findall(r"^  (-.*?)(?:  |$)", printed.getvalue(), re.M)
    return frozenset(option for head in heads for option in re.findall(r"(?<!\w)--?[\w-]+", head))


def test_commands_are_found():
    assert {*DOCUMENTED, "kernels.compile", "examples.evaluate", "benchmarks.render"} <= set(OURS)
    (_, export), *_ = (c for c in commands(DOCS / "networks.md") if c[0] == "export")
    assert export == ["-o", "--precision"]
    resumed = [options for _, options in commands(DOCS / "training.md") if "--resume" in options]
    assert resumed[0] == ["--avatar", "-o", "--resume"]
    assert {"-o", "--output", "--frames", "--help"} <= options_of("engine.render")
    assert "--of" not in options_of("engine.render")


@every_page
def test_options_are_accepted(page):
    for module, options in commands(page):
        assert set(options) <= options_of(module), module


@every_page
def test_options_in_the_text_are_some_commands(page):
    known = frozenset().union(*map(options_of, OURS))
    for span in code_spans(page):
        for option in re.findall(r"(?:^| )(--[\w-]+)", span):
            assert option in known, span


@pytest.mark.parametrize("module", DOCUMENTED)
def test_no_option_is_left_out(module):
    page = DOCS / DOCUMENTED[module]
    named = {option for span in code_spans(page) for option in re.findall(r"--[\w-]+", span)}
    assert {o for o in options_of(module) if o.startswith("--")} - {"--help"} <= named


@every_page
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    code = "\n".join([*blocks(page, "bash"), *code_spans(page)])
    assert set(re.findall(r"^make ([\w-]+)", code, re.M)) <= set(targets)


# --- the API -------------------------------------------------------------------------------------


def test_the_api_is_that_of_the_docstrings():
    """If it is not: make docs."""
    assert (DOCS / "api.md").read_text() == runpy.run_path(str(DOCS / "api.py"))["page"]()


def test_the_api_has_what_can_be_imported():
    text = (DOCS / "api.md").read_text()
    documented = set(re.findall(r"^### ([\w.]+)$", text, re.M))
    for module in (engine, engine.live, kernels):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert f"{module.__name__}.{name}" in documented
    for name in documented:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


# --- figures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads((RESULTS / "cpu-2-cores" / "render.json").read_text())


def figures(measured: dict, key: str) -> dict[str, Any]:
    """Return a figure of each provider that has it."""
    return {row["provider"]: row[key] for row in measured["measured"] if key in row}


@pytest.fixture(scope="module")
def how_fast() -> str:
    return README.read_text().partition("## How fast\n")[2].partition("\n## ")[0]


def same(written: str, value: float) -> bool:
    """Return whether a figure is the value, rounded to the figure's decimals."""
    return written == f"{value:.{len(written.partition('.')[2])}f}"


def test_the_table_is_the_results(how_fast, measured):
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in how_fast.splitlines()
        if line.startswith("|")
    ]
    relative = "relative to the "
    assert head[1] == "frames a second" and all(cell.startswith(relative) for cell in head[2:])
    rates = figures(measured, "frames a second")
    assert [row[0] for row in rows] == list(rates)
    for name, rate, *ratios in rows:
        assert same(rate, rates[name]["median"]), name
        for column, written in zip(head[2:], ratios, strict=True):
            other = column.removeprefix(relative)
            value = 1 if other == name else measured["ratios"].get(f"{name} / {other}")
            assert (written == "") if value is None else same(written, value), (name, other)


def test_the_conditions_are_the_results(how_fast, measured):
    said = " ".join(how_fast.split())
    width, height = figures(measured, "frame size")["speech to mp4"]
    rounds = len(figures(measured, "frames a second, all rounds")["speech to mp4"])
    runtime = measured["machine"]["onnxruntime"].rpartition(".")[0]
    for words in (
        f"{['No', 'One', 'Two'][measured['machine']['cores']]} cores of an {measured['machine']['cpu']}",
        f"ONNX Runtime {runtime} in {measured['runtime'].rpartition('torch.')[2]}",
        f"{width} x {height}, batches of {figures(measured, 'batch')['speech to mp4']},",
        f"medians of {['', '', '', 'three', 'four', 'five'][rounds]} rounds",
    ):
        assert words in said
    memory = {f"{s} s of speech": mb for mb, s in re.findall(r"(\d+) MB for (\d+) s", said)}
    assert memory.keys() == measured["peak memory, MB"].keys()
    assert all(same(memory[name], value) for name, value in measured["peak memory, MB"].items())


def test_the_shares_are_the_results(measured):
    (shares,) = figures(measured, "share of the stages").values()
    said = " ".join(prose(DOCS / "benchmarks.md").split())
    faces = shares["face_input"] + shares["composite"]
    audio = shares["log_mel"] + shares["audio encoder"]
    assert (
        f"the generator took {shares['generator']:.0%} of a render, `face_input` and `composite` "
        f"{faces:.0%}, the audio {audio:.0%}."
    ) in said
    (command,) = (
        line
        for b in blocks(DOCS / "benchmarks.md", "bash")
        for line in b.splitlines()
        if "-o " in line
    )
    assert command == measured["command"]


def test_the_live_figures_are_the_results():
    """Each figure of the page's section, as the results round."""
    results = json.loads((RESULTS / "cpu-2-cores" / "live.json").read_text())
    section = (DOCS / "live.md").read_text().partition("## How fast\n")[2].partition("\n## ")[0]
    said = " ".join(section.split())
    rows = {
        (row["stage"], row["provider"], row.get("sessions")): row for row in results["measured"]
    }
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if "ms |" in line]
    assert len(table) == 3
    for name, rate, late, first, most in table:
        row = rows["in real time", f"viseme, {name}", 1]
        assert same(rate, row["frames a second"]) and late == str(row["late"])
        assert first == f"after {1000 * row['first frame, s']['p50']:.0f} ms"
        ms = 1000 * row["lateness, s"]["p99"]
        assert most.strip(" |") == f"{abs(ms):.0f} ms {'late' if ms > 0 else 'early'}"
        assert row["old frames after an interruption"] == 0
    many = rows["scheduler", "viseme, no networks", 200]
    hour = rows["an hour", "viseme, no networks", 1]
    memory = hour["resident memory, bytes"]
    idle = rows["idle", "viseme, OpenVINO bf16", None]
    assert many["skipped"] == 0 and results["machine"]["cores"] == 2
    for words in (
        f"takes {idle['idle over speaking']:.1%} of the CPU time",
        f"take {many['scheduler, cores']:.2f} cores of the scheduler's thread, "
        f"{1e6 * many['scheduler, CPU s a frame']:.0f} us a frame, "
        f"in batches of {many['batch size']['mean']:.0f}, "
        f"and 99% of the frames come at least {-1000 * many['lateness, s']['p99'] // 1:.0f} ms early",
        f"drifts by {hour['drift, samples']} samples, and memory changes by "
        f"{abs(memory['at the end'] - memory['after a minute']) / 1e6:.1f} MB",
    ):
        assert words in said, words


def test_no_gpu_figure_is_claimed_while_there_is_none():
    files = [json.loads(path.read_text()) for path in RESULTS.rglob("*.json")]
    measured = any(results["machine"]["gpu"] for results in files)
    for page in (README, DOCS / "benchmarks.md"):
        assert ("There are no GPU figures yet" in page.read_text()) != measured


# --- code ----------------------------------------------------------------------------------------


class Stub:
    """A fake network that returns a constant."""

    dtype, description, reason = torch.float32, "stub", "a test"
    capturable, stream = True, None
    graph_bytes = 0

    def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.fill_(0.5)


def run_python(page: Path, **names) -> dict:
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_pages_with_python():
    assert {page.name for page in PAGES if blocks(page, "python")} == WITH_PYTHON


@pytest.mark.parametrize("page", [README, DOCS / "rendering.md"], ids=lambda page: page.name)
def test_the_pipelines_python(page, monkeypatch, speech):
    """With a second of the speech and fake networks."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Stub())
    second = SpeechScan("speech.wav", None, 16000, speech[:16000].numpy(), None)
    monkeypatch.setattr("engine.media.speech.scan_speech", lambda path, **_: second)
    names = run_python(page)
    assert names["frames"].shape == (8, 1280, 720, 3) and names["frames"].dtype == torch.uint8
    assert names["pipeline"].frame_count(speech[:16000]) == 24


def test_the_live_python(monkeypatch, speech, capsys):
    """In real time, with half a second of speech and fake networks."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Stub())
    names = run_python(DOCS / "live.md", pcm=speech[16000:28000])
    assert names["piece"].end and names["piece"].sound.shape == (1, 960)
    assert capsys.readouterr().out.count("(1, 960)") >= 12


def test_the_kernels_python(person, speech):
    names = run_python(
        DOCS / "kernels.md",
        pcm=speech[:16000],
        features=torch.rand(5, 512),
        feature_rings=torch.rand(2, 32, 512),
        numbers=torch.tensor([30, 31, 0]),
        sources=torch.tensor([0, 0, 1]),
        frames=person[:2],
        boxes=torch.tensor([[244, 474, 486, 716], [245, 474, 487, 716]]),
        index=torch.tensor([0, 1, 1]),
        generated=torch.rand(3, 3, 320, 320),
    )
    shapes = {name: tuple(names[name].shape) for name in ("mel", "windows", "audio", "inputs")}
    assert shapes == {
        "mel": (81, 80), "windows": (22, 1, 80, 16), "audio": (7, 32, 16, 16),
        "inputs": (3, 6, 320, 320),
    }  # fmt: skip
    assert names["live_audio"].shape == (3, 32, 16, 16)
    assert names["finished"].shape == (3, 1920, 720) and names["rgba"].shape == (2, 640, 360, 4)


def test_the_native_avatar_is_the_demos():
    trained, avatar, boxes = map(json.loads, blocks(DOCS / "avatars.md", "json"))
    assert trained.keys() == avatar.keys()
    assert avatar == json.loads((DEMO / "avatar.json").read_text())
    assert all(box in json.loads((DEMO / "boxes.json").read_text()) for box in boxes)


def test_the_documented_error_is_raised():
    with pytest.raises(InputError) as caught:
        frame_numbers(250, start=250)
    assert blocks(DOCS / "rendering.md", "text") == [f"error: {caught.value}\n"]
