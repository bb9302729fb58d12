"""Finished frames copied from a GPU to the host, while the next ones are made."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor


def on_host(batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Every batch with a copy of it on the host, valid until the next one is taken.

    From a GPU, a batch is copied on a stream of its own while the next one is made: it comes out
    when that one is under way, while the ring that the pipeline's batches lie in still holds it.
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
            buffers = [torch.empty(frames.shape, dtype=torch.uint8).pin_memory() for _ in range(2)]
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


def _arrived(frames: Tensor, copy: Tensor, copied: torch.cuda.Event) -> tuple[Tensor, np.ndarray]:
    copied.synchronize()
    return frames, copy.numpy()
