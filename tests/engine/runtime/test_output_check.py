"""Networks that return NaN, infinity or a constant stop a render, on a CPU and with a GPU's
buffers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import Avatar, InputError, Pipeline
from engine.render import main
from engine.runtime import open_network, output_check
from engine.runtime.output_check import OutputCheck, write_ranges
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from tests.conftest import DEMO, ROOT

CPU = torch.device("cpu")
CASES = ROOT / "tests" / "cases"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """1 s: 24 frames."""
    return speech[16000:32000]


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(5, 512), (3, 3, 320, 320), (1, 3, 320, 320)])
def test_ranges_equal_pytorchs(shape, dtype):
    torch.manual_seed(1)
    output = torch.randn(shape).to(dtype)
    flat = output.flatten(1)
    flat[0, 7], flat[-1, 9], flat[len(flat) // 2, -1] = INF, -INF, NAN
    rows = shape[:1] if len(shape) == 2 else shape[:2]
    ranges = torch.zeros(shape[0], 2, *rows[1:], dtype=dtype)
    write_ranges(output, ranges)
    low, high = ranges.unbind(1)
    for made, wanted in zip(
        (low, high), torch.aminmax(output.reshape(*rows, -1), dim=-1), strict=True
    ):
        assert made.shape == rows and np.array_equal(made, wanted, equal_nan=True)
    assert low.isnan().sum() == high.isnan().sum() == 1 and low.isinf().any() + high.isinf().any()


# --- one check -----------------------------------------------------------------------------------


def network(dtype=torch.float32) -> SimpleNamespace:
    return SimpleNamespace(dtype=dtype, description=f"a runtime, cpu, {dtype}")


def check(signature=GENERATOR, dtype=torch.float32, rows=10, **options) -> OutputCheck:
    return OutputCheck(signature, network(dtype), Path("N.onnx"), rows, CPU, **options)


def frames(count: int, value: float | None = None) -> torch.Tensor:
    """Return (count, 3, 320, 320), random or with one value."""
    if value is not None:
        return torch.full((count, 3, 320, 320), value)
    return torch.rand(count, 3, 320, 320)


def broken(count: int, frame: int, value: float) -> torch.Tensor:
    made = frames(count)
    made[frame, 1, 200, 100] = value
    return made


@pytest.mark.parametrize(("value", "word"), [(NAN, "NaN"), (INF, "infinity"), (-INF, "infinity")])
def test_the_frame_is_named(value, word):
    watched = check()
    watched.measure(frames(4))
    with pytest.raises(InputError) as caught:
        watched.measure(broken(4, 2, value))
    assert str(caught.value) == (
        f"N.onnx: the generator returns {word} in video frame 6 (a runtime, cpu, torch.float32); "
        "its weights are damaged or its training diverged; use another file"
    )


def test_the_feature_is_named_and_float32_is_advised():
    watched = check(AUDIO_ENCODER, torch.float16, rows=40)
    watched.measure(torch.randn(32, 512).half())
    features = torch.randn(8, 512).half()
    features[3, 100] = 1e6
    with pytest.raises(InputError) as caught:
        watched.measure(features)
    said = str(caught.value)
    assert said.startswith("N.onnx: the audio encoder returns infinity in feature 35 (")
    assert "65504" in said and "--precision fp32" in said and "\n" not in said


def test_a_constant_is_an_error_in_float16_only():
    constant, colors = frames(4, 0.5), frames(4, 0.5)
    colors[:, 1] = 0.25  # one value per channel, as from a last bias
    for made in (constant, colors):
        watched = check(dtype=torch.float16, rows=8)
        watched.measure(frames(4).half())
        with pytest.raises(
            InputError, match="returns one constant for every pixel of video f"
        ) as e:
            watched.measure(made.half())
        assert "frames 4 to 7 (" in str(e.value) and "65504" in str(e.value)
        check().measure(made)
    varying = torch.cat([frames(1, 0.5), frames(1, 0.25)]).half()
    check(dtype=torch.float16).measure(varying)
    # silence gives equal features, and a unit may be dead
    check(AUDIO_ENCODER, torch.float16).measure(torch.zeros(8, 512).half())


class Event:
    """A fake CUDA event of copies that have not arrived."""

    def __init__(self):
        self.here, self.waited = False, False

    def query(self):
        return self.here

    def synchronize(self):
        self.here = self.waited = True


@pytest.fixture
def events(monkeypatch) -> list[Event]:
    made = []

    def arrival(_):
        made.append(Event())
        return made[-1]

    monkeypatch.setattr(output_check, "_arrival", arrival)
    return made


def test_no_wait_before_the_end(events):
    watched = check(rows=12)
    watched.measure(frames(4))
    watched.measure(broken(4, 1, NAN))
    events[0].here = True
    watched.measure(frames(4))  # the second batch has not arrived
    assert not any(event.waited for event in events)
    events[1].here = True
    with pytest.raises(InputError, match="NaN in video frame 5 "):
        watched.look()
    assert not any(event.waited for event in events)


def test_the_end_waits(events):
    watched = check(rows=8)
    watched.measure(frames(4))
    watched.measure(broken(4, 3, NAN))
    with pytest.raises(InputError, match="NaN in video frame 7 "):
        watched.look(wait=True)
    assert all(event.waited for event in events)


def test_without_an_end_only_rows_that_are_overwritten_are_waited_for(events, monkeypatch):
    """The last three batches are always on their way; what failed among them is found."""
    monkeypatch.setattr(output_check, "ENDLESS_ROWS", 10)
    watched = check(rows=None)
    for number in range(12):  # the rows are used again after each fifth batch
        watched.measure(frames(2))
        if number >= 3:
            events[number - 3].here = True
    assert not any(event.waited for event in events)
    watched = check(rows=None)
    del events[:]
    watched.measure(broken(2, 1, INF))  # never arrives by itself
    for _ in range(4):
        watched.measure(frames(2))
    assert not any(event.waited for event in events)
    with pytest.raises(InputError, match="returns infinity in a video frame"):
        watched.measure(frames(2))  # in its rows
    assert [event.waited for event in events] == [True] + 4 * [False]


def test_the_error_names_the_first_network(events):
    """Its NaN makes the next network return NaN, and both arrive at the same time."""
    encoder = check(AUDIO_ENCODER, rows=8)
    generator = check(rows=8, before=encoder)
    encoder.measure(torch.full((8, 512), NAN))
    generator.measure(frames(8, NAN))
    events[0].here = events[1].here = True
    with pytest.raises(InputError, match="the audio encoder returns NaN in feature 0 "):
        generator.look()


# --- renders -------------------------------------------------------------------------------------


class Network:
    """A fake network whose outputs depend on its inputs, and are NaN or infinity in some rows."""

    capturable, stream, graph_bytes = True, None, 0
    description = reason = "stand-in"

    def __init__(self, kind: str, dtype: torch.dtype):
        self.kind, self.dtype, self.rows, self.bad = kind, dtype, 0, {}

    def __call__(self, *inputs, out):
        if self.kind == "audio_encoder":
            out.copy_(inputs[0].flatten(1)[:, :512])
        else:
            picture, audio = inputs
            mean = audio.flatten(1).mean(1)[:, None, None, None]
            out.copy_((picture[:, :3].flip(2) * 0.8 + mean / 10).clamp(0, 1))
        for row, value in self.bad.items():
            if self.rows <= row < self.rows + len(out):
                out.flatten(1)[row - self.rows, 5] = value
        self.rows += len(out)
        return out


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def avatar(request, native) -> Avatar:
    avatar = Avatar.load(native)
    if request.param == "as on a GPU":
        avatar._frames = avatar.batch(list(range(len(avatar))))[0]
    return avatar


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def pipeline(request, avatar, monkeypatch) -> Pipeline:
    """Batches of 8; the encoder's are 32, or 24 and less on a CPU."""
    stand_in = lambda signature, *_, **__: Network(signature.kind, request.param)  # noqa: E731
    monkeypatch.setattr("engine.pipeline.open_network", stand_in)
    return Pipeline(avatar, batch_size=8)


