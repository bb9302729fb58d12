"""How many pixels and channels one program makes, by what there is to make and the GPU."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

# Cycles of a multiprocessor, estimated for an H100: they only have to put tiles in order.
START = 2000  # from the launch of a program to its first step, and from its last one to its end
LATENCY = 1000  # from the loads of a step to its product
RATE = 1640  # multiplications of a product a cycle


@dataclass(frozen=True)
class Tile:
    """What one program makes, and how."""

    pixels: int
    channels: int
    step: int  # channels of its input that it takes at a time
    warps: int
    resident: int  # programs that a multiprocessor holds
    stages: int = 1  # steps that it loads ahead
    registers: int | None = None  # that a thread may have, where the compiler takes too few

    def programs(self, pixels: int, channels: int) -> int:
        """Return how many programs make so many pixels and channels."""
        return -(-pixels // self.pixels) * (channels // self.channels)


@lru_cache
def choose(
    tiles: tuple[Tile, ...], pixels: int, channels: int, inputs: int, overhead: int, processors: int
) -> Tile:
    """Choose the tile with which a launch is over first.

    Small tiles keep all multiprocessors busy, but load more for each result. Only tiles whose
    channels divide those of the result are considered, of which there must be one.

    Args:
        pixels: of all images together.
        channels: of the result.
        inputs: what each result is a sum of.
        overhead: the work for each pixel of a tile beside its results, as a number of results.
    """

    def cycles(tile: Tile) -> float:
        each = -(-tile.programs(pixels, channels) // processors)
        together = min(each, tile.resident)
        work = tile.step * (tile.pixels * (tile.channels + overhead) + 32 * tile.channels) / RATE
        step = max(together * work, LATENCY / tile.stages + work)
        return -(-each // together) * (START + -(-inputs // tile.step) * step)

    return min((tile for tile in tiles if channels % tile.channels == 0), key=cycles)


def usual(n: int) -> int:
    """Return the batch size whose tiles a batch of n gets: one of three, because the kernels of
    each have to be compiled."""
    return 1 if n < 3 else 6 if n < 12 else 25


def common_step(most: int, *channels: int) -> int:
    """Return the largest power of two up to `most` that divides all the numbers of channels."""
    while any(number % most for number in channels):
        most //= 2
    return most


def processors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has; an H100's number in the interpreter."""
    if triton.knobs.runtime.interpret:
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
