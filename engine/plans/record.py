"""The record beside a TensorRT plan: its sources, options, GPUs, sizes and hashes."""

import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError, shortened
from ..files import whole
from ..reading import open_regular, read_regular
from .digest import sha256

FORMAT = 4  # format of the record; also raised if plans are built differently
MAX_BYTES = 1_000_000  # of a record, which has about 700


@dataclass(frozen=True)
class BuildKey:
    """Everything that a plan depends on. Equal keys give equal plans.

    Attributes:
        network: the signature's kind.
        source_sha256: hash of the checkpoint or ONNX file given.
        edition: the TensorRT edition's name.
        version: its version.
        architectures: compute capabilities, 89 for 8.9.
        precision: "fp16" or "fp32", of the weights, inputs and outputs.
        batch: smallest, best and largest batch. They determine the plan's profiles.
        format: the record's format.
    """

    network: str
    source_sha256: str
    edition: str
    version: str
    architectures: list[int]
    precision: str
    batch: list[int]
    format: int = FORMAT


@dataclass(frozen=True)
class PlanRecord:
    """The contents of NAME.json beside NAME.plan.

    Attributes:
        key: what the plan was built from.
        source: name of the file given.
        onnx_sha256: hash of the graph given to TensorRT, after export and conversion.
        inputs, outputs: [name, type, shape] in the signature's order, -1 for the batch.
        scratch_bytes: GPU memory that a run needs; None if TensorRT did not report it.
        build_seconds: duration of the build.
        plan_bytes, plan_sha256: size and hash of the plan.
    """

    key: BuildKey
    source: str
    onnx_sha256: str
    inputs: list[list]
    outputs: list[list]
    scratch_bytes: int | None
    build_seconds: float
    plan_bytes: int
    plan_sha256: str


def record_path(plan: Path) -> Path:
    return plan.with_suffix(".json")


def read_record(plan: Path) -> PlanRecord:
    """Read the record of a plan.

    Raises:
        InputError: there is no record, or the file is something else.
    """
    path = record_path(plan)
    try:
        content = _load(path)
    except FileNotFoundError:
        raise InputError(
            f"{plan} has no record ({path.name} beside it); build it with python -m engine.build"
        ) from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        content = None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    strange = InputError(f"{path} is not the record of a TensorRT plan")
    key = content.get("key") if isinstance(content, dict) else None
    if not isinstance(key, dict) or "format" not in key:
        raise strange
    if key["format"] != FORMAT:
        raise InputError(
            f"{path} is a record of format {shortened(key['format'])}; this version reads "
            f"{FORMAT}. Build the plan again with python -m engine.build"
        )
    try:
        values = {field.name: content[field.name] for field in fields(PlanRecord)}
        values["key"] = BuildKey(**{field.name: key[field.name] for field in fields(BuildKey)})
        record = PlanRecord(**values)
    except KeyError:
        raise strange from None
    if not _is_valid(record):
        raise strange
    return record


def _is_valid(record: PlanRecord) -> bool:
    key = record.key
    texts = [key.network, key.source_sha256, key.edition, key.version, record.onnx_sha256]
    return (
        all(isinstance(text, str) for text in [*texts, record.plan_sha256])
        and key.precision in ("fp16", "fp32")
        and _are_counts(key.architectures)
        and _are_counts(key.batch)
        and len(key.batch) == 3
        and key.batch == sorted(key.batch)
        and _is_file_name(record.source)
        and all(map(_is_tensor, [*_list(record.inputs), *_list(record.outputs)]))
        and len(_list(record.inputs)) > 0
        and len(_list(record.outputs)) == 1
        and (record.scratch_bytes is None or _is_count(record.scratch_bytes, 0))
        and isinstance(record.build_seconds, int | float)
        and 0 <= record.build_seconds < 1e9
        and _is_count(record.plan_bytes, 0)
    )


def _load(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is not a regular file, or is larger than a record.
        ValueError, RecursionError: it is not JSON.
        OSError: it cannot be read.
    """
    return json.loads(read_regular(path, MAX_BYTES))


def _is_file_name(value: Any) -> bool:
    """Return whether the value is the name of a file in the record's folder."""
    return (
        isinstance(value, str)
        and Path(value).name == value
        and value not in ("", "..")
        and "\0" not in value
        and value == value.encode(errors="replace").decode()  # json reads half surrogate pairs
    )


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_count, value))


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], str)
        and all(_is_count(size, -1) for size in _list(value[2]))
        and len(_list(value[2])) > 1
    )


def write_plan(plan: Path, data: bytes, record: PlanRecord) -> None:
    """Write a plan and its record, each atomically.

    Raises:
        InputError: a file cannot be written.
    """
    lines = (f'  "{name}": {json.dumps(value)}' for name, value in asdict(record).items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    path = record_path(plan)
    try:
        # The plan is renamed first. If the process dies before its record is, the two do not match
        # and the next build replaces them.
        with whole(path) as partial_record, whole(plan) as partial_plan:
            partial_plan.write_bytes(data)
            partial_record.write_text(text)
    except OSError as error:
        raise InputError(f"{plan} cannot be written: {error.strerror}") from error


def check_output_path(plan: Path) -> None:
    """Check before the build that a plan and its record can be written there.

    Raises:
        InputError: they cannot be written, or another file has the record's name.
    """
    if plan.suffix != ".plan":
        raise InputError(f"output is {plan}; expected a name that ends in .plan")
    if plan.is_dir():
        raise InputError(f"{plan} is a folder")
    path = record_path(plan)
    try:
        if path.exists() and "plan_sha256" not in dict(_load(path)):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise InputError(
            f"{path} exists and is not the record of a plan; give another name with -o"
        ) from None
    try:
        with tempfile.NamedTemporaryFile(
            dir=plan.parent, prefix=f".{plan.stem}.", suffix=".partial.plan"
        ):
            pass
    except OSError as error:
        raise InputError(f"{plan} cannot be written: {error.strerror}") from error


def source_of(path: Path) -> Path:
    """Return the file to build a plan from. For a plan, it is the file that its record names.

    Raises:
        InputError: the plan has no record.
    """
    if path.suffix.lower() != ".plan":
        return path
    return path.with_name(read_record(path).source)


def find_damage(plan: Path, record: PlanRecord) -> str | None:
    """Compare a plan's bytes with its record, and describe the difference; None if there is
    none."""
    with open_regular(plan) as file:
        data = file.read()
    if len(data) != record.plan_bytes:
        return f"it has {len(data)} bytes; its record says {record.plan_bytes}"
    if sha256(data) != record.plan_sha256:
        return "its hash differs from that in its record"
    return None
