"""What the arguments of the stages must be: each function raises ValueError with the value."""

import torch
from torch import Tensor

from .spec import MAX_SIDE


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Shape (names match any size), dtype and device of an argument."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, it must be a torch tensor")
    got = tuple(tensor.shape)
    fits = len(got) == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(got, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has the shape {got}, it must be ({wanted})")
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} is {tensor.dtype}, it must be {' or '.join(str(dtype) for dtype in dtypes)}"
        )
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, it must be on {device}")


def check_faces(frames: Tensor, boxes: Tensor, index: Tensor) -> None:
    check("frames", frames, ("F", "H", "W", 3), (torch.uint8,))
    for what, side in zip(("height", "width"), frames.shape[1:3], strict=True):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"frames have the {what} {side}, it must be 1 to {MAX_SIDE}")
    if frames.shape[0] == 0 and index.numel():
        raise ValueError(f"frames has 0 frames, {index.numel()} are asked for")
    apart = frames.stride(3) != 1 or (frames.stride(2) != 3 and frames.shape[2] > 1)
    if apart and frames.numel():
        raise ValueError(f"frames has the strides {frames.stride()}, the last must be 3 and 1")
    integers = (torch.int32, torch.int64)
    check("boxes", boxes, (frames.shape[0], 4), integers, frames.device)
    check("index", index, ("n",), (torch.int64,), frames.device)


def writable(
    out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    check("out", out, shape, (dtype,), device)
    if not out.is_contiguous():
        raise ValueError(f"out has the strides {out.stride()}, it must be contiguous")
    return out


def apart(out: Tensor, name: str, tensor: Tensor) -> None:
    """What is written must not be what is read, nor overlap it."""
    if out.numel() == 0 or tensor.numel() == 0 or out.device != tensor.device:
        return
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = tensor.data_ptr() + (reach + 1) * tensor.element_size()
    out_end = out.data_ptr() + out.numel() * out.element_size()
    if out.data_ptr() < end and tensor.data_ptr() < out_end:
        raise ValueError(f"out shares memory with {name}, it must be apart from it")


def item_count(what: str, start: int, count: int | None, total: int) -> int:
    """The number of items in [start, start + count), or to the end where count is None."""
    count = total - start if count is None else count
    if start < 0 or count < 0 or start + count > total:
        raise ValueError(f"{what} {start} to {start + count} asked for, there are {total}")
    return count


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, it must be one of {', '.join(allowed)}")


def byte_shape(format: str, n: int, height: int, width: int) -> tuple[int, ...]:
    """The shape of n pictures in a format of bytes."""
    if format != "nv12":
        return n, height, width, 4 if format == "rgba" else 3
    if height % 2 or width % 2:
        raise ValueError(f"pictures are {height} x {width}, both must be even for nv12")
    return n, height * 3 // 2, width
