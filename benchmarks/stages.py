"""The stages for `benchmarks.kernels`: random inputs, bytes that must be moved, providers.

A provider is a function from one set of inputs to a tensor. All providers of a stage do the same
work, which `benchmarks.kernels` checks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from benchmarks import frame_loop
from kernels import CROP_SIZE, FEATURE_DIM, MEL_BANDS, ROI_SIZE, SAMPLE_RATE, reference
from kernels.checks import byte_shape
from kernels.spec import ByteFormat

Inputs = SimpleNamespace  # with the tensor `out`, which Viseme and the reference write to
Provider = Callable[[Inputs], Tensor]
Items = list[Callable[[], object]]  # functions that each do the work of one item of a batch


def all_bytes(x: Inputs) -> int:
    """Return the bytes of all inputs and outputs."""
    return sum(tensor.nbytes for tensor in vars(x).values() if isinstance(tensor, Tensor))


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage at one batch size and frame size."""

    name: str
    batch: int
    size: tuple[int, int] | None  # width and height of a frame, None for audio stages
    inputs: Callable[[torch.device], Inputs]  # makes a new random set
    viseme: Provider
    reference: Provider
    libraries: dict[str, Provider] = field(default_factory=dict)
    cpu: Callable[[Inputs], Items] | None = None  # OpenCV or librosa, one frame, speech or window
    bytes: Callable[[Inputs], int] = all_bytes  # bytes that must be read and written, each once


# --- audio ---------------------------------------------------------------------------------------


def log_mel(batch: int, seconds: float) -> Stage:
    """Return the stage for a batch of speeches of that many seconds."""
    samples = int(seconds * SAMPLE_RATE)
    shape = (batch, kernels.mel_rows(samples), MEL_BANDS)

    def inputs(device: torch.device) -> Inputs:
        pcm = (torch.randn(batch, samples, device=device) * 0.1).clamp_(-1, 1)
        return Inputs(pcm=pcm, out=torch.empty(shape, device=device))

    def torchaudio(x: Inputs) -> Tensor:
        from torchaudio.functional import preemphasis

        spectrum = _mel_spectrogram(x.pcm.device)(preemphasis(x.pcm, 0.97)).transpose(1, 2)
        decibels = 20 * spectrum.clamp(min=1e-5).log10() - 20
        return (8 * (decibels + 100) / 100 - 4).clamp(-4, 4)

    return Stage(
        f"log_mel, {seconds:g} s of speech", batch, None, inputs,
        viseme=lambda x: kernels.log_mel(x.pcm, out=x.out),
        reference=lambda x: reference.log_mel(x.pcm, None, x.out),
        libraries={"torchaudio": torchaudio},
        cpu=lambda x: [partial(frame_loop.log_mel, pcm) for pcm in x.pcm.numpy()],
    )  # fmt: skip


@cache
def _mel_spectrogram(device: torch.device) -> torch.nn.Module:
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(
        sample_rate=SAMPLE_RATE, n_fft=800, hop_length=200, f_min=55, f_max=7600,
        n_mels=MEL_BANDS, power=1, norm="slaney", mel_scale="slaney", pad_mode="constant",
    ).to(device)  # fmt: skip


def mel_windows(batch: int) -> Stage:
    """Return the stage for a batch of mel windows."""
    rows = 16 + int(80 * batch / 25)

    def inputs(device: torch.device) -> Inputs:
        out = torch.empty(batch, 1, MEL_BANDS, 16, device=device)
        return Inputs(mel=torch.rand(rows, MEL_BANDS, device=device) * 8 - 4, out=out)

    def cpu(x: Inputs) -> Items:
        starts = [min(int(80 * f / 25), rows - 16) for f in range(batch)]
        windows = [x.mel.numpy()[start : start + 16].T for start in starts]
        return [partial(np.ascontiguousarray, window) for window in windows]

    return Stage(
        "mel_windows", batch, None, inputs, cpu=cpu,
        viseme=lambda x: kernels.mel_windows(x.mel, count=batch, out=x.out),
        reference=lambda x: reference.mel_windows(x.mel, 25.0, 0, 0, x.out),
    )  # fmt: skip


def feature_windows(batch: int) -> Stage:
    """Return the stage for a batch of feature windows."""
    rows, start = batch + 16, 8

    def inputs(device: torch.device) -> Inputs:
        features = torch.randn(rows, FEATURE_DIM, device=device).half()
        out = torch.empty(batch, 32, 16, 16, dtype=torch.float16, device=device)
        return Inputs(features=features, out=out)

    def cpu(x: Inputs) -> Items:
        padded = frame_loop.pad(x.features.float().numpy())
        return [partial(frame_loop.feature_window, padded, start + f) for f in range(batch)]

    return Stage(
        "feature_windows", batch, None, inputs, cpu=cpu,
        viseme=lambda x: kernels.feature_windows(x.features, start=start, count=batch, out=x.out),
        reference=lambda x: reference.feature_windows(x.features, start, x.out),
    )  # fmt: skip