def taken(pipeline: Pipeline, speech: torch.Tensor) -> tuple[list[torch.Tensor], str]:
    """Return the number of batches, and the error that ended them."""
    pipeline.generator.rows = pipeline.audio_encoder.rows = 0
    batches: list[torch.Tensor] = []
    try:
        for made in pipeline.render(speech):
            batches.append(made.clone())
    except InputError as error:
        return batches, str(error)
    return batches, ""


@pytest.mark.parametrize(("frame", "came"), [(0, 0), (7, 0), (8, 1), (23, 2)])
def test_a_generator_that_fails_in_the_middle(pipeline, short, frame, came):
    good, error = taken(pipeline, short)
    assert len(good) == 3 and error == ""
    pipeline.generator.bad = {frame: NAN}
    batches, error = taken(pipeline, short)
    assert error.startswith(f"{pipeline.avatar.generator}: the generator returns NaN in video ")
    assert f" frame {frame} (stand-in)" in error
    assert len(batches) == came  # the batches before it are unchanged
    assert all(torch.equal(one, two) for one, two in zip(batches, good, strict=False))
    pipeline.generator.bad = {}
    again, error = taken(pipeline, short)
    assert error == "" and torch.equal(torch.cat(again), torch.cat(good))


def test_an_audio_encoder_that_fails_in_the_middle(pipeline, short):
    pipeline.audio_encoder.bad = {9: INF}
    pipeline.generator.bad = {0: NAN}
    batches, error = taken(pipeline, short)
    assert error.startswith(f"{pipeline.avatar.audio_encoder}: the audio encoder returns infinity ")
    assert " feature 9 (stand-in)" in error and batches == []


