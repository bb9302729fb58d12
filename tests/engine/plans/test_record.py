"""Records of plans with fields of wrong types, and other files under a record's name."""

import json
import os
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.plans.record import BuildKey, PlanRecord, check_output_path, read_record, write_plan

RECORD = PlanRecord(
    key=BuildKey("audio_encoder", "0" * 64, "tensorrt_rtx", "1.7.0", [86, 89], "fp16", [1, 25, 25]),
    source="a.onnx",
    onnx_sha256="1" * 64,
    inputs=[["mel_spectrogram", "fp16", [-1, 1, 80, 16]]],
    outputs=[["audio_features", "fp16", [-1, 512]]],
    scratch_bytes=1000,
    build_seconds=2.5,
    plan_bytes=4,
    plan_sha256="2" * 64,
)


@pytest.fixture
def plan(tmp_path) -> Path:
    write_plan(tmp_path / "a.plan", b"plan", RECORD)
    return tmp_path / "a.plan"


def test_what_is_written_is_read(plan):
    assert read_record(plan) == RECORD


WRONG = {
    "key": [[], 5, "", None, {}, {"format": 4}],
    "key.network": [5, None, []],
    "key.edition": [[], {}, 7],
    "key.version": [[], 1.7],
    "key.source_sha256": [0, None],
    "key.architectures": [[], 89, ["89"], [True], [0], None, {}],
    "key.precision": ["int8", 16, [], None],
    "key.batch": [[5], [0, 1, 2], [3, 2, 1], [1, 2, 1 << 70], "1 2 3", None, [1, 2, True]],
    "key.format": [2, "3", None, [], "x" * 100_000],
    "source": ["", "..", ".", "a/b", "/etc/passwd", "a\0b", "\ud800", 5, None, []],
    "onnx_sha256": [5],
    "inputs": [[], 5, None, [[]], [["a", "fp16"]], [[1, "fp16", [-1, 2]]], [["a", 1, [-1, 2]]]],
    "outputs": [[], {}, [["a", "fp16", 5]], [["a", "fp16", [-1, "x"]]]],
    "scratch_bytes": ["1", -1, 1.5, 10**40, []],
    "build_seconds": ["1", None, [], -1, 10**400, float("nan"), float("inf")],
    "plan_bytes": [None, -1, "4", []],
    "plan_sha256": [5, None],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f in WRONG for v in WRONG[f]], ids=str)
def test_wrong_fields(plan, field, value):
    path = plan.with_suffix(".json")
    content = json.loads(path.read_text())
    part = content
    *outer, last = field.split(".")
    for name in outer:
        part = part[name]
    part[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the record of a TensorRT plan|of format") as error:
        read_record(plan)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "a.json is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a.json is not a regular file"),
        (Path.mkdir, "a.json is not a regular file"),
        (lambda path: path.symlink_to(path), "a.json cannot be read"),
        (lambda path: path.touch() or os.truncate(path, 32 << 30), "a.json has 34359738368 bytes"),
        (lambda path: path.write_text("[" * 100_000), "is not the record of a TensorRT plan"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not the record of a TensorRT plan"),
    ],
    ids=["pipe", "device", "folder", "loop", "sparse", "deep", "not a text"],
)
def test_other_files(tmp_path, make, message):
    make(tmp_path / "a.json")
    with pytest.raises(InputError, match=message):
        read_record(tmp_path / "a.plan")
    if (tmp_path / "a.json").exists():
        with pytest.raises(InputError, match="exists and is not the record of a plan"):
            check_output_path(tmp_path / "a.plan")
