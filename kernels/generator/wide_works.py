"""The work of the blocks of two and three kernels and of the dense convolutions, for
`kernels.model`: launches with weights of zeros."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..work import Work
from .dense import dense, dense_work, pack_dense
from .plan import NARROW
from .product import product_work
from .weights import Block, Dense
from .wide import (
    SEPARATE,
    depthwise,
    depthwise_project,
    depthwise_project_work,
    depthwise_work,
    expand,
    pack_wide,
)


@dataclass(frozen=True)
class BlockShape:
    side: int  # of its input
    inputs: int  # channels of x
    outputs: int
    stride: int = 1
    residual: bool = False
    lower: int = 0
    beside: int = 0

    @property
    def expanded(self) -> int:
        return 2 * (self.inputs + self.lower + self.beside)

    @property
    def out_side(self) -> int:
        return self.side // self.stride


@dataclass(frozen=True)
class DenseShape:
    side: int
    inputs: int
    outputs: int
    stride: int
    padding: int

    @property
    def out_side(self) -> int:
        return (self.side + 2 * self.padding - 3) // self.stride + 1


BLOCKS = {
    "audio1": BlockShape(16, 32, 64),
    "audio2": BlockShape(16, 64, 128),
    "audio4": BlockShape(16, 256, 256, residual=True),
    "audio6": BlockShape(10, 512, 512, residual=True),
    "audio7": BlockShape(10, 512, 512, residual=True),
    "fuse.0": BlockShape(10, 512, 512, beside=512),
    "fuse.1": BlockShape(10, 512, 512, residual=True),
    "fuse.2": BlockShape(10, 512, 256),
    "fuse.3": BlockShape(10, 256, 256, residual=True),
    "down2.0": BlockShape(160, 32, 64, stride=2),
    "down2.1": BlockShape(80, 64, 64, residual=True),
    "down3.0": BlockShape(80, 64, 128, stride=2),
    "down3.1": BlockShape(40, 128, 128, residual=True),
    "down4.0": BlockShape(40, 128, 256, stride=2),
    "down4.1": BlockShape(20, 256, 256, residual=True),
    "down5.0": BlockShape(20, 256, 512, stride=2),
    "down5.1": BlockShape(10, 512, 512, residual=True),
    "up1.0": BlockShape(20, 256, 128, lower=256),
    "up1.1": BlockShape(20, 128, 128, residual=True),
    "up2.0": BlockShape(40, 128, 64, lower=128),
    "up2.1": BlockShape(40, 64, 64, residual=True),
    "up3.0": BlockShape(80, 64, 32, lower=64),
    "up3.1": BlockShape(80, 32, 32, residual=True),
}
DENSES = {
    "audio3": DenseShape(16, 128, 256, stride=1, padding=1),
    "audio5": DenseShape(16, 256, 512, stride=2, padding=3),
}


def wide_works(n: int, processors: int) -> Iterator[tuple[str, Callable[[], None], Work]]:
    """List the network's launches with their names and work, for `kernels.model`.

    A launch's last kernel is the one meant.
    """
    for name, shape in BLOCKS.items():
        if name in NARROW:
            continue
        side, made = shape.side, shape.expanded
        parts = {
            "expand": product_work(
                n, side, shape.inputs, made, processors, lower=shape.lower, beside=shape.beside
            )
        }
        if shape.outputs >= SEPARATE:
            parts["depthwise"] = depthwise_work(n, side, made, stride=shape.stride)
            parts["project"] = product_work(
                n, shape.out_side, made, shape.outputs, processors, residual=shape.residual
            )
        else:
            parts["project"] = depthwise_project_work(
                n, side, made, shape.outputs, processors, stride=shape.stride,
                residual=shape.residual,
            )  # fmt: skip
        for part, work in parts.items():
            yield f"{name} {part}", partial(run_block, shape, n, (part,)), work
    for name, layer in DENSES.items():
        work = dense_work(n, layer.side, layer.inputs, layer.out_side, layer.outputs, processors)
        yield name, partial(run_dense, layer, n), work


def run_block(shape: BlockShape, n: int, parts: Sequence[str] = ("expand", "project")) -> None:
    """Launch the kernels of parts of a block: expand, depthwise (alone), project (with it)."""
    made, inputs = shape.expanded, shape.expanded // 2
    block = Block(
        torch.zeros(made, inputs), torch.zeros(made), torch.zeros(made, 3, 3), torch.zeros(made),
        torch.zeros(shape.outputs, made), torch.zeros(shape.outputs), shape.stride, shape.residual,
    )  # fmt: skip
    packed = pack_wide(block, torch.device("cpu"), lower=shape.lower, beside=shape.beside)
    x, expanded = _image(n, shape.side, shape.inputs), _image(n, shape.side, made)
    if "expand" in parts:
        lower = _image(n, shape.side // 2, shape.lower) if shape.lower else None
        beside = _image(n, shape.side, shape.beside) if shape.beside else None
        expand(x, packed, expanded, lower, beside)
    if "depthwise" in parts:
        depthwise(expanded, packed, _image(n, shape.out_side, made))
    if "project" in parts:
        out = _image(n, shape.out_side, shape.outputs)
        depthwise_project(expanded, packed, out, x if shape.residual else None)


def run_dense(shape: DenseShape, n: int) -> None:
    """Launch a dense convolution."""
    weights = Dense(
        torch.zeros(shape.outputs, shape.inputs, 3, 3), torch.zeros(shape.outputs), shape.stride,
        shape.padding,
    )  # fmt: skip
    packed = pack_dense(weights, torch.device("cpu"))
    dense(_image(n, shape.side, shape.inputs), packed, _image(n, shape.out_side, shape.outputs))


def _image(n: int, side: int, channels: int) -> Tensor:
    return torch.empty(n, side, side, channels, dtype=torch.float16)
