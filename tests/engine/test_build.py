"""Building TensorRT plans, for GPUs that are not present: from all kinds of files, and the
errors."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import build as build_module
from engine.build import main
from engine.plans import compiler
from engine.plans.compiler import configure, make_profile, parse
from engine.plans.convert import convert
from engine.plans.edition import EDITIONS, choose_edition, logger
from engine.plans.onnx_graph import load_graph
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from tests.engine import onnx_files

SIGNATURES = {"generator": GENERATOR, "audio_encoder": AUDIO_ENCODER}
BATCH = ["--batch", "1", "2", "4"]
TENSORS = {
    "generator": (
        [["input", [-1, 6, 320, 320]], ["audio", [-1, 32, 16, 16]]],
        [["output", [-1, 3, 320, 320]]],
    ),
    "audio_encoder": ([["mel_spectrogram", [-1, 1, 80, 16]]], [["audio_features", [-1, 512]]]),
}


@pytest.fixture(autouse=True)
def cache(export_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(export_cache))


def build(*arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        return error.code


def record_of(plan: Path) -> dict:
    return json.loads(plan.with_suffix(".json").read_text())


def named(kind: str) -> str:
    return kind.replace("_", "-")


# --- builds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["checkpoint", "free", "fixed"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_builds(trt, sources, tmp_path, capsys, kind, precision, form):
    source, plan = sources[kind, precision, form], tmp_path / "made.plan"
    options = ["--precision", precision, "--arch", "120,86,89", *BATCH]
    assert build(named(kind), source, "-o", plan, *options) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{plan}: built, ") and "SM86, SM89, SM120" in out
    assert ("batch of 1 freed" in err) == (form == "fixed") and "TRT" not in err

    record, data = record_of(plan), plan.read_bytes()
    assert record["key"] == {
        "network": kind,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "edition": "tensorrt_rtx",
        "version": trt.__version__,
        "architectures": [86, 89, 120],
        "precision": precision,
        "batch": [1, 2, 4],
        "format": 4,
    }
    assert record["source"] == source.name
    if form == "free":
        assert record["onnx_sha256"] == record["key"]["source_sha256"]
    inputs, outputs = ([[name, precision, shape] for name, shape in side] for side in TENSORS[kind])
    assert (record["inputs"], record["outputs"]) == (inputs, outputs)
    assert record["plan_bytes"] == len(data) > source.stat().st_size / 2.1
    assert record["plan_sha256"] == hashlib.sha256(data).hexdigest()
    if kind == "generator":  # 64 MB a frame of the largest batch, 128 in float32
        megabytes = 4 * {"fp16": 64, "fp32": 128}[precision]
        assert record["scratch_bytes"] == pytest.approx(megabytes * 1e6, rel=0.2)
    assert record["build_seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"made.plan", "made.json"}


def test_small_batches_have_a_profile_of_their_own(trt, halves, tmp_path):
    """TensorRT says how much memory each one needs. The record has the most."""
    plan, log = tmp_path / "made.plan", logger(EDITIONS["tensorrt_rtx"])
    options = ["-o", plan, "--arch", "89", "--batch", 1, 12, 12]
    assert build("generator", halves["generator"], *options) == 0
    assert sum("Total Activation Memory" in text for _, text in log.lines) == 2
    assert record_of(plan)["scratch_bytes"] == pytest.approx(12 * 64e6, rel=0.1)


@pytest.mark.parametrize("architecture", [86, 89, 120])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_one_architecture(trt, halves, tmp_path, kind, architecture):
    plan = tmp_path / "made.plan"
    assert build(named(kind), halves[kind], "-o", plan, "--arch", architecture, *BATCH) == 0
    assert record_of(plan)["key"]["architectures"] == [architecture]


@pytest.mark.parametrize("form", ["free", "fixed"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_the_parsed_network_and_profile(trt, sources, kind, precision, form):
    """The network and the profile are read from TensorRT's objects."""
    graph = load_graph(SIGNATURES[kind], sources[kind, precision, form])
    convert(graph, precision)
    parsed = parse(EDITIONS["tensorrt_rtx"], graph)
    network = parsed.network
    dtype = {"fp16": trt.DataType.HALF, "fp32": trt.DataType.FLOAT}[precision]
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert all(tensor.dtype == dtype for tensor in [*inputs, *outputs])
    for side, tensors in zip(TENSORS[kind], (inputs, outputs), strict=True):
        assert [[t.name, list(t.shape)] for t in tensors] == side
    profile = make_profile(parsed, [1, 3, 5])
    for tensor in inputs:
        shapes = [(size, *tuple(tensor.shape)[1:]) for size in (1, 3, 5)]
        assert [tuple(shape) for shape in profile.get_shape(tensor.name)] == shapes
    convolutions = [line for line in parsed.layers() if "CONVOLUTION" in line]
    assert len(convolutions) == {"generator": 93, "audio_encoder": 13}[kind]
    assert all(line.count(f"{precision}[") >= 2 for line in convolutions)


