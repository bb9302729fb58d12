"""`python -m benchmarks.launches`: launch single kernels a few times, for a profiler.

ncu --set full --kernel-name regex:composite python -m benchmarks.launches composite
ncu --set full --kernel-name regex:_narrow python -m benchmarks.launches up5.0
"""

import argparse

import torch

from benchmarks import blocks, stages
from engine.command import Parser, program

BLOCKS = "inc", "down1.0", "down1.1", "up3.0", "up4.0", "up5.0", "up5.1", "fuse.0"
STAGES = {
    "composite": stages.composite,
    "face_input": stages.face_input,
    "resize": stages.resize,
    "convert_color": stages.convert_color,
}


def main() -> int:
    options = _parse()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    for name in options.stages:
        if name in STAGES:
            stage = STAGES[name](options.batch, *options.size)
        else:
            stage = blocks.block(options.batch, name)
        torch.manual_seed(1)
        inputs = stage.inputs(device)
        for _ in range(options.times):
            stage.viseme(inputs)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"launched {options.times} times: {', '.join(options.stages)}")
    return 0


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.launches",
        description="Launch single kernels a few times, for a profiler such as ncu.",
    )
    add = parser.add_argument
    names = [*STAGES, *BLOCKS]
    add("stages", nargs="+", choices=names, metavar="STAGE", help=f"of: {', '.join(names)}")
    add("--batch", type=int, default=25, metavar="N", help="frames (25)")
    add("--size", type=int, nargs=2, default=(720, 1280), metavar=("W", "H"), help="of a frame")
    add("--times", type=int, default=4, metavar="N", help="launches of each (4)")
    return parser.parse_args()


if __name__ == "__main__":
    program(main)
