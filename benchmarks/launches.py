"""`python -m benchmarks.launches`: launch single kernels a few times, for a profiler.

ncu --set full --kernel-name regex:composite python -m benchmarks.launches composite
"""

import argparse

import torch

from benchmarks import stages
from engine.command import Parser, program

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
        stage = STAGES[name](options.batch, *options.size)
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
    add("stages", nargs="+", choices=STAGES, metavar="STAGE", help=f"of: {', '.join(STAGES)}")
    add("--batch", type=int, default=25, metavar="N", help="frames (25)")
    add("--size", type=int, nargs=2, default=(720, 1280), metavar=("W", "H"), help="of a frame")
    add("--times", type=int, default=4, metavar="N", help="launches of each (4)")
    return parser.parse_args()


if __name__ == "__main__":
    program(main)
