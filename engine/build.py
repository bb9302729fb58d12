"""`python -m engine.build`: a checkpoint or an ONNX file in, a TensorRT plan out."""

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
from .plans import plan as plans
from .plans.compiler import compile_plan, parse
from .plans.flavor import FLAVORS, Flavor, choose, gpu_architecture, logger, names
from .plans.graph import Graph, load
from .plans.graph_ready import make_ready
from .runtime.exported import exported
from .runtime.signature import AUDIO_ENCODER, CHECKPOINT_SUFFIXES, GENERATOR, Signature

SIGNATURES = {"generator": GENERATOR, "audio-encoder": AUDIO_ENCODER}
# The batches that a pipeline runs on a GPU, and any smaller one: a stream's first, a file's last.
BATCH = {"generator": [1, 25, 25], "audio_encoder": [1, ENCODER_BATCH, ENCODER_BATCH]}
# TensorRT's tensors have less than 2**31 values, the generator's largest 64 x 320 x 320 a frame.
# TensorRT for RTX does not refuse more, and counts its memory wrong.
LARGEST = 256


@dataclass(frozen=True)
class Target:
    """What to build with, and for what. batch: least, best, most; None for what pipelines run."""

    flavor: Flavor
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
    """Build the plan of a network, unless it is there already.

    Args:
        signature: GENERATOR or AUDIO_ENCODER.
        source: a checkpoint, or an ONNX file of float16 or float32, its batch free or 1.
        output: NAME.plan; the record goes into NAME.json beside it.
        force: build it even if it is there.
        inspect: print the layers as parsed and, on a GPU, as built.
        verbose: show what TensorRT says on the way.

    Returns:
        The line that sums it up.

    Raises:
        InputError: the file, TensorRT or the disk does not allow it.
    """
    if source.suffix.lower() not in (".onnx", *CHECKPOINT_SUFFIXES):
        suffixes = ", ".join((".onnx", *CHECKPOINT_SUFFIXES))
        raise InputError(f"{source} must end in one of {suffixes}")
    if not source.is_file():
        raise InputError(f"{source} {'is not a file' if source.exists() else 'does not exist'}")
    plans.refuse_output(output)
    batch = target.batch or BATCH[signature.kind]
    least, best, most = batch
    if not 1 <= least <= best <= most <= LARGEST:
        raise InputError(
            f"batch is {least} {best} {most}, it must be 1 <= MIN <= OPT <= MAX <= {LARGEST}"
        )
    made = plans.Made(
        network=signature.kind,
        source_sha256=plans.source_sha256(source),
        flavor=target.flavor.name,
        version=target.flavor.version(),
        architectures=target.architectures,
        precision=target.precision,
        batch=batch,
    )
    record = None if force else _reusable(output, made)
    if record and not inspect:
        return f"{output}: up to date, {_facts(record)}"
    begin = time.perf_counter()
    graph = _graph(signature, source, target, verbose)
    parsed = parse(target.flavor, graph, loud=verbose)
    if inspect:
        count = parsed.network.num_layers
        print(f"{printable(output)}: {count} layers as parsed", *parsed.layers(), sep="\n")
    said = f"{output}: up to date" if record else f"{output}: built"
    if not record:
        print(
            f"building {printable(output)}: {made.flavor} {made.version}, "
            f"{names(made.architectures)}, {made.precision}, batch {' '.join(map(str, batch))}",
            file=sys.stderr,
        )
        data, scratch = compile_plan(parsed, made.architectures, made.precision, batch)
        record = plans.Record(
            made=made,
            source=source.name,
            onnx_sha256=plans.sha256(parsed.data),
            inputs=parsed.tensors(graph.inputs),
            outputs=parsed.tensors([graph.output]),
            scratch_bytes=scratch,
            build_seconds=round(time.perf_counter() - begin, 3),
            plan_bytes=len(data),
            plan_sha256=plans.sha256(data),
        )
        plans.write(output, data, record)
    if inspect:
        _print_engine(target, output)
    return f"{said}, {_facts(record)}"


def _reusable(output: Path, made: plans.Made) -> plans.Record | None:
    """The record of the plan that is there, if it was made of the same and is whole."""
    try:
        record = plans.read_record(output)
        return record if record.made == made and not plans.intact(output, record) else None
    except (InputError, OSError):
        return None


def _graph(signature: Signature, source: Path, target: Target, verbose: bool) -> Graph:
    """The network as TensorRT is to get it; what was changed for that is said."""
    path = source
    if source.suffix.lower() != ".onnx":
        path = exported(signature, source, target.precision)
    graph = load(signature, path)
    # First as it is: of an operator it does not know, TensorRT's word counts.
    parse(target.flavor, graph, loud=verbose)
    make_ready(graph, target.precision)
    for notice in graph.notices:
        print(printable(f"{source}: {notice}"), file=sys.stderr)
    return graph


