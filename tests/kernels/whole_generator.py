"""`TRITON_INTERPRET=1 python -m tests.kernels.whole_generator`: the demo's generator at full size.

The kernels make one frame, in Triton's interpreter or on a GPU, which is compared with ONNX
Runtime's, in float32. Each layer is also compared with its reference on the same inputs. In the
interpreter it takes minutes, with programs larger than a GPU's, because its time depends on
operations and not on their size; with --as-launched, with a GPU's programs, a multiple of that.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from triton import knobs

from engine.plans.comparison import measure, random_inputs
from engine.runtime.fused import read_weights
from examples import network_files
from kernels.generator import dense, narrow, product, tiles, wide
from kernels.generator.network import FusedGenerator, kernels_of, reference_of
from kernels.generator.plan import Layer
from tests.kernels.interpreter import cache_patches


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels.whole_generator",
        description="Compare the generator's kernels at full size with ONNX Runtime.",
    )
    text = "in the interpreter, with the programs that a GPU gets"
    parser.add_argument("--as-launched", action="store_true", help=text)
    options = parser.parse_args()
    if knobs.runtime.interpret:
        cache_patches()
        if not options.as_launched:
            enlarge_programs()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        wanted = onnx_runtime(Path(folder) / "generator.onnx")
    network = FusedGenerator(read_weights(network_files()["generator"]), device, compared_of)
    inputs = (torch.from_numpy(value).to(device).half() for value in random_inputs("generator", 1))
    out = torch.full((1, 3, 320, 320), torch.nan, dtype=torch.float16, device=device)
    network(*inputs, out)
    difference = measure("generator", [out.float().cpu().numpy()], [wanted])
    print(f"PSNR {difference.psnr:.1f} dB, largest difference {difference.largest:.2g}")
    return 1 if difference.excess("fp16") else 0


def enlarge_programs() -> None:
    tile, choose = narrow._tile, tiles.choose

    def whole_rows(*block: object) -> tuple[int, int, int]:
        _, columns, warps = tile(*block)
        return 512 // columns, columns, warps

    def largest(some: Sequence[tiles.Tile], pixels: int, channels: int, *others: int) -> tiles.Tile:
        assert choose(some, pixels, channels, *others) in some
        fitting = (tile for tile in some if channels % tile.channels == 0)
        return max(fitting, key=lambda tile: (tile.pixels * tile.channels, tile.step))

    narrow._tile, narrow.band_rows = whole_rows, lambda strips, height, *others: height
    for module in (wide, product, dense):
        module.choose = largest


def onnx_runtime(path: Path) -> np.ndarray:
    """Return ONNX Runtime's frame, of the checkpoint exported in float32."""
    import onnxruntime

    from export import export

    export("generator", network_files()["generator"], path, precision="fp32", max_batch=1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, random_inputs("generator", 1), strict=True)))[0]


def compared_of(layer: Layer, device: torch.device):
    """Return a layer's kernels, which print how far they are from the reference."""
    kernels, reference = kernels_of(layer, device), reference_of(layer, device)

    def run(x, out, **others):
        begin = time.perf_counter()
        kernels(x, out, **others)
        took = time.perf_counter() - begin
        expected = torch.empty_like(out, dtype=torch.float32)
        reference(x, expected, **others)
        error = (out.float() - expected).abs().max() / expected.abs().max()
        print(f"{layer.name:10} {took:8.2f} s  {error:.1e} of the largest value", flush=True)

    return run


if __name__ == "__main__":
    sys.exit(main())
