"""Allocate the buffers of a render in one piece of memory."""

import math

import torch
from torch import Tensor

from ..errors import DeviceFull
from .cuda_graphs import whole_device_lock

ALIGNMENT = 256  # bytes; TensorRT requires it of addresses, and PyTorch's allocations have it

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def memory_bytes(shapes: Shapes) -> int:
    """Return the bytes that `allocate` needs."""
    return sum(_aligned_bytes(*buffer) for buffer in shapes.values())


def allocate(
    shapes: Shapes, device: torch.device, besides: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Allocate buffers in one piece of memory, filled with zeros.

    One piece either fits, or the error comes before anything is rendered.

    Args:
        shapes: shape and dtype of each buffer, by name.
        besides: bytes of a GPU that must be left for what the networks allocate later.

    Returns:
        The memory, (bytes,) uint8, and the buffers in it by name, each contiguous and aligned to
        `ALIGNMENT` bytes.

    Raises:
        DeviceFull: the GPU has less free memory.
    """
    needed = memory_bytes(shapes)
    if device.type == "cuda":
        check_fits(needed + besides, free_bytes(device, needed + besides), device)
    memory = torch.zeros(needed, dtype=torch.uint8, device=device)
    buffers: dict[str, Tensor] = {}
    first = 0
    for name, (shape, dtype) in shapes.items():
        part = memory[first : first + math.prod(shape) * dtype.itemsize]
        buffers[name] = part.view(dtype).view(shape)
        first += _aligned_bytes(shape, dtype)
    return memory, buffers


def free_bytes(device: torch.device, needed: int) -> int:
    """Return the free bytes of a GPU; with those that PyTorch caches, if `needed` bytes do not fit
    otherwise."""
    free = torch.cuda.mem_get_info(device)[0]
    if needed > free:
        # Only then, because it waits for all work on the device, also that of other renders.
        with whole_device_lock:
            torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    return free


def check_fits(needed: int, free: int, device: torch.device) -> None:
    """Check that buffers of `needed` bytes fit into `free` bytes.

    Raises:
        DeviceFull: they do not fit.
    """
    if needed > free:
        raise DeviceFull(
            f"the buffers of a render need {needed / 2**30:.2f} GiB on {device}, of which "
            f"{free / 2**30:.2f} GiB are free; a smaller batch size needs less"
        )


def _aligned_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    size = math.prod(shape) * dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
