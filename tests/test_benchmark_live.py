"""The benchmark of live sessions runs, and its clients see what there is to see."""

import asyncio
import json
import sys
from concurrent.futures import Future
from fractions import Fraction
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import live, live_clients, live_networks, live_scheduler, report
from benchmarks.live_clients import Arrival, Client
from engine.live import Counts

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Quick:
    """A network whose output depends on its input, and costs nothing."""

    dtype, description, reason = torch.float32, "quick", "a test"
    capturable, stream, assumes_mask = True, None, False
    graph_bytes = 0

    def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 1:  # the audio encoder
            return out.copy_(inputs[0].flatten(1)[:, :512])
        return out.copy_(inputs[0][:, :3])


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A quick run with networks that cost nothing, and shorter pauses: its results and its table."""
    pytest.importorskip("av", reason="PyAV encodes frames")
    output = tmp_path_factory.mktemp("results") / "live.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
        if find_spec("openvino"):
            patch.setattr("engine.runtime.openvino.has_bf16", lambda: False)
        patch.setattr(live_clients, "PAUSE", 0.7)
        patch.setattr(live_clients, "TAIL", 0.4)
        patch.setattr(live_scheduler, "LEAD", 0.2)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(sys, "argv", ["live", "--quick", "-o", str(output)])
        assert live.main() == 0
    return json.loads(output.read_text()), output.with_suffix(".txt").read_text()


def rows(results: dict, stage: str) -> list[dict]:
    return [row for row in results["measured"] if row["stage"] == stage]


def test_every_part_is_measured(measured):
    results, table = measured
    assert results["command"].startswith("python -m benchmarks.live --quick -o ")
    name = f"viseme, {live.FP32}"
    found = [(row["provider"], row["stage"]) for row in results["measured"]]
    assert found == [
        (name, "in real time"), (name, "as taken"), (f"{name}, x264", "in real time"),
        (f"{name}, x264", "as taken"), (name, "idle"), (name, "generator"), (name, "generator"),
        (live.EMPTY, "scheduler"), (live.EMPTY, "an hour"),
    ]  # fmt: skip
    left_out = [(row["provider"], row["reason"]) for row in results["left out"]]
    assert [provider for provider, _ in left_out] == ["GPU", f"viseme, {live.BF16}"]
    assert left_out[1][1] in ("this CPU multiplies no bfloat16", "OpenVINO is not installed")
    for stage in ("in real time", "as taken", "idle", "generator", "scheduler", "an hour"):
        assert any(line.startswith(stage) for line in table.splitlines())


def test_what_sessions_give_in_real_time(measured):
    for row in rows(measured[0], "in real time"):
        assert (row["sessions"], row["batch"], row["frame size"]) == (1, 1, [180, 320])
        assert 0 < row["frames a second"] <= 25 and row["interruptions"] == 1
        assert row["share of the generator's rate"] == pytest.approx(
            row["frames a second"] / row["generator alone, frames a second"]
        )
        assert row["lateness, s"]["p50"] <= row["lateness, s"]["p99"] <= row["lateness, s"]["max"]
        assert row["old frames after an interruption"] <= 2
        assert row["first frame, s"] is None or row["first frame, s"]["p50"] > 0


def test_what_is_the_same_on_every_machine(measured):
    results, _ = measured
    (hour,) = rows(results, "an hour")
    assert hour["stream, s"] >= 20 and hour["samples heard"] > 24000
    assert (
        hour["samples pushed"] == hour["samples heard"] + hour["samples dropped by interruptions"]
    )
    for name in ("drift, samples", "wrong samples", "samples not accounted for"):
        assert hour[name] == 0
    assert min(hour["resident memory, bytes"].values()) > 1e7
    (scheduler,) = rows(results, "scheduler")
    assert scheduler["sessions"] == 2 and scheduler["frames"] > 0
    assert 0 < scheduler["scheduler, CPU s a frame"] * scheduler["frames"] <= scheduler["seconds"]
    assert 1 <= scheduler["batch size"]["mean"] <= scheduler["batch size"]["max"] <= 64
    for row in rows(results, "generator"):  # with itself
        assert row["max difference, levels"] == 0 and row["PSNR, dB"] is None
        assert row["same as one by one"] is True
    for row in rows(results, "as taken"):
        assert row["frames a second"] == pytest.approx(*row["frames a second, all rounds"])


def test_parts_are_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
    output = tmp_path / "live.json"
    monkeypatch.setattr(sys, "argv", ["live", "--quick", "--parts", "hour", "-o", str(output)])
    assert live.main() == 0
    assert [row["stage"] for row in json.loads(output.read_text())["measured"]] == ["an hour"]
    monkeypatch.setattr(sys, "argv", ["live", "--parts", "day"])
    with pytest.raises(SystemExit, match="2"):
        live.main()
    assert "invalid choice: 'day'" in capsys.readouterr().err


def test_the_jobs_of_live_sessions_on_a_gpu():
    """Only the list of jobs is made here."""
    avatar = SimpleNamespace(device=CUDA, width=720, height=1280)
    lives = live_networks.Lives(avatar, {"tensorrt": {}})
    empty = SimpleNamespace(width=64, height=64)
    made = [job.row for job in live.jobs(live.GPU, live.PARTS, lives, empty)]
    assert {row["provider"] for row in made} == {"viseme, tensorrt", live.EMPTY}
    assert "generator" not in {row["stage"] for row in made}
    for stage in ("in real time", "as taken"):
        counts = [row["sessions"] for row in made if row["stage"] == stage]
        assert counts == [1, 8, 32, 64, 128, 200]
    assert [r["sessions"] for r in made if r["stage"] == "scheduler"] == [1, 10, 50, 100, 200, 400]


# --- clients -------------------------------------------------------------------------------------


def client(*arrivals: Arrival, **seen) -> Client:
    session = SimpleNamespace(fps=Fraction(25), counts=Counts(late=3, skipped=1))
    return Client(session, 10.0, arrivals=list(arrivals), **seen)


def test_what_a_client_saw():
    """Frame i is due at 10 + i / 25 s."""
    seen = client(
        Arrival(0, 9.9, 9.9, True, False),
        Arrival(1, 10.0, 10.3, True, True),  # taken early, encoded late
        Arrival(2, 10.31, 10.31, False, True),
        Arrival(3, 10.32, 10.32, True, True),
        Arrival(4, 10.5, 10.5, True, False),
        pushed=[9.0, 10.4],
        needed=[9.45, 10.45],
        interrupted=10.3,
    )
    assert seen.lateness == pytest.approx([-0.1, 0.26, 0.2, 0.34])
    assert seen.first_frames == pytest.approx([0.85])  # nothing came of the second utterance
    assert seen.old_frames == pytest.approx([0.01, 0.02])
    figures = live_clients.figures([seen, client(Arrival(0, 10.04, 10.04, True, False))])
    assert figures["frames a second"] == pytest.approx(25 * 5 / 6)
    assert figures["lateness, s"]["max"] == pytest.approx(0.34)
    assert (figures["late"], figures["skipped"], figures["interruptions"]) == (6, 2, 1)
    assert figures["old frames after an interruption"] == 2
    assert figures["last old frame, s"] == pytest.approx(0.02)


def test_nothing_came():
    figures = live_clients.figures([client()])
    assert figures["lateness, s"] is None and figures["frames a second"] == 0
    assert figures["old frames after an interruption"] is None


def test_a_conversation():
    """Two utterances, 4 s and 1 s, with a pause after each, and 2 s of one that is interrupted."""
    speech = live_clients.speech_for(3, 5)
    events = list(live_clients.conversation(speech))
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    others = [(e.action, e.seconds) for e in events if e.action != "push"]
    assert others == [("flush", 4.0), ("flush", 6.0), ("interrupt", 9.0)]
    pushes = [event for event in events if event.action == "push"]
    begins = [event.seconds for event in pushes if event.begins]
    assert begins == pytest.approx([0.02, 5.02, 7.02])
    pushed = np.concatenate([event.samples for event in pushes])
    assert np.array_equal(pushed, np.concatenate([speech, speech[:32000]]))
    assert {len(event.samples) for event in pushes} == {320}


def test_when_the_first_frame_could_be_made(monkeypatch):
    """With 7200 samples or, of a shorter utterance, at its end."""
    clock = iter(range(100))
    monkeypatch.setattr(live_clients, "time", SimpleNamespace(monotonic=clock.__next__))
    calls = []
    session = SimpleNamespace(
        push=lambda samples: calls.append(len(samples)), flush=lambda: calls.append("flush")
    )
    seen = Client(session, 0.0)
    for samples, begins in ((4000, True), (3199, False), (1, False), (5, False), (100, True)):
        seen.act(live_clients.Event(0, "push", np.zeros(samples), begins))
    assert (seen.pushed, seen.needed) == ([0, 2], [1])
    seen.act(live_clients.Event(0, "flush", np.zeros(0), False))
    assert seen.needed == [1, 3]
    assert calls == [4000, 3199, 1, 5, 100, "flush"]


def test_a_client_waits_for_its_encoder():
    """No more than four frames are in it; a client that is slow loses pictures elsewhere."""
    waiting: list[Future] = []

    class Encoder:
        def submit(self, rgb: np.ndarray) -> Future:
            assert rgb.shape == (2, 2, 3)
            waiting.append(Future())
            assert sum(not future.done() for future in waiting) <= 4
            return waiting[-1]

    class Session:
        fps = Fraction(25)

        async def __aiter__(self):
            for number in range(9):
                if number >= 4:
                    asyncio.get_running_loop().call_soon(waiting[number - 4].set_result, None)
                yield SimpleNamespace(number=number, frames=torch.zeros(1, 2, 2, 3), speaking=True)
            for future in waiting[-4:]:
                future.set_result(None)

    seen = Client(Session(), 0.0, Encoder())
    asyncio.run(seen.take(SimpleNamespace(end=None)))
    assert [arrival.number for arrival in seen.arrivals] == list(range(9))
    assert all(arrival.ready >= arrival.taken for arrival in seen.arrivals)


class Faulty:
    """A session whose sound is spoilt at one place."""

    def __init__(self, session, spoil):
        self._session, self._spoil = session, spoil
        self.taken = 0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def take(self):
        piece = self._session.take()
        self.taken += 1
        if self.taken == 30:
            piece.sound = self._spoil(piece.sound)
        return piece


@pytest.mark.parametrize(
    ("spoil", "drift"),
    [
        (lambda sound: sound[:, 1:], -1),
        (lambda sound: np.where(sound == sound[0, 7], 0.01, sound), 0),
        (lambda sound: np.concatenate([sound, sound[:, :2]], axis=1), 2),
    ],
)
def test_an_hour_in_which_something_is_wrong(tmp_path, monkeypatch, spoil, drift):
    monkeypatch.setattr("engine.pipeline.open_network", lambda *_, **__: Quick())
    scene = live.providers.make_scene(tmp_path / "scene", live.network_files(), 64, 64, 4)
    make = live_scheduler._Stream
    monkeypatch.setattr(live_scheduler, "_Stream", lambda session: make(Faulty(session, spoil)))
    figures = live_scheduler.measure_hour(scene, 10)
    assert figures["drift, samples"] == drift
    assert figures["wrong samples"] > 0


def test_the_difference_between_precisions(monkeypatch):
    """Every pixel is a level brighter, but for one, which is 20."""

    class Brighter(Quick):
        def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            out.fill_(1 / 255)
            out[:, 0, 0, 0] = 20 / 255
            if len(out) > 1:
                out[-1, 0, 0, 0] += 1 / 255  # in a batch
            return out

    class Dark(Quick):
        def __call__(self, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            return out.zero_()

    generators = {"fp32": Dark(), "bf16": Brighter()}
    monkeypatch.setattr(
        live_networks,
        "Pipeline",
        lambda _, precision: SimpleNamespace(generator=generators[precision]),
    )
    faces = live_networks.Faces(torch.rand(4, 6, 320, 320), torch.rand(4, 32, 16, 16))
    monkeypatch.setattr(live_networks, "faces", lambda *_: faces)
    measure = live_networks.precision
    single = measure(None, live.BF16, 1, live.QUICK)
    assert single["max difference, levels"] == pytest.approx(20) and single["same as one by one"]
    mean = (3 * 320 * 320 - 1 + 400) / (3 * 320 * 320)
    assert single["PSNR, dB"] == pytest.approx(10 * np.log10(255**2 / mean))
    pair = measure(None, live.BF16, 2, live.QUICK)
    assert pair["max difference, levels"] == pytest.approx(21) and not pair["same as one by one"]


def test_a_plot_over_sessions(tmp_path):
    pytest.importorskip("matplotlib")
    some = [
        {"provider": "viseme", "stage": "in real time", "sessions": n, "late": {"p99": n - 3}}
        for n in (1, 2, 4)
    ]
    results = {
        "machine": {"gpu": None, "cpu": "Some CPU"},
        "measured": [*some, {"provider": "viseme", "stage": "idle"}],
    }
    path = tmp_path / "p.png"
    assert report.plot(
        results, "s", "late/p99", lambda _: {}, path, over="sessions", scale="linear"
    )
    assert path.stat().st_size > 10_000