def test_padding_rows_do_not_count(pipeline, short):
    """24 frames have 22 features. With a GPU's buffers the encoder's batch is padded to 32, and 12
    frames are a batch of 8 and one of 4 that is padded to 8."""
    if not pipeline.avatar.frames_on_device:
        pytest.skip("batches are padded on a GPU only")
    pipeline.audio_encoder.bad = dict.fromkeys(range(22, 32), NAN)
    assert taken(pipeline, short)[1] == ""
    few = short[:9000]
    good, error = taken(pipeline, few)
    total = sum(map(len, good))
    assert error == "" and total % 8 not in (0, 4)  # the last batch is padded
    pipeline.generator.bad = dict.fromkeys(range(total, total + 8), NAN)
    assert taken(pipeline, few)[1] == ""
    pipeline.generator.bad = {total - 1: NAN}
    assert f"video frame {total - 1} " in taken(pipeline, few)[1]


def test_nan_that_arrives_late(pipeline, short, events):
    """Copies that do not arrive during the render are waited for at its end only."""
    if not pipeline.avatar.frames_on_device:
        pytest.skip("a CPU's outputs are there at once")
    batches = pipeline.render(short)
    pipeline.generator.bad = {3: NAN}
    assert [len(next(batches)) for _ in range(3)] == [8] * 3
    assert events and not any(event.waited for event in events)
    with pytest.raises(InputError, match="NaN in video frame 3 "):
        next(batches)
    pipeline.generator.rows = pipeline.audio_encoder.rows = 0
    pipeline.audio_encoder.bad = {9: INF}  # and the error names the first network
    assert "returns infinity in feature 9 " in taken(pipeline, short)[1]


@pytest.mark.parametrize("name", ["identity", "meter"])
def test_simple_generators_are_accepted(native, speech, name):
    """One returns its input; the other returns a constant for each frame, the loudness."""
    files = {"generator": CASES / f"{name}.onnx", "audio_encoder": CASES / "loudness_encoder.onnx"}
    pipeline = Pipeline(Avatar.load(native, **files))
    for pcm in (speech[16000:22000], torch.zeros(6000)):
        assert sum(map(len, pipeline.render(pcm))) == pipeline.frame_count(pcm)


def test_the_command_names_a_generator_of_nan(native, tmp_path, capsys):
    arguments = ["--avatar", native, "--audio", DEMO / "speech.wav", "-o", tmp_path / "o.mp4"]
    arguments += ["--generator", CASES / "nan.onnx", "--frames", tmp_path / "frames"]
    arguments += ["--device", "cpu", "--no-progress"]
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        f"error: {CASES / 'nan.onnx'}: the generator returns NaN in video frame 0 (ONNX Runtime "
    )
    assert printed.out == "" and list(tmp_path.iterdir()) == []


def test_both_networks_of_the_demo_pass(native, short):
    """They are trained networks in float32."""
    files = {kind: DEMO / f"{kind}.safetensors" for kind in ("generator", "audio_encoder")}
    pipeline = Pipeline(Avatar.load(native, **files), runtime="torch")
    assert sum(map(len, pipeline.render(short[:4000]))) == pipeline.frame_count(short[:4000])
    windows = torch.full((1, 1, 80, 16), -4.0)  # silence
    with torch.inference_mode():
        encoder = open_network(AUDIO_ENCODER, files["audio_encoder"], device=CPU, runtime="torch")
        check(AUDIO_ENCODER).measure(encoder(windows, out=torch.empty(1, 512)))
