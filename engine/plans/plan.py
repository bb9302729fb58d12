"""A TensorRT plan and the record beside it: what it was built from, and where it runs."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.signature import Signature
from .flavor import FLAVORS, gpu_architecture, names

FORMAT = 2  # of the record; a change in how plans are made raises it too


@dataclass(frozen=True)
class Made:
    """What a plan is made of. The same things make the same plan.

    network: the signature's kind. source_sha256: of the checkpoint or ONNX file given. flavor,
    version: of TensorRT. architectures: compute capabilities, 89 for 8.9. precision: "fp16" or
    "fp32", of the weights, inputs and outputs. batch: least, best, most of the profile.
    """

    network: str
    source_sha256: str
    flavor: str
    version: str
    architectures: list[int]
    precision: str
    batch: list[int]
    format: int = FORMAT


@dataclass(frozen=True)
class Record:
    """What NAME.json beside NAME.plan holds.

    source: the name of the file given. onnx_sha256: of the graph that TensorRT got: the ONNX file
    given, or what the export or a change of batch or precision made of it. inputs, outputs: [name,
    type, shape] in the signature's order, -1 for the batch. scratch_bytes: of a GPU's memory that
    running it takes, None where TensorRT did not say. plan_bytes, plan_sha256: of the plan.
    """

    made: Made
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


def read_record(plan: Path) -> Record:
    """The record of a plan.

    Raises:
        InputError: there is none, or that file is something else.
    """
    path = record_path(plan)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{plan} has no record ({path.name} beside it): build it with python -m engine.build"
        ) from None
    except (ValueError, RecursionError):
        found = None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        made = found["made"]
        if made["format"] != FORMAT:
            raise InputError(
                f"{path} is a record of format {made['format']!r}, this version reads {FORMAT}: "
                "build the plan again with python -m engine.build"
            )
        kept = {field.name: found[field.name] for field in fields(Record)}
        kept["made"] = Made(**{field.name: made[field.name] for field in fields(Made)})
        kept["source"] = Path(kept["source"]).name
        record = Record(**kept)
        record.made.batch[0] + sum(record.made.architectures) + record.plan_bytes
        record.inputs[0][2][0] + record.outputs[0][2][0] + (record.scratch_bytes or 0)
    except (TypeError, KeyError, IndexError):
        raise InputError(f"{path} is not the record of a TensorRT plan") from None
    return record


def write(plan: Path, data: bytes, record: Record) -> None:
    """Write a plan and its record, each whole or not at all.

    Raises:
        InputError: they cannot be written.
    """
    lines = (f'  "{name}": {json.dumps(value)}' for name, value in asdict(record).items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    path = record_path(plan)
    parts = {file: file.with_name(f".{file.name}.{os.getpid()}.part") for file in (plan, path)}
    try:
        parts[plan].write_bytes(data)
        parts[path].write_text(text)
        # Killed between the two, a plan is left that is not its record's, and is built again.
        parts[plan].replace(plan)
        parts[path].replace(path)
    except OSError as error:
        raise InputError(f"{plan} cannot be written: {error.strerror}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def refuse_output(plan: Path) -> None:
    """See before the long work that a plan and its record can be written, and over what.

    Raises:
        InputError: they cannot, or what stands in the record's place is no record.
    """
    if plan.suffix != ".plan":
        raise InputError(f"{plan}: the output's name must end in .plan")
    if plan.is_dir():
        raise InputError(f"{plan} is a folder")
    path = record_path(plan)
    try:
        if path.exists() and "made" not in dict(json.loads(path.read_text())):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(
            f"{path} is not the record of a plan: it is left as it is, give another name with -o"
        ) from None
    part = plan.with_name(f".{plan.name}.{os.getpid()}.part")
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise InputError(f"{plan} cannot be written: {error.strerror}") from error


def source(path: Path) -> Path:
    """What to build from where a plan is named: the file beside it that its record names.

    Raises:
        InputError: the plan has no record.
    """
    if path.suffix.lower() != ".plan":
        return path
    return path.with_name(read_record(path).source)


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def source_sha256(path: Path) -> str:
    """Of a network's file, and of the files beside it that an ONNX file keeps its weights in."""
    data = path.read_bytes()
    digest = hashlib.sha256(data)
    # every reference to such a file has this word in it, and few files have it otherwise
    if path.suffix.lower() == ".onnx" and b"location" in data:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load_model_from_string(data).graph
        except DecodeError:
            return digest.hexdigest()
        places = {
            entry.value
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        for place in sorted(places):
            if (path.parent / place).is_file():
                digest.update((path.parent / place).read_bytes())
    return digest.hexdigest()


def intact(plan: Path, record: Record) -> str | None:
    """What is wrong with a plan's bytes, if anything."""
    data = plan.read_bytes()
    if len(data) != record.plan_bytes:
        return f"it has {len(data)} bytes, its record says {record.plan_bytes}"
    if sha256(data) != record.plan_sha256:
        return "its bytes are not those of its record"
    return None


def check(plan: Path, signature: Signature, device: torch.device | None = None) -> Record:
    """The record of a plan that can run here.

    Raises:
        InputError: which network, TensorRT or GPU it is for instead, or that it is damaged, and
            how to build it again.
    """
    record = read_record(plan)
    made = record.made
    if made.network != signature.kind:
        found, wanted = (kind.replace("_", " ") for kind in (made.network, signature.kind))
        raise InputError(
            f"{plan} is the plan of a(n) {found}, wanted is a(n) {wanted}: build one with "
            f"python -m engine.build {wanted.replace(' ', '-')} FILE"
        )
    again = f"build it again: {command(plan, record)}"
    flaw = intact(plan, record)
    if flaw:
        raise InputError(f"{plan} is damaged, {flaw}: {again} --force")
    flavor = FLAVORS.get(made.flavor)
    if flavor is None:
        raise InputError(f"{plan} was built by {made.flavor!r}, it must be {' or '.join(FLAVORS)}")
    if not flavor.installed:
        raise InputError(
            f"{plan} needs {flavor.name} {made.version}, which is not installed: "
            f"{flavor.how_to_install}"
        )
    if flavor.version() != made.version:
        raise InputError(
            f"{plan} was built by {flavor.name} {made.version} and runs with no other, "
            f"installed is {flavor.version()}: {again}"
        )
    here = gpu_architecture(device)
    if here is not None and here not in made.architectures:
        raise InputError(
            f"{plan} is for {names(made.architectures)}, the GPU here is SM{here}: {again}"
        )
    return record


def command(plan: Path, record: Record) -> str:
    """What builds a plan again, on the machine and for the GPU at hand."""
    kind = record.made.network.replace("_", "-")
    batch = " ".join(str(size) for size in record.made.batch)
    precision = record.made.precision
    return (
        f"python -m engine.build {kind} {plan.with_name(record.source)} -o {plan} "
        f"--precision {precision} --batch {batch}"
    )
