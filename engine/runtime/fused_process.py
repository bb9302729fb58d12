"""Open the fused generator and compare its results: `fused_check` runs this in a process of its
own, which may crash."""

import sys
from pathlib import Path

import torch

from ..command import Parser, program
from ..errors import DeviceFull, InputError
from .fused import check_device, checked_generator, device_error, read_weights
from .fused_check import FAILED, FULL, PASSED


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m engine.runtime.fused_process", description=__doc__)
    parser.add_argument("file", type=Path, help="checkpoint or ONNX file of a generator")
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--float32", action="store_true", help="also an ONNX file of float32")
    options = parser.parse_args(arguments)
    try:
        check_device(options.device)
        weights = read_weights(options.file, float32=options.float32)
        checked_generator(weights, options.device)
    except Exception as error:  # also of the driver, when it is used first
        known = error if isinstance(error, InputError) else device_error(error, options.device)
        print(f"error: {known}", file=sys.stderr)
        return FULL if isinstance(known, DeviceFull) else FAILED
    print(PASSED, flush=True)
    return 0


if __name__ == "__main__":
    program(main)
