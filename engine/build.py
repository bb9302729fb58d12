"""`python -m engine.build`: build the TensorRT plan of a checkpoint or an ONNX file."""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .avatar.layouts import find_networks
from .command import Parser, program, run
from .errors import InputError, printable
from .pipeline import ENCODER_BATCH
from .plans.compiler import compile_plan, parse
from .plans.convert import convert
from .plans.digest import sha256, source_sha256
from .plans.edition import (
    EDITIONS,
    TensorRTEdition,
    architecture_names,
    choose_edition,
    gpu_architecture,
    logger,
)
from .plans.onnx_graph import OnnxGraph, load_graph
from .plans.record import (
    BuildKey,
    PlanRecord,
    check_output_path,
    find_damage,
    read_record,
    source_of,
    write_plan,
)
from .runtime.exported import exported
from .runtime.signature import AUDIO_ENCODER, CHECKPOINT_SUFFIXES, GENERATOR, Signature

SIGNATURES = {"generator": GENERATOR, "audio-encoder": AUDIO_ENCODER}
# Smallest, best and largest batch. A pipeline also runs batches smaller than its usual one, at the
# beginning of a stream and at the end of a file.
BATCH = {"generator": [1, 25, 25], "audio_encoder": [1, ENCODER_BATCH, ENCODER_BATCH]}
# TensorRT's tensors must have fewer than 2**31 values; the generator's largest has 64 x 320 x 320
# per frame. TensorRT for RTX accepts more, but computes a wrong memory size.
MAX_BATCH = 256


@dataclass(frozen=True)
class Target:
    """The TensorRT to build with, and the GPUs, precision and batches to build for.

    Attributes:
        edition: the edition of TensorRT.
        architectures: compute capabilities, 89 for 8.9.
        precision: "fp16" or "fp32".
        batch: smallest, best and largest batch; None for those that pipelines run.
    """

    edition: TensorRTEdition
    architectures: list[int]
    precision: str = "fp16"
    batch: list[int] | None = None


def build(
    signature: Signature,
    source: Path,
    output: Path,
    target: Target,
    *,
    force: bool = False,
    inspect: bool = False,
    verbose: bool = False,
) -> str:
    """Build the plan of a network, unless there is already a plan with the same key.

    Args:
        signature: GENERATOR or AUDIO_ENCODER.
        source: a checkpoint, or an ONNX file in float16 or float32 whose batch is free or 1.
        output: NAME.plan; the record is written to NAME.json beside it.
        target: TensorRT, GPUs, precision and batches.
        force: build even if there is a plan with the same key.
        inspect: print the layers as parsed and, on a GPU, as built.
        verbose: print TensorRT's messages.

    Returns:
        A line that describes the plan.

    Raises:
        InputError: the file cannot be used, TensorRT cannot build it, or the plan cannot be
            written.
    """
    _check_source(source)
    check_output_path(output)
    key = _build_key(signature, source, target)
    record = None if force else _reusable(output, key)
    if record and not inspect:
        return f"{output}: up to date, {_summary(record)}"
    begin = time.perf_counter()
    graph = _load_converted(signature, source, target, verbose)
    parsed = parse(target.edition, graph, loud=verbose)
    if inspect:
        count = parsed.network.num_layers
        print(f"{printable(output)}: {count} layers as parsed", *parsed.layers(), sep="\n")
    state = "up to date" if record else "built"
    if not record:
        print(
            f"building {printable(output)}: {key.edition} {key.version}, "
            f"{architecture_names(key.architectures)}, {key.precision}, "
            f"batch {' '.join(map(str, key.batch))}",
            file=sys.stderr,
        )
        plan, scratch = compile_plan(parsed, key.architectures, key.precision, key.batch)
        record = PlanRecord(
            key=key,
            source=source.name,
            onnx_sha256=sha256(parsed.data),
            inputs=parsed.tensors(graph.inputs),
            outputs=parsed.tensors([graph.output]),
            scratch_bytes=scratch,
            build_seconds=round(time.perf_counter() - begin, 3),
            plan_bytes=len(plan),
            plan_sha256=sha256(plan),
        )
        write_plan(output, plan, record)
    if inspect:
        _print_engine(target, output)
    return f"{output}: {state}, {_summary(record)}"


def _check_source(source: Path) -> None:
    if source.suffix.lower() not in (".onnx", *CHECKPOINT_SUFFIXES):
        suffixes = ", ".join((".onnx", *CHECKPOINT_SUFFIXES))
        raise InputError(f"{source} ends in {source.suffix!r}; expected one of {suffixes}")
    if not source.is_file():
        raise InputError(f"{source} {'is not a file' if source.exists() else 'does not exist'}")


def _build_key(signature: Signature, source: Path, target: Target) -> BuildKey:
    batch = target.batch or BATCH[signature.kind]
    least, best, most = batch
    if not 1 <= least <= best <= most <= MAX_BATCH:
        raise InputError(
            f"batch is {least} {best} {most}; expected 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}"
        )
    return BuildKey(
        network=signature.kind,
        source_sha256=source_sha256(source),
        edition=target.edition.name,
        version=target.edition.version(),
        architectures=target.architectures,
        precision=target.precision,
        batch=batch,
    )


def _reusable(output: Path, key: BuildKey) -> PlanRecord | None:
    """Return the record of an undamaged plan with this key, if there is one."""
    try:
        record = read_record(output)
        return record if record.key == key and not find_damage(output, record) else None
    except (InputError, OSError):
        return None


