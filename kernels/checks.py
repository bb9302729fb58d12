"""Checks of the stages' arguments. Each raises ValueError: the value, then what is supported."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import MAX_SIDE, YUV_FORMATS


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Check shape, dtype and device of an argument.

    Args:
        name: of the argument, for the error.
        tensor: its value.
        shape: expected sizes; a string matches any size.
        dtypes: supported ones.
        device: expected one; any if None.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
    got = tuple(tensor.shape)
    fits = len(got) == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(got, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has shape {got}; expected ({wanted})")
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, dtypes))}"
        )
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; expected {device}")


def check_faces(frames: Tensor, boxes: Tensor, index: Tensor) -> None:
    """Check frames, their face boxes, and which of them are meant. See `kernels.face_input`."""
    check_tensor("frames", frames, ("F", "H", "W", 3), (torch.uint8,))
    for what, side in zip(("height", "width"), frames.shape[1:3], strict=True):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"frames has {what} {side}; expected 1 to {MAX_SIDE}")
    if frames.shape[0] == 0 and index.numel():
        raise ValueError(f"frames has 0 frames; index selects {index.numel()}")
    packed = frames.stride(3) == 1 and (frames.stride(2) == 3 or frames.shape[2] == 1)
    if not packed and frames.numel():
        raise ValueError(f"frames has strides {frames.stride()}; expected 3 and 1 as the last two")
    integers = (torch.int32, torch.int64)
    check_tensor("boxes", boxes, (frames.shape[0], 4), integers, frames.device)
    check_tensor("index", index, ("n",), (torch.int64,), frames.device)


def check_masks(masks: Tensor | None, frames: Tensor) -> None:
    """Check the masks of frames. See `kernels.composite`."""
    if masks is None:
        return
    count, height, width = frames.shape[:3]
    bits = getattr(masks, "dtype", None) == torch.uint8
    shape = (count, height, -(-width // 8) if bits else width)
    check_tensor("masks", masks, shape, (torch.bool, torch.uint8), frames.device)
    if not masks.is_contiguous():
        raise ValueError(f"masks has strides {masks.stride()}; expected a contiguous tensor")


def make_output(
    out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a checked `out`, or a new tensor if it is None."""
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    check_tensor("out", out, shape, (dtype,), device)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; expected a contiguous tensor")
    return out


def check_no_overlap(out: Tensor, name: str, tensor: Tensor) -> None:
    """Check that a stage does not write the memory that it reads."""
    if out.numel() == 0 or tensor.numel() == 0 or out.device != tensor.device:
        return
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.data_ptr() + (reach + 1) * tensor.element_size()
    out_end = out.data_ptr() + out.numel() * out.element_size()
    if out.data_ptr() < end and tensor.data_ptr() < out_end:
        raise ValueError(f"out overlaps {name} in memory; pass a separate tensor")


def item_count(what: str, start: int, count: int | None, total: int) -> int:
    """Return how many of `total` items lie in [start, start + count), or from start on if None."""
    count = total - start if count is None else count
    if start < 0 or count < 0 or start + count > total:
        raise ValueError(
            f"{what} {start} to {start + count} were requested; expected a range in 0 to {total}"
        )
    return count


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of: {', '.join(allowed)}")


def byte_shape(format: str, n: int, height: int, width: int) -> tuple[int, ...]:
    """Return the shape of n images in a format of bytes."""
    if format not in YUV_FORMATS:
        return n, height, width, 4 if format == "rgba" else 3
    if height % 2 or width % 2:
        raise ValueError(f"images are {height} x {width}; {format} needs an even height and width")
    return n, height * 3 // 2, width