def ring_feature_windows(batch: int) -> Stage:
    """Return the stage for a batch of feature windows of as many streams, at random places."""
    rows = 32

    def inputs(device: torch.device) -> Inputs:
        x = _ring_places(batch, device)
        x.features = torch.randn(batch, rows, FEATURE_DIM, device=device).half()
        x.out = torch.empty(batch, 32, 16, 16, dtype=torch.float16, device=device)
        return x

    def cpu(x: Inputs) -> Items:
        features, places = x.features.numpy(), zip(x.source_list, x.number_list, strict=True)
        return [partial(_ring_rows, features[source], frame - 9) for source, frame in places]

    return Stage(
        "ring_feature_windows", batch, None, inputs, cpu=cpu,
        viseme=lambda x: kernels.ring_feature_windows(x.features, x.numbers, x.sources, out=x.out),
        reference=lambda x: reference.ring_feature_windows(x.features, x.numbers, x.sources, x.out),
        bytes=lambda x: 2 * x.out.nbytes,
    )  # fmt: skip


def _ring_places(batch: int, device: torch.device) -> Inputs:
    """Choose one window of each of `batch` streams, in random order."""
    numbers, sources = torch.randint(100, 10_000, (batch,)), torch.randperm(batch)
    return Inputs(
        numbers=numbers.to(device),
        sources=sources.to(device),
        number_list=numbers.tolist(),
        source_list=sources.tolist(),
    )


def _ring_rows(ring: np.ndarray, first: int) -> np.ndarray:
    """Copy 16 rows of a ring."""
    return ring.take(range(first, first + 16), axis=0, mode="wrap")


# --- faces ---------------------------------------------------------------------------------------


