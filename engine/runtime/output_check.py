"""Find networks that return NaN, infinity or a constant, without making the host wait for a GPU.

The smallest and the largest value of each row are enough: both are NaN if one value is, and equal
if the row is constant. On a GPU they are computed in a batch's CUDA graph and copied to the host,
which checks them a batch or more later.
"""

import os
from collections import deque

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import Network
from .signature import GENERATOR, Signature

ENDLESS_ROWS = 4096  # rows whose ranges are kept if there is no end


def write_ranges(output: Tensor, ranges: Tensor) -> None:
    """Write the smallest and the largest value of each row; NaN if the row has a NaN.

    Args:
        output: a network's output, contiguous.
        ranges: to write, (n, 2) or (n, 2, channels) in the output's dtype: smallest and largest.
            The values are those over the remaining dimensions.
    """
    low, high = ranges.unbind(1)
    if output.is_cuda:
        torch.aminmax(output.flatten(low.ndim), dim=-1, out=(low, high))
        return
    # On a CPU, NumPy computes them in this thread, because PyTorch's threads would wait for each
    # other at every row, for milliseconds if the cores are busy.
    values = output.float().flatten(low.ndim).numpy()
    with np.errstate(invalid="ignore"):
        low.copy_(torch.from_numpy(values.min(axis=-1)))
        high.copy_(torch.from_numpy(values.max(axis=-1)))


def _overlap(one: slice, other: slice) -> bool:
    return one.start < other.stop and other.start < one.stop


def _arrival(source: Tensor) -> torch.cuda.Event | None:
    """Return an event after the copies enqueued so far; None on a CPU, where they are done."""
    return torch.cuda.current_stream(source.device).record_event() if source.is_cuda else None


class OutputCheck:
    """Checks a network's outputs in a render.

    NaN and infinity are errors. A batch of one constant color is an error if the generator computes
    in float16, because some kernels turn the NaN or infinity of an overflow into a constant. (A
    float32 generator may return a constant on purpose, for measurements.)

    Args:
        signature: AUDIO_ENCODER or GENERATOR.
        network: the open network.
        path: its file.
        rows: number of features or frames of the render; None for live sessions, which have no end.
        device: device of the ranges.
        before: the check of the network whose outputs this network reads; its errors come first.
    """

    def __init__(
        self,
        signature: Signature,
        network: Network,
        path: str | os.PathLike[str],
        rows: int | None,
        device: torch.device,
        *,
        before: "OutputCheck | None" = None,
    ):
        self._signature, self._network, self._path = signature, network, path
        self._endless, self._before, self._added = rows is None, before, 0
        self._rows = ENDLESS_ROWS if rows is None else rows
        self._pinned = device.type == "cuda"
        self._ranges: Tensor | None = None
        self._pending: deque[tuple[slice, torch.cuda.Event | None]] = deque()

    def measure(self, output: Tensor) -> None:
        """Check the next rows of a render on a CPU: (m, 512) features or (n, 3, 320, 320) frames.

        Raises:
            InputError: see `look`.
        """
        n, *channels = output.shape[: max(output.ndim - 2, 1)]
        ranges = output.new_empty(n, 2, *channels)
        write_ranges(output, ranges)
        self.add(ranges)

    def add(self, ranges: Tensor) -> None:
        """Add the ranges of the next rows (see `write_ranges`), and check those that have arrived.

        On a GPU they are copied on the current stream, and the host does not wait.

        Raises:
            InputError: see `look`.
        """
        if self._ranges is None:
            # Allocated once per render, and pinned so that the host does not wait for copies.
            shape = self._rows, *ranges.shape[1:]
            self._ranges = torch.empty(shape, dtype=ranges.dtype, pin_memory=self._pinned)
        if self._endless and self._added + len(ranges) > self._rows:
            self._added = 0
        rows = slice(self._added, self._added + len(ranges))
        while self._pending and _overlap(self._pending[0][0], rows):
            self._look_at_next(wait=True)  # nearly always it arrived long ago
        self._ranges[rows].copy_(ranges, non_blocking=True)
        self._pending.append((rows, _arrival(ranges)))
        self._added = rows.stop
        self.look()

    def look(self, *, wait: bool = False) -> None:
        """Check the ranges that have arrived; with `wait`, wait for all of them.

        Raises:
            InputError: the network returned NaN, infinity or a constant. The message has the first
                bad feature or frame, and the remedy.
        """
        while self._pending and self._look_at_next(wait=wait):
            pass

    def _look_at_next(self, *, wait: bool) -> bool:
        """Check the next ranges, if they have arrived or with `wait`; return whether."""
        rows, arrived = self._pending[0]
        if arrived is not None:
            if wait:
                arrived.synchronize()
            elif not arrived.query():
                return False
        self._pending.popleft()
        if self._before is not None:
            self._before.look(wait=wait)
        self._check(rows)
        return True

    def _check(self, rows: slice) -> None:
        assert self._ranges is not None
        ranges = self._ranges[rows]
        low, high = ranges.view(len(ranges), 2, -1).unbind(1)
        broken = (~(low.isfinite() & high.isfinite())).any(dim=1)
        if broken.any():
            row = int(broken.nonzero()[0])
            nan = bool(low[row].isnan().any())
            where = f"in a {self._item}" if self._endless else f"in {self._item} {rows.start + row}"
            raise InputError(self._message("NaN" if nan else "infinity", where))
        half_generator = self._signature is GENERATOR and self._network.dtype == torch.float16
        if half_generator and torch.equal(low, high) and (low == low[0]).all():
            where = f"for every pixel of {self._item}s {rows.start} to {rows.stop - 1}"
            if self._endless:
                where = f"for every pixel of {len(low)} {self._item}s"
            raise InputError(self._message("one constant", where))

    @property
    def _item(self) -> str:
        return "video frame" if self._signature is GENERATOR else "feature"

    def _message(self, what: str, where: str) -> str:
        kind = self._signature.kind.replace("_", " ")
        advice = "its weights are damaged or its training diverged; use another file"
        if self._network.dtype == torch.float16:
            advice = (
                "its values probably exceed float16's 65504; export it with python -m export "
                "--precision fp32, or build its plan with python -m engine.build --precision fp32"
            )
        fault = f"{self._path}: the {kind} returns {what} {where} ({self._network.description})"
        return f"{fault}; {advice}"
