"""Copy between the host and a GPU without making either of them wait."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_to_device(values: Tensor, out: Tensor) -> Tensor:
    """Copy (n, ...) values from the host into the first n rows of `out`, in order with the current
    stream.

    Returns:
        These rows.
    """
    rows = out[: len(values)]
    # PyTorch keeps the pinned memory until the copy is done, and then reuses it.
    return rows.copy_(values.pin_memory() if out.is_cuda else values, non_blocking=True)


def copy_to_host(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """Yield every batch with a copy of it on the host, valid until the next one is taken.

    On a GPU each batch is copied on a separate stream and yielded one batch late, so that the copy
    overlaps the next batch. The pipeline's three-slot ring keeps it valid until then. A batch on a
    CPU is its own copy.
    """
    streams: list[torch.cuda.Stream] = []
    buffers: list[Tensor] = []
    waiting: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for number, frames in enumerate(batches):
        if not frames.is_cuda:
            yield frames, frames.numpy()
            continue
        if not buffers:  # the first batch is the largest
            streams = [torch.cuda.Stream(frames.device)]
            shape = frames.shape
            buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        copy, (stream,) = buffers[number % 2][: len(frames)], streams
        stream.wait_stream(torch.cuda.current_stream(frames.device))
        with torch.cuda.stream(stream):
            copy.copy_(frames, non_blocking=True)
            copied = stream.record_event()
        before, waiting = waiting, (frames, copy, copied)
        if before is not None:
            yield _arrived(*before)
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(frames: Tensor, copy: Tensor, copied: torch.cuda.Event) -> tuple[Tensor, NDArray[Any]]:
    copied.synchronize()
    return frames, copy.numpy()