def _faces(batch: int, width: int, height: int, device: torch.device) -> Inputs:
    """Make as many frames as faces, in random order; boxes about 182 pixels wide that move."""
    size = min(182, width // 3)
    sizes = torch.randint(size * 14 // 15, size * 16 // 15, (batch,))
    x0 = width // 2 - sizes // 2 + torch.randint(-9, 10, (batch,))
    y0 = height * 9 // 20 + torch.randint(-9, 10, (batch,))
    boxes = torch.stack([x0, y0, x0 + sizes, y0 + sizes], dim=1).int()
    index = torch.randperm(batch)
    return Inputs(
        frames=_levels(batch, height, width, 3, device=device),
        boxes=boxes.to(device),
        index=index.to(device),
        box_list=boxes[index].tolist(),  # for providers that need the sizes on the host
        index_list=index.tolist(),
        box_bytes=int(sizes.square().sum()) * 3,
        crops=_levels(batch, CROP_SIZE, CROP_SIZE, 3, device=device),
    )


def face_input(batch: int, width: int, height: int) -> Stage:
    """Return the stage for a batch of faces in frames of that size."""

    def inputs(device: torch.device) -> Inputs:
        x = _faces(batch, width, height, device)
        x.out = torch.empty(batch, 6, ROI_SIZE, ROI_SIZE, dtype=torch.float16, device=device)
        return x

    def torch_ops(x: Inputs) -> Tensor:
        # one frame after another, because boxes differ in size
        for i, (number, (x0, y0, x1, y1)) in enumerate(zip(x.index_list, x.box_list, strict=True)):
            crop = _interpolate(
                x.frames[number, y0:y1, x0:x1][None], (CROP_SIZE, CROP_SIZE), "bicubic"
            )[0]
            x.crops[i] = crop
            x.out[i, :3] = crop[4:324, 4:324].flip(2).permute(2, 0, 1) / 255
            x.out[i, 3:] = x.out[i, :3]
            x.out[i, 3:, 5:310, 5:315] = 0
        return x.out

    def cpu(x: Inputs) -> Items:
        frames, pairs = x.frames.numpy(), zip(x.index_list, x.box_list, strict=True)
        return [partial(frame_loop.face_input, frames[number], box) for number, box in pairs]

    return Stage(
        "face_input", batch, (width, height), inputs, cpu=cpu,
        viseme=lambda x: kernels.face_input(x.frames, x.boxes, x.index, out=(x.out, x.crops))[0],
        reference=lambda x: reference.face_input(x.frames, x.boxes, x.index, x.out, x.crops)[0],
        libraries={"torch interpolate": torch_ops},
        bytes=lambda x: x.box_bytes + x.out.nbytes + x.crops.nbytes,
    )  # fmt: skip


def composite(batch: int, width: int, height: int, layout: ByteFormat = "rgb") -> Stage:
    """Return the stage for a batch of generated faces; `layout` is the output's."""
    rgb = layout == "rgb"
    shape = byte_shape(layout, batch, height, width)

    def inputs(device: torch.device) -> Inputs:
        x = _faces(batch, width, height, device)
        x.generated = torch.rand(batch, 3, ROI_SIZE, ROI_SIZE, device=device).half()
        x.out = torch.empty(shape, dtype=torch.uint8, device=device)
        return x

    def torch_ops(x: Inputs) -> Tensor:
        torch.index_select(x.frames, 0, x.index, out=x.out)
        faces = x.crops.clone()
        roi = (x.generated.float() * 255).clamp(0, 255).byte()
        faces[:, 4:324, 4:324] = roi.flip(1).permute(0, 2, 3, 1)
        for i, (x0, y0, x1, y1) in enumerate(x.box_list):
            size = (y1 - y0, x1 - x0)
            x.out[i, y0:y1, x0:x1] = _interpolate(faces[i : i + 1], size, "bicubic")[0]
        return x.out

    def cpu(x: Inputs) -> Items:
        frames, crops, generated = x.frames.numpy(), x.crops.numpy(), x.generated.numpy()
        return [
            partial(frame_loop.composite, frames[number], box, crops[i], generated[i], "crop")
            for i, (number, box) in enumerate(zip(x.index_list, x.box_list, strict=True))
        ]

    def moved(x: Inputs) -> int:
        # The box of a frame and the ROI of a crop are replaced: they need not be read.
        needed = x.frames.nbytes - x.box_bytes + x.crops.nbytes - 3 * ROI_SIZE * ROI_SIZE * batch
        return needed + x.generated.nbytes + x.out.nbytes

    def faces(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return x.frames, x.boxes, x.index, x.crops, x.generated

    return Stage(
        "composite" if rgb else f"composite to {layout}", batch, (width, height), inputs,
        viseme=lambda x: kernels.composite(*faces(x), format=layout, out=x.out),
        reference=lambda x: reference.composite(*faces(x), "crop", layout, x.out),
        libraries={"torch interpolate": torch_ops} if rgb else {},
        cpu=cpu if rgb else None,
        bytes=moved,
    )  # fmt: skip


# --- images --------------------------------------------------------------------------------------


def _images(
    batch: int, width: int, height: int, shape: tuple[int, ...], device: torch.device
) -> Inputs:
    out = torch.empty(shape, dtype=torch.uint8, device=device)
    return Inputs(images=_levels(batch, height, width, 3, device=device), out=out)


def resize(batch: int, width: int, height: int) -> Stage:
    """Return the stage for a batch of images, bilinear to half the size."""
    half = (height // 2, width // 2)
    shape = (batch, *half, 3)

    def torchvision(x: Inputs) -> Tensor:
        from torchvision.transforms.v2.functional import resize

        small = resize(x.images.permute(0, 3, 1, 2), list(half), antialias=False)
        return small.permute(0, 2, 3, 1).contiguous()

    def cv_cuda(x: Inputs) -> Tensor:
        import cvcuda

        return _cv_cuda(x, lambda images: cvcuda.resize(images, shape, cvcuda.Interp.LINEAR))

    return Stage(
        "resize to half", batch, (width, height), partial(_images, batch, width, height, shape),
        viseme=lambda x: kernels.resize(x.images, half, out=x.out),
        reference=lambda x: reference.resize(x.images, "bilinear", x.out),
        libraries={
            "torch interpolate": lambda x: _interpolate(x.images, half, "bilinear"),
            "torchvision": torchvision,
            "CV-CUDA": cv_cuda,
        },
        cpu=lambda x: [partial(cv2.resize, image, half[::-1]) for image in x.images.numpy()],
    )  # fmt: skip


def convert_color(batch: int, width: int, height: int, target: ByteFormat = "bgr") -> Stage:
    """Return the stage for a batch of RGB images; `target` is bgr, nv12 or i420."""
    bgr = target == "bgr"
    shape = byte_shape(target, batch, height, width)
    code = cv2.COLOR_RGB2BGR if bgr else cv2.COLOR_RGB2YUV_I420

    def cv_cuda(x: Inputs) -> Tensor:
        import cvcuda

        return _cv_cuda(x, lambda image: cvcuda.cvtcolor(image, cvcuda.ColorConversion.RGB2BGR))

    libraries: dict[str, Provider] = {"torch flip": lambda x: x.images.flip(3), "CV-CUDA": cv_cuda}
    return Stage(
        f"convert_color, rgb to {target}", batch, (width, height),
        partial(_images, batch, width, height, shape),
        viseme=lambda x: kernels.convert_color(x.images, "rgb", target, out=x.out),
        reference=lambda x: reference.convert_color(x.images, "rgb", target, x.out),
        libraries=libraries if bgr else {},
        cpu=lambda x: [partial(cv2.cvtColor, image, code) for image in x.images.numpy()],
    )  # fmt: skip


def _levels(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


def _interpolate(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize (n, h, w, 3) uint8 images with PyTorch's own function."""
    resized = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode=mode)
    return resized.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _cv_cuda(x: Inputs, run: Callable) -> Tensor:
    import cvcuda

    return torch.as_tensor(run(cvcuda.as_tensor(x.images, "NHWC")).cuda(), device="cuda")