def test_the_architectures_reach_tensorrt(trt, halves):
    edition, architectures = choose_edition(None, [120, 86], None)
    assert edition is EDITIONS["tensorrt_rtx"] and architectures == [86, 120]
    parsed = parse(edition, load_graph(AUDIO_ENCODER, halves["audio_encoder"]))
    config = configure(parsed, architectures, "fp32")
    found = [config.get_compute_capability(i) for i in range(config.num_compute_capabilities)]
    assert found == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]
    assert not config.get_flag(trt.BuilderFlag.TF32)  # float32 is float32
    assert config.get_flag(
        trt.BuilderFlag.REQUIRE_USER_ALLOCATION
    )  # CUDA graphs can capture its calls


def test_timings_are_kept(tmp_path, monkeypatch):
    """The timing cache is saved and loaded, with a fake configuration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engine.plans.edition.gpu_architecture", lambda: 90)
    monkeypatch.setattr("engine.plans.edition.TensorRTEdition.version", lambda self: "11.4.0")

    class Config:
        """A fake builder's configuration, whose timing cache is its bytes."""

        def create_timing_cache(self, data):
            return None if data == b"spoilt" else SimpleNamespace(serialize=lambda: data + b"more ")

        def set_timing_cache(self, cache, ignore_mismatch):
            self.cache = cache

        def get_timing_cache(self):
            return self.cache

    for expected in (b"more ", b"more more "):
        save = EDITIONS["tensorrt"].use_timing_cache(Config())
        save()
        (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
        assert kept.name == "timing-11.4.0-SM90.cache" and kept.read_bytes() == expected
    kept.write_bytes(b"spoilt")
    EDITIONS["tensorrt"].use_timing_cache(Config())()
    assert kept.read_bytes() == b"more "


def test_other_names_and_another_precision(trt, older, tmp_path, capsys):
    shutil.copy(older, tmp_path / "older.onnx")
    assert build("generator", tmp_path / "older.onnx", "--arch", 89, *BATCH) == 0
    notice = capsys.readouterr().err
    assert "its face as input, its sound as audio, its mouth as output" in notice
    assert "batch of 1 freed and fp32 converted to fp16 (largest difference 0.000" in notice
    record = record_of(tmp_path / "older.plan")
    assert [name for name, *_ in record["inputs"]] == ["face", "sound"]
    assert {kind for _, kind, _ in record["inputs"] + record["outputs"]} == {"fp16"}
    assert record["onnx_sha256"] != record["key"]["source_sha256"]


def test_an_avatar(trt, own, halves, tmp_path, capsys):
    root = own.native()
    for kind, path in halves.items():
        shutil.copy(path, root / f"{kind}.onnx")
    options = ["--avatar", root, "--arch", "86,89", *BATCH]
    assert build(*options) == 0
    assert capsys.readouterr().out.count(": built, ") == 2
    made = [record_of(root / f"{kind}.plan")["key"] for kind in SIGNATURES]
    assert [m["network"] for m in made] == ["generator", "audio_encoder"]
    assert [m["batch"] for m in made] == [[1, 2, 4], [1, 32, 32]]  # frames; windows
    # if avatar.json names plans, they are built from the files in their records
    avatar = json.loads((root / "avatar.json").read_text())
    avatar |= {"generator": "generator.plan", "audio_encoder": "audio_encoder.plan"}
    (root / "avatar.json").write_text(json.dumps(avatar))
    assert build(*options) == 0
    assert capsys.readouterr().out.count(": up to date, ") == 2


def test_inspect(trt, halves, tmp_path, capsys):
    plan = tmp_path / "made.plan"
    options = ["audio-encoder", halves["audio_encoder"], "-o", plan, "--arch", 121, *BATCH]
    for state in ("built", "up to date"):
        assert build(*options, "--inspect") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{plan}: {len(lines) - 3} layers as parsed"
        assert sum("CONVOLUTION" in line for line in lines) == 13
        assert lines[-2].startswith(f"{plan}: the layers as built can only be read on SM121; ")
        assert lines[-1].startswith(f"{plan}: {state}, ")


def test_verbose(trt, halves, tmp_path, capsys):
    options = ["audio-encoder", halves["audio_encoder"], "-o", tmp_path / "a.plan", "--arch", 86]
    assert build(*options, *BATCH) == 0
    assert "tensorrt_rtx: " not in capsys.readouterr().err
    assert build(*options, *BATCH, "--force", "--verbose") == 0
    assert "tensorrt_rtx: Total Activation Memory" in capsys.readouterr().err


# --- repeated builds -----------------------------------------------------------------------------


@pytest.fixture
def built(trt, halves, tmp_path, capsys):
    """An audio encoder's file and its plan."""
    source = tmp_path / "encoder.onnx"
    shutil.copy(halves["audio_encoder"], source)
    assert again(source) == 0
    capsys.readouterr()
    return source, tmp_path / "encoder.plan"


def again(source: Path, *options) -> int:
    return build("audio-encoder", source, "--arch", "86,89", *(options or BATCH))


def test_a_second_build_keeps_the_plan(built, capsys, monkeypatch):
    source, plan = built
    before = plan.read_bytes(), plan.with_suffix(".json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "compile_plan", None)
        assert again(source) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{plan}: up to date, ") and err == ""
    assert (plan.read_bytes(), plan.with_suffix(".json").read_bytes()) == before
    assert again(source, "--force", *BATCH) == 0
    assert ": built, " in capsys.readouterr().out


def cut(source: Path, plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "change",
    [
        lambda source, plan: onnx_files.changed_weight(source),
        lambda source, plan: ["--batch", "1", "2", "3"],
        lambda source, plan: [*BATCH, "--precision", "fp32"],
        lambda source, plan: [*BATCH, "--arch", "86"],
        cut,
        lambda source, plan: plan.unlink(),
        lambda source, plan: plan.with_suffix(".json").unlink(),
    ],
    ids=["network", "profile", "precision", "architectures", "damage", "no plan", "no record"],
)
def test_a_change_builds_again(built, capsys, change):
    source, plan = built
    options = change(source, plan) or BATCH
    for said in (": built, ", ": up to date, "):
        assert again(source, *options) == 0
        assert said in capsys.readouterr().out


def test_another_version_builds_again(built, capsys, monkeypatch, trt):
    source, plan = built
    monkeypatch.setattr(trt, "__version__", "1.8.0.1")
    assert again(source) == 0
    assert ": built, " in capsys.readouterr().out
    assert record_of(plan)["key"]["version"] == "1.8.0.1"


def test_weights_beside_the_file_count(trt, halves, tmp_path, capsys):
    source = onnx_files.weights_beside(halves["audio_encoder"], tmp_path / "encoder.onnx")
    weights = tmp_path / "encoder.onnx.data"
    for said in (": built, ", ": up to date, "):
        assert again(source) == 0
        assert said in capsys.readouterr().out
    data = bytearray(weights.read_bytes())
    data[1000:1002] = b"\x00\x3c"  # float16 1.0
    weights.write_bytes(data)
    assert again(source) == 0
    assert ": built, " in capsys.readouterr().out
    weights.unlink()
    assert again(source) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {source} cannot be read: ")


# --- errors --------------------------------------------------------------------------------------


def refused(capsys, folder: Path, *arguments) -> str:
    """Return the error line of a failed build, which must leave the folder unchanged."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = build(*arguments)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("building ")]
    assert (code, out) == (2, "") and len(lines) == 1 and lines[0].startswith("error: "), err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return lines[0]


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("no network")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.onnx", None, "a.onnx does not exist"),
        ("a.onnx", Path.mkdir, "a.onnx is not a file"),
        ("a.onnx", text, "a.onnx is not an ONNX file"),
        ("a.onnx", empty, "a.onnx is not an ONNX file"),
        (
            "a.engine",
            text,
            "a.engine ends in '.engine'; expected one of .onnx, .pth, .pt, .safetensors",
        ),
        ("a.onnx", onnx_files.strange, "rejected by tensorrt_rtx: node strange (Lipsync): "),
    ],
)
def test_unusable_files(trt, tmp_path, capsys, name, make, message):
    if make:
        make(tmp_path / name)
    assert message in refused(capsys, tmp_path, "generator", tmp_path / name, "--arch", 86)


def test_an_unusable_checkpoint(trt, tmp_path, capsys):
    text(tmp_path / "a.pth")
    assert build("generator", tmp_path / "a.pth", "--arch", 86) == 2
    notice, line = capsys.readouterr().err.splitlines()
    assert notice.startswith("exporting ") and line.startswith("error: ") and "a.pth" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_another_network(trt, halves, tmp_path, capsys):
    source = tmp_path / "a.onnx"
    shutil.copy(halves["audio_encoder"], source)
    line = refused(capsys, tmp_path, "generator", source, "--arch", 86)
    assert "generator; it has mel_spectrogram ['?', 1, 80, 16] tensor(float16); expected" in line


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (onnx_files.loud, [], "values reach"),
        (onnx_files.baked_flatten, ["--precision", "fp32"], "for a batch of 3; export it with"),
    ],
)
def test_graphs_that_cannot_be_converted(trt, networks, tmp_path, capsys, make, options, message):
    source = make(networks["audio_encoder"], tmp_path / "a.onnx")
    line = refused(capsys, tmp_path, "audio-encoder", source, "--arch", 86, *options)
    assert message in line and str(source) in line


def test_a_fixed_batch_of_4(trt, halves, tmp_path, capsys):
    source = onnx_files.fixed_batch(halves["audio_encoder"], tmp_path / "a.onnx", 4)
    line = refused(capsys, tmp_path, "audio-encoder", source, "--arch", 86)
    assert "has a fixed batch of 4; expected a free batch or 1." in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "90"], "does not build for SM90, only for SM75, SM80, SM86, SM89, SM120"),
        (["--arch", "8.6"], "architectures are '8.6'; expected compute capabilities without dots"),
        (["--arch", "86", "--batch", "1", "4", "2"], "batch is 1 4 2; expected 1 <= MIN <= OPT"),
        (["--arch", "86", "--batch", "0", "1", "2"], "batch is 0 1 2"),
        (["--arch", "86", "--batch", "1", "1", "300"], "MAX <= 256"),
        (
            ["--arch", "86", "-o", "a.engine"],
            "output is a.engine; expected a name that ends in .plan",
        ),
        (["--arch", "86", "-o", "no/a.plan"], "no/a.plan cannot be written: No such file"),
        (["--arch", "86", "-o", "/proc/a.plan"], "/proc/a.plan cannot be written: "),
        (["--arch", "86", "-o", "boxes.plan"], "boxes.json exists and is not the record of a plan"),
        (
            ["--arch", "86", "-o", "avatar.plan"],
            "avatar.json exists and is not the record of a plan",
        ),
        (["--arch", "86", "--avatar", "."], "expected a network and its file, or --avatar DIR"),
    ],
)
def test_bad_options(trt, halves, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("boxes.json").write_text("[[1, 2, 3, 4]]")
    Path("avatar.json").write_text('{"name": "anna"}')
    source = halves["audio_encoder"]
    assert message in refused(capsys, tmp_path, "audio-encoder", source, *options)


def test_nothing_to_build(tmp_path, capsys):
    assert "expected a network and its file" in refused(capsys, tmp_path)
    assert "does not exist" in refused(capsys, tmp_path, "--avatar", "nowhere", "--arch", 86)


def test_no_gpu_and_no_architecture(trt, halves, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_module, "gpu_architecture", lambda: None)
    line = refused(capsys, tmp_path, "audio-encoder", halves["audio_encoder"])
    assert "there is no GPU here" in line and "--arch 86,89,120" in line


@pytest.mark.parametrize(
    ("gpu", "installed", "options", "message"),
    [
        (None, [], [], "TensorRT is not installed; pip install tensorrt-rtx (for GeForce and"),
        (None, [], ["--edition", "tensorrt"], "is not installed; pip install tensorrt-cu13"),
        (90, ["tensorrt_rtx"], [], "does not build for SM90, only for "),
        (90, ["tensorrt_rtx"], [], "tensorrt is not installed; pip install tensorrt-cu13"),
        (90, ["tensorrt"], ["--arch", "86"], "only on such a GPU; the one here is SM90"),
        (
            None,
            ["tensorrt"],
            ["--arch", "90"],
            "tensorrt builds for SM90 only on such a GPU; there",
        ),
    ],
)
def test_no_installed_edition_can_build(
    trt, halves, tmp_path, capsys, monkeypatch, gpu, installed, options, message
):
    monkeypatch.setattr("engine.build.gpu_architecture", lambda: gpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in installed or None)
    line = refused(capsys, tmp_path, "audio-encoder", halves["audio_encoder"], *options)
    assert message in line


@pytest.mark.parametrize(
    ("name", "architectures", "gpu", "edition"),
    [
        (None, None, 90, "tensorrt"),
        (None, None, 80, "tensorrt"),  # both can; it is a data-centre GPU
        (None, None, 89, "tensorrt_rtx"),
        ("tensorrt", None, 89, "tensorrt"),
        ("tensorrt_rtx", None, 80, "tensorrt_rtx"),
        (None, [80], None, "tensorrt_rtx"),
        (None, [80, 89], 80, "tensorrt_rtx"),
    ],
)
def test_the_edition_is_chosen(trt, monkeypatch, name, architectures, gpu, edition):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    chosen, wanted = choose_edition(name, architectures, gpu)
    assert chosen.name == edition and wanted == (architectures or [gpu])


def test_a_library_that_does_not_load(trt, halves, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libtensorrt_rtx.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    line = refused(capsys, tmp_path, "audio-encoder", halves["audio_encoder"], "--arch", 86)
    assert line == "error: tensorrt_rtx cannot be loaded: libtensorrt_rtx.so.1: no such file"


def test_tensorrt_fails_to_build(trt, halves, tmp_path, capsys, monkeypatch):
    """Without a GPU, TensorRT cannot build for "the GPU here"; --arch avoids this."""
    target = {86: trt.ComputeCapability.CURRENT}
    monkeypatch.setattr("engine.plans.edition._capabilities", lambda module: target)
    source = halves["audio_encoder"]
    options = ["--arch", 86, "-o", tmp_path / "a.plan"]
    if build_module.gpu_architecture() is not None:
        pytest.skip("there is a GPU to build for")
    line = refused(capsys, tmp_path, "audio-encoder", source, *options)
    assert "cannot be built by tensorrt_rtx: IBuilder::buildSerializedNetwork: Error Code" in line


def test_a_full_disk(trt, built, capsys):
    """The disk is full in the middle of the file. The existing plan is unchanged."""
    source, plan = built
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        line = refused(capsys, plan.parent, "audio-encoder", source, "--arch", 120, *BATCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line == f"error: {plan} cannot be written: File too large"


def test_ctrl_c_while_tensorrt_builds(trt, halves, tmp_path, capsys, monkeypatch):
    real, waits = compiler._monitor, threading.Event()

    def waiting(*arguments, **options):
        waits.set()
        return wait(*arguments, **options)

    def interrupting(trt, bar, stop):
        def show(text):
            if not stop.is_set():
                assert waits.wait(60)
                os.kill(os.getpid(), signal.SIGINT)
                assert stop.wait(60)

        bar.set_description_str = show
        return real(trt, bar, stop)

    monkeypatch.setattr(compiler, "wait", waiting)
    monkeypatch.setattr(compiler, "_monitor", interrupting)
    options = ["--arch", 86, "-o", tmp_path / "a.plan"]
    assert build("audio-encoder", halves["audio_encoder"], *options) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[1:] == [
        "interrupted: the unfinished plan was not written"
    ]
    assert "BuildCanceled" in logger(EDITIONS["tensorrt_rtx"]).error()
    assert list(tmp_path.iterdir()) == []


def test_the_command(trt, halves, tmp_path):
    command = [sys.executable, "-m", "engine.build", "audio-encoder", str(halves["audio_encoder"])]
    command += ["-o", str(tmp_path / "a.plan")]
    done = subprocess.run([*command, "--arch", "75"], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith(f"{tmp_path}/a.plan: built, ")
    done = subprocess.run([*command, "--arch", "74"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
