"""The memory a pipeline takes of a GPU, once: which batch sizes it runs, and buffers for them."""

import math

import torch
from torch import Tensor

from ..errors import DeviceError

RUNGS = (1, 4, 8, 16, 25, 40)
ALIGNMENT = 256  # bytes: what TensorRT asks of addresses, and what PyTorch's own memory has


def ladder(batch_size: int) -> tuple[int, ...]:
    """The batch sizes that are run, up to `batch_size`, which is one of them.

    Batches in between are filled up to the next one: a graph of every size would take as many
    recordings, and as much memory, as there are sizes.
    """
    return (*(rung for rung in RUNGS if rung < batch_size), batch_size)


def rung(sizes: tuple[int, ...], n: int) -> int:
    """The smallest of the sizes, which ascend, that n items fit in.

    Raises:
        ValueError: none is large enough.
    """
    for size in sizes:
        if size >= n:
            return size
    raise ValueError(f"{n} items do not fit the sizes {sizes}")


Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def arena_bytes(shapes: Shapes) -> int:
    """Bytes of an arena of these buffers."""
    return sum(_room(*buffer) for buffer in shapes.values())


class Arena:
    """One piece of memory, and buffers in it: `arena[name]`. Zeros at first.

    One piece, so that it is there or refused as a whole, before anything is rendered, and so that
    its size is a sum that can be checked by hand.

    Attributes:
        bytes: its size.
        memory: all of it, (bytes,) uint8.

    Raises:
        DeviceError: the GPU has less memory left.
    """

    def __init__(self, shapes: Shapes, device: torch.device):
        self.bytes = arena_bytes(shapes)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what PyTorch keeps for later is free too
            refuse(self.bytes, torch.cuda.mem_get_info(device)[0], device)
        self.memory = torch.zeros(self.bytes, dtype=torch.uint8, device=device)
        self._buffers, first = {}, 0
        for name, (shape, dtype) in shapes.items():
            part = self.memory[first : first + math.prod(shape) * dtype.itemsize]
            self._buffers[name] = part.view(dtype).view(shape)
            first += _room(shape, dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers[name]


def refuse(needed: int, free: int, device: torch.device) -> None:
    """Raise DeviceError where `needed` bytes do not fit `free` ones."""
    if needed > free:
        raise DeviceError(
            f"the buffers of a render need {needed / 2**30:.2f} GiB on {device}, "
            f"{free / 2**30:.2f} GiB are free: a smaller batch size needs less"
        )


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    size = math.prod(shape) * dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
