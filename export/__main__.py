"""`python -m export`: export a checkpoint to an ONNX file, and compare it with PyTorch."""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from export.onnx import ExportError, export, printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}\n")  # one line, without argparse's usage


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
    return parser


def _error(message: str) -> int:
    print("error:", printable(message), file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        report = export(
            arguments.network.replace("-", "_"),
            arguments.checkpoint,
            arguments.output,
            precision=arguments.precision,
            max_batch=arguments.max_batch,
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ExportError) as error:
        return _error(str(error))
    line = (
        f"{report.file}: {report.bytes / 1e6:.1f} MB, {report.nodes} nodes, {report.precision}, "
        f"largest difference {report.max_difference:.2g}"
    )
    if report.psnr is not None:
        line += f", PSNR {report.psnr:.1f} dB"
    else:
        line += f" ({report.relative_difference:.2g} of the largest feature)"
    print(printable(line))
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the locale cannot print
    sys.exit(main())
