"""`python -m export`: export a checkpoint to an ONNX file, and compare it with PyTorch."""

import argparse
from collections.abc import Sequence

from engine.command import Parser, program, run
from engine.errors import InputError, printable
from engine.files import Outputs

from .onnx import ExportError, export


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)

    def work() -> None:
        try:
            print(printable(_export(options)))
        except (ValueError, ExportError) as error:
            raise InputError(error) from error

    return run(work, interrupted=Outputs(options.output))


def _export(options: argparse.Namespace) -> str:
    """Export, and return a line that describes the result."""
    report = export(
        options.network.replace("-", "_"),
        options.checkpoint,
        options.output,
        precision=options.precision,
        max_batch=options.max_batch,
    )
    line = (
        f"{report.file}: {report.bytes / 1e6:.1f} MB, {report.nodes} nodes, {report.precision}, "
        f"largest difference {report.max_difference:.2g}"
    )
    if report.psnr is not None:
        return f"{line}, PSNR {report.psnr:.1f} dB"
    return f"{line} ({report.relative_difference:.2g} of the largest feature)"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m export",
        description="Export a checkpoint to an ONNX file, and compare it with PyTorch.",
    )
    parser.add_argument("network", choices=["generator", "audio-encoder"])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth, .pt or .safetensors")
    parser.add_argument("-o", "--output", metavar="FILE.onnx", required=True)
    parser.add_argument(
        "--precision",
        choices=["fp16", "fp32"],
        default="fp16",
        help="precision of weights, inputs and outputs (default: fp16, which is faster on a GPU; "
        "on a CPU, the speed is the same)",
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=int,
        default=64,
        help="largest batch; with 1, the batch is fixed (default: 64)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    program(main)
