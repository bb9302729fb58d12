"""The interface of a network that is ready to run."""

from typing import Protocol

import torch
from torch import Tensor


class Network(Protocol):
    """A network ready to run. Any number of threads may call it at once.

    Attributes:
        dtype: the precision of the computation. Inputs of another dtype are converted.
        description: the runtime, its device and precision, for messages.
        reason: why this runtime was chosen, for messages.
        capturable: whether a CUDA graph can capture its calls, after a first call with that batch
            size.
        stream: the stream on which graphs containing this network must be replayed, because all
            calls share one scratch buffer; None if replays may run concurrently.
        graph_bytes: GPU memory for each row of a batch that a captured call allocates, and keeps as
            long as its graph; 0 if it allocates none.
        assumes_mask: whether a generator does not read the masked ROIs, channels 3-5 of its
            pictures, but takes them for channels 0-2 with the mouth (`kernels.MASK_ROWS`,
            `kernels.MASK_COLUMNS`) set to 0. Whoever calls it with others gets other pictures.
    """

    dtype: torch.dtype
    description: str
    reason: str
    graph_bytes: int
    assumes_mask: bool

    @property
    def capturable(self) -> bool: ...

    @property
    def stream(self) -> torch.cuda.Stream | None: ...

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        """Run on a batch of any size.

        Args:
            inputs: (n, ...) tensors in the order of the signature's inputs.
            out: (n, ...) tensor to write the output into.

        Returns:
            `out`.
        """
        ...