def _facts(record: plans.Record) -> str:
    made = record.made
    scratch = record.scratch_bytes
    memory = "" if scratch is None else f" and {scratch / 1e6:.0f} MB of a GPU's to run"
    return (
        f"{record.plan_bytes / 1e6:.1f} MB{memory}, {names(made.architectures)}, {made.precision}, "
        f"batch {made.batch[0]} to {made.batch[2]}, in {record.build_seconds:.1f} s"
    )


def _print_engine(target: Target, output: Path) -> None:
    """The layers as TensorRT built them, which it tells only where the plan can be loaded."""
    here = gpu_architecture()
    if here not in target.architectures:
        where = "there is no GPU here" if here is None else f"the GPU here is SM{here}"
        can = names(target.architectures)
        print(f"{printable(output)}: the layers as built can be seen on {can}, {where}")
        return
    trt, log = target.flavor.module(), logger(target.flavor)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(output.read_bytes())
    if engine is None:
        raise InputError(f"{output} cannot be loaded by {target.flavor.name}: {log.error()}")
    inspector = engine.create_engine_inspector()
    print(f"{printable(output)}: {engine.num_layers} layers as built")
    for index in range(engine.num_layers):
        text = inspector.get_layer_information(index, trt.LayerInformationFormat.JSON)
        print(f"{index:4} {json.dumps(json.loads(text))}")


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)

    def work() -> None:
        flavor, architectures = choose(options.flavor, options.arch, gpu_architecture())
        for signature, source, output in _work(options):
            batch = options.batch
            if options.avatar and signature is AUDIO_ENCODER:
                batch = None  # pipelines run it on windows of their own number, not on frames
            target = Target(flavor, architectures, options.precision, batch)
            said = build(
                signature,
                source,
                output,
                target,
                force=options.force,
                inspect=options.inspect,
                verbose=options.verbose,
            )
            print(printable(said), flush=True)

    return run(work, interrupted="what was being built was not written")


def _work(options: argparse.Namespace) -> list[tuple[Signature, Path, Path]]:
    """What to build: the network, its file, the plan."""
    if options.avatar is None:
        source = Path(options.file)
        output = Path(options.output) if options.output else source.with_suffix(".plan")
        return [(SIGNATURES[options.network], source, output)]
    found = find_networks(
        options.avatar, generator=options.generator, audio_encoder=options.audio_encoder
    )
    work = []
    for signature in SIGNATURES.values():
        path = found[signature.kind]
        work.append((signature, plans.source(path), path.with_suffix(".plan")))
    return work


def _architectures(text: str) -> list[int]:
    numbers = [part.strip().lower().removeprefix("sm") for part in text.split(",")]
    if not all(number.isdigit() and 10 <= int(number) < 1000 for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be compute capabilities without their dots, such as 86,89,120"
        )
    return [int(number) for number in numbers]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m engine.build",
        description="Build the TensorRT plan of a network, NAME.plan with its record NAME.json; "
        "a plan that is there already and still fits is kept.",
    )
    add = parser.add_argument
    add("network", nargs="?", choices=SIGNATURES)
    add("file", nargs="?", metavar="FILE", help=".onnx, .pth, .pt or .safetensors")
    add("-o", "--output", metavar="NAME.plan", help="beside FILE and named like it by default")
    add("--avatar", metavar="DIR", help="instead of NETWORK FILE: both networks of an avatar")
    add("--generator", metavar="FILE", help="a generator to use instead of the avatar's")
    add("--audio-encoder", metavar="FILE", help="an audio encoder to use instead of the avatar's")
    add("--flavor", choices=FLAVORS, help="which TensorRT; the one that suits the GPU by default")
    add(
        "--arch",
        type=_architectures,
        metavar="LIST",
        help="compute capabilities to build for, such as 86,89,120 (tensorrt_rtx only; the GPU "
        "here by default)",
    )
    add("--precision", choices=("fp16", "fp32"), default="fp16", help="fp16 by default")
    add(
        "--batch",
        nargs=3,
        type=int,
        metavar=("MIN", "OPT", "MAX"),
        help="how many at once: at least, best for, at most (generator 1 25 25, audio encoder "
        f"1 {ENCODER_BATCH} {ENCODER_BATCH}; with --avatar the generator's)",
    )
    add("--force", action="store_true", help="build even what is there already")
    add("--inspect", action="store_true", help="print the layers as parsed and, on a GPU, as built")
    add("--verbose", action="store_true", help="show what TensorRT says")
    options = parser.parse_args(arguments)
    if (options.avatar is None) == (options.file is None):
        parser.error("give a network and its file, or --avatar DIR")
    if options.avatar and options.output:
        parser.error("an avatar's plans stand beside its networks: --output does not go with it")
    return options


if __name__ == "__main__":
    program(main)