def _load_converted(signature: Signature, source: Path, target: Target, verbose: bool) -> OnnxGraph:
    """Load the network, convert it for TensorRT, and print the changes."""
    path = source
    if source.suffix.lower() != ".onnx":
        path = exported(signature, source, target.precision)
    graph = load_graph(signature, path)
    # Parse the unmodified file first, so that an unsupported operator is reported with TensorRT's
    # own message.
    parse(target.edition, graph, loud=verbose)
    convert(graph, target.precision)
    for notice in graph.notices:
        print(printable(f"{source}: {notice}"), file=sys.stderr)
    return graph


def _summary(record: PlanRecord) -> str:
    key, scratch = record.key, record.scratch_bytes
    memory = "" if scratch is None else f", {scratch / 1e6:.0f} MB of GPU memory to run"
    return (
        f"{record.plan_bytes / 1e6:.1f} MB{memory}, {architecture_names(key.architectures)}, "
        f"{key.precision}, batch {key.batch[0]} to {key.batch[2]}, in {record.build_seconds:.1f} s"
    )


def _print_engine(target: Target, output: Path) -> None:
    """Print the layers as built, which TensorRT knows only on a GPU that can load the plan."""
    here = gpu_architecture()
    if here not in target.architectures:
        where = "there is no GPU here" if here is None else f"the GPU here is SM{here}"
        can = architecture_names(target.architectures)
        print(f"{printable(output)}: the layers as built can only be read on {can}; {where}")
        return
    trt, log = target.edition.module(), logger(target.edition)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(output.read_bytes())
    if engine is None:
        raise InputError(f"{output} cannot be loaded by {target.edition.name}: {log.error()}")
    inspector = engine.create_engine_inspector()
    print(f"{printable(output)}: {engine.num_layers} layers as built")
    for index in range(engine.num_layers):
        text = inspector.get_layer_information(index, trt.LayerInformationFormat.JSON)
        print(f"{index:4} {json.dumps(json.loads(text))}")


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)

    def work() -> None:
        edition, architectures = choose_edition(options.edition, options.arch, gpu_architecture())
        for signature, source, output in _networks(options):
            batch = options.batch
            if options.avatar and signature is AUDIO_ENCODER:
                batch = None  # --batch counts frames; the audio encoder's batches are mel windows
            summary = build(
                signature,
                source,
                output,
                Target(edition, architectures, options.precision, batch),
                force=options.force,
                inspect=options.inspect,
                verbose=options.verbose,
            )
            print(printable(summary), flush=True)

    return run(work, interrupted="the unfinished plan was not written")


def _networks(options: argparse.Namespace) -> list[tuple[Signature, Path, Path]]:
    """Return (signature, file, plan) of each network to build."""
    if options.avatar is None:
        source = Path(options.file)
        output = Path(options.output) if options.output else source.with_suffix(".plan")
        return [(SIGNATURES[options.network], source, output)]
    paths = find_networks(
        options.avatar, generator=options.generator, audio_encoder=options.audio_encoder
    )
    return [
        (signature, source_of(paths[signature.kind]), paths[signature.kind].with_suffix(".plan"))
        for signature in SIGNATURES.values()
    ]


def _architectures(text: str) -> list[int]:
    numbers = [part.strip().lower().removeprefix("sm") for part in text.split(",")]
    if not all(number.isdigit() and 10 <= int(number) < 1000 for number in numbers):
        raise argparse.ArgumentTypeError(
            f"architectures are {text!r}; expected compute capabilities without dots, such as 86,89"
        )
    return [int(number) for number in numbers]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m engine.build",
        description="Build the TensorRT plan of a network: NAME.plan, and its record NAME.json. "
        "A plan that is up to date is kept.",
    )
    add = parser.add_argument
    add("network", nargs="?", choices=SIGNATURES)
    add("file", nargs="?", metavar="FILE", help=".onnx, .pth, .pt or .safetensors")
    add("-o", "--output", metavar="NAME.plan", help="default: FILE with the suffix .plan")
    add("--avatar", metavar="DIR", help="build both networks of an avatar, instead of NETWORK FILE")
    add("--generator", metavar="FILE", help="generator to use instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="audio encoder to use instead of the avatar's")
    add("--edition", choices=EDITIONS, help="which TensorRT (default: the one for the GPU)")
    add(
        "--arch",
        type=_architectures,
        metavar="LIST",
        help="compute capabilities to build for, such as 86,89,120 (tensorrt_rtx only; default: "
        "the GPU here)",
    )
    add("--precision", choices=("fp16", "fp32"), default="fp16", help="default: fp16")
    add(
        "--batch",
        nargs=3,
        type=int,
        metavar=("MIN", "OPT", "MAX"),
        help="smallest, best and largest batch (default: generator 1 25 25, audio encoder "
        f"1 {ENCODER_BATCH} {ENCODER_BATCH}; with --avatar, the generator's)",
    )
    add("--force", action="store_true", help="build even if the plan is up to date")
    add("--inspect", action="store_true", help="print the layers as parsed and, on a GPU, as built")
    add("--verbose", action="store_true", help="print TensorRT's messages")
    options = parser.parse_args(arguments)
    if (options.avatar is None) == (options.file is None):
        parser.error("expected a network and its file, or --avatar DIR")
    if options.avatar and options.output:
        parser.error("--output cannot be given with --avatar; plans are beside the networks")
    return options


if __name__ == "__main__":
    program(main)
