"""Run a network on a batch of any size, in chunks of the sizes that its runtime takes."""

from collections.abc import Callable

import torch
from torch import Tensor


def pad_batch(tensor: Tensor, size: int) -> Tensor:
    """Pad (n, ...) to `size` rows with copies of the last row."""
    missing = size - tensor.shape[0]
    return (
        torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
    )


def run_in_chunks(
    call: Callable[[list[Tensor], Tensor, int], object],
    inputs: tuple[Tensor, ...],
    out: Tensor,
    *,
    most: int,
    least: int = 1,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    alignment: int = 1,
) -> Tensor:
    """Run `call` on chunks of a batch.

    Args:
        call: called with the inputs of a chunk, the output to write, and the number of the chunk's
            first row. All tensors are contiguous and aligned; inputs have `dtype`, the output
            `out_dtype`.
        inputs: (n, ...) tensors.
        out: (n, ...) tensor. `call` writes to it directly if its dtype and layout allow that.
        most: largest chunk.
        least: smallest chunk; smaller ones are padded.
        alignment: alignment of addresses in bytes.

    Returns:
        `out`.
    """
    for first in range(0, out.shape[0], most):
        part = out[first : first + most]
        size = max(part.shape[0], least)
        chunk = [pad_batch(tensor[first : first + most], size) for tensor in inputs]
        chunk = [_aligned(tensor.to(dtype).contiguous(), alignment) for tensor in chunk]
        direct = part.dtype == out_dtype and part.is_contiguous() and size == part.shape[0]
        result = part
        if not direct or part.data_ptr() % alignment:
            result = torch.empty((size, *part.shape[1:]), dtype=out_dtype, device=out.device)
        call(chunk, result, first)
        if result is not part:
            part.copy_(result[: part.shape[0]])
    return out


def _aligned(tensor: Tensor, alignment: int) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % alignment else tensor
