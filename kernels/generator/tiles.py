"""How many pixels and channels one program makes, by what there is to make and the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton


@dataclass(frozen=True)
class Tile:
    """What one program makes, and how."""

    pixels: int
    channels: int
    step: int  # channels of its input that it takes at a time
    warps: int
    stages: int = 1  # steps that it loads ahead

    def programs(self, pixels: int, channels: int) -> int:
        return triton.cdiv(pixels, self.pixels) * (channels // self.channels)


def choose(
    tiles: Sequence[Tile], pixels: int, channels: int, overhead: int, processors: int
) -> Tile:
    """Choose the tile with which the busiest multiprocessor has the least to do.

    Small tiles keep all multiprocessors busy, but load more for each result. Only tiles whose
    channels divide those of the result are considered, of which there must be one.

    Args:
        pixels: of all images together.
        channels: of the result.
        overhead: the work for each pixel of a tile beside its results, as a number of results.
    """

    def time(tile: Tile) -> int:
        work = tile.pixels * (tile.channels + overhead) + 32 * tile.channels
        return triton.cdiv(tile.programs(pixels, channels), processors) * work

    return min((tile for tile in tiles if channels % tile.channels == 0), key=time)


def step(most: int, *channels: int) -> int:
    """Return the largest power of two up to `most` that divides all the numbers of channels."""
    while any(number % most for number in channels):
        most //= 2
    return most


@lru_cache
def processors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has; an H100's number in the interpreter."""
    if triton.knobs.runtime.interpret:
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count
