"""The benchmark of the server runs, and its clients tell what they saw."""

import json
import sys

import pytest
import torch

pytest.importorskip("grpc")
pytest.importorskip("pydantic")
from benchmarks import serve
from tests.test_benchmark_live import Quick


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A quick run with networks that cost nothing: its results and its table."""
    output = tmp_path_factory.mktemp("results") / "serve.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(sys, "argv", ["serve", "--quick", "-o", str(output)])
        assert serve.main() == 0
    return json.loads(output.read_text()), output.with_suffix(".txt").read_text()


def test_every_part_is_measured(measured):
    results, table = measured
    assert results["command"].startswith("python -m benchmarks.serve --quick -o ")
    found = [(row["stage"], row["clients"]) for row in results["measured"]]
    assert found == [(stage, clients) for stage in serve.STAGES.values() for clients in (1, 2)]
    assert [row["provider"] for row in results["left out"]] == ["GPU"]
    for row in results["measured"]:
        assert (row["batch"], row["frame size"]) == (2, [180, 320])
        assert row["requests"] == 2 * row["clients"]
        assert row["share of Python's rate"] == pytest.approx(
            row["frames a second"] / row["in Python, frames a second"]
        )
        assert 0 < row["request, s"]["p50"] <= row["request, s"]["p99"] <= row["request, s"]["max"]
        # a client's requests come one after another, so all take at least 1.5 of the median
        assert row["frames a second"] <= 2 * row["clients"] / row["request, s"]["p50"] * 2
        assert (row.get("loads", 0) > 0) == (row["stage"] == "while one is loaded")
    for stage in serve.STAGES.values():
        assert any(line.startswith(stage) for line in table.splitlines())


def test_a_server_that_refuses_is_an_error(measured, tmp_path, monkeypatch):
    """The job is left out with the reason."""
    output = tmp_path / "serve.json"
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(serve, "samples_needed", lambda *_: 0)
    monkeypatch.setattr(sys, "argv", ["serve", "--quick", "--parts", "own", "-o", str(output)])
    assert serve.main() == 1
    reasons = [row["reason"] for row in json.loads(output.read_text())["left out"]]
    text = "RuntimeError: RuntimeError: Either raw_audio or audio_features must be provided"
    assert reasons == ["no CUDA GPU", text, text]
