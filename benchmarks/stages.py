"""Each stage as the benchmark runs it: random inputs, the bytes it must move, and who can do it.

A side is a function of one set of inputs that gives a tensor. All sides of a stage do the same
work; the benchmark compares what they give.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from benchmarks import frame_loop
from kernels import CROP_SIZE, FEATURE_DIM, MEL_BANDS, ROI_SIZE, SAMPLE_RATE, reference

Inputs = SimpleNamespace
Side = Callable[[Inputs], Tensor]
OURS = "viseme"


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage at one size."""

    name: str
    batch: int
    size: tuple[int, int] | None  # height and width of a frame, where there is one
    bytes: Callable[[Inputs], int]  # every input read once, every output written once
    inputs: Callable[[torch.device], Inputs]  # a new random set
    ours: Side
    reference: Side
    libraries: dict[str, Side] = field(default_factory=dict)
    # the work of one item (a frame, a speech, a window) on a CPU, as functions to run in threads
    cpu: Callable[[Inputs], list[Callable[[], object]]] | None = None


# --- audio ---------------------------------------------------------------------------------------


def log_mel(batch: int, seconds: float) -> Stage:
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
        name=f"log_mel, {seconds:g} s of speech",
        batch=batch,
        size=None,
        bytes=lambda x: _nbytes(x.pcm, x.out),
        inputs=inputs,
        ours=lambda x: kernels.log_mel(x.pcm, out=x.out),
        reference=lambda x: reference.log_mel(x.pcm, None, x.out),
        libraries={"torchaudio": torchaudio},
        cpu=lambda x: [_bound(frame_loop.log_mel, pcm) for pcm in x.pcm.numpy()],
    )


_spectrograms: dict[torch.device, torch.nn.Module] = {}


def _mel_spectrogram(device: torch.device) -> torch.nn.Module:
    from torchaudio.transforms import MelSpectrogram

    if device not in _spectrograms:
        _spectrograms[device] = MelSpectrogram(
            sample_rate=SAMPLE_RATE, n_fft=800, hop_length=200, f_min=55, f_max=7600,
            n_mels=MEL_BANDS, power=1, norm="slaney", mel_scale="slaney", pad_mode="constant",
        ).to(device)  # fmt: skip
    return _spectrograms[device]


def mel_windows(batch: int) -> Stage:
    rows = 16 + int(80 * batch / 25)

    def inputs(device: torch.device) -> Inputs:
        out = torch.empty(batch, 1, MEL_BANDS, 16, device=device)
        return Inputs(mel=torch.rand(rows, MEL_BANDS, device=device) * 8 - 4, out=out)

    def cpu(x: Inputs) -> list[Callable[[], object]]:
        mel = x.mel.numpy()
        window = lambda start: np.ascontiguousarray(mel[start : start + 16].T)  # noqa: E731
        return [_bound(window, min(int(80 * f / 25), rows - 16)) for f in range(batch)]

    return Stage(
        name="mel_windows",
        batch=batch,
        size=None,
        bytes=lambda x: _nbytes(x.mel, x.out),
        inputs=inputs,
        ours=lambda x: kernels.mel_windows(x.mel, count=batch, out=x.out),
        reference=lambda x: reference.mel_windows(x.mel, 25.0, 0, x.out),
        cpu=cpu,
    )


def feature_windows(batch: int) -> Stage:
    rows, start = batch + 16, 8

    def inputs(device: torch.device) -> Inputs:
        features = torch.randn(rows, FEATURE_DIM, device=device).half()
        out = torch.empty(batch, 32, 16, 16, dtype=torch.float16, device=device)
        return Inputs(features=features, out=out)

    def cpu(x: Inputs) -> list[Callable[[], object]]:
        features = x.features.float().numpy()
        padded = np.concatenate([features[:1], features, features[-1:]])
        return [_bound(frame_loop.feature_window, padded, start + f) for f in range(batch)]

    return Stage(
        name="feature_windows",
        batch=batch,
        size=None,
        bytes=lambda x: _nbytes(x.features, x.out),
        inputs=inputs,
        ours=lambda x: kernels.feature_windows(x.features, start=start, count=batch, out=x.out),
        reference=lambda x: reference.feature_windows(x.features, start, x.out),
        cpu=cpu,
    )


# --- faces ---------------------------------------------------------------------------------------


def _faces(batch: int, height: int, width: int, device: torch.device) -> Inputs:
    """As many frames as faces, in another order; boxes about 182 pixels wide that move."""
    side = min(182, width // 3)
    sides = torch.randint(side * 14 // 15, side * 16 // 15, (batch,))
    x0 = width // 2 - sides // 2 + torch.randint(-9, 10, (batch,))
    y0 = height * 9 // 20 + torch.randint(-9, 10, (batch,))
    boxes = torch.stack([x0, y0, x0 + sides, y0 + sides], dim=1).int()
    index = torch.randperm(batch)
    return Inputs(
        frames=_levels(batch, height, width, 3, device=device),
        boxes=boxes.to(device),
        index=index.to(device),
        box_list=boxes[index].tolist(),  # for those who want the sizes on the host
        index_list=index.tolist(),
        box_bytes=int(sides.square().sum()) * 3,
        crops=_levels(batch, CROP_SIZE, CROP_SIZE, 3, device=device),
    )


def face_input(batch: int, height: int, width: int) -> Stage:
    def inputs(device: torch.device) -> Inputs:
        x = _faces(batch, height, width, device)
        x.out = torch.empty(batch, 6, ROI_SIZE, ROI_SIZE, dtype=torch.float16, device=device)
        return x

    def torch_ops(x: Inputs) -> Tensor:
        """One frame after another: boxes differ in size."""
        for i, (number, (x0, y0, x1, y1)) in enumerate(zip(x.index_list, x.box_list, strict=True)):
            crop = _interpolate(
                x.frames[number, y0:y1, x0:x1][None], (CROP_SIZE, CROP_SIZE), "bicubic"
            )[0]
            x.crops[i] = crop
            x.out[i, :3] = crop[4:324, 4:324].flip(2).permute(2, 0, 1) / 255
            x.out[i, 3:] = x.out[i, :3]
            x.out[i, 3:, 5:310, 5:315] = 0
        return x.out

    def cpu(x: Inputs) -> list[Callable[[], object]]:
        frames = x.frames.numpy()
        pairs = zip(x.index_list, x.box_list, strict=True)
        return [_bound(frame_loop.face_input, frames[number], box) for number, box in pairs]

    return Stage(
        name="face_input",
        batch=batch,
        size=(height, width),
        bytes=lambda x: x.box_bytes + _nbytes(x.out, x.crops),
        inputs=inputs,
        ours=lambda x: kernels.face_input(x.frames, x.boxes, x.index, out=(x.out, x.crops))[0],
        reference=lambda x: reference.face_input(x.frames, x.boxes, x.index, x.out, x.crops)[0],
        libraries={"torch interpolate": torch_ops},
        cpu=cpu,
    )


def composite(batch: int, height: int, width: int, layout: str = "rgb") -> Stage:
    shape = (batch, height, width, 3) if layout == "rgb" else (batch, height * 3 // 2, width)

    def inputs(device: torch.device) -> Inputs:
        x = _faces(batch, height, width, device)
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

    def cpu(x: Inputs) -> list[Callable[[], object]]:
        frames, crops, generated = x.frames.numpy(), x.crops.numpy(), x.generated.numpy()
        return [
            _bound(frame_loop.composite, frames[number], box, crops[i], generated[i], "crop")
            for i, (number, box) in enumerate(zip(x.index_list, x.box_list, strict=True))
        ]

    def faces(x: Inputs) -> tuple[Tensor, ...]:
        return x.frames, x.boxes, x.index, x.crops, x.generated

    return Stage(
        name="composite" if layout == "rgb" else f"composite to {layout}",
        batch=batch,
        size=(height, width),
        bytes=lambda x: _nbytes(x.frames, x.out, x.generated, x.crops),
        inputs=inputs,
        ours=lambda x: kernels.composite(*faces(x), format=layout, out=x.out),
        reference=lambda x: reference.composite(*faces(x), "crop", layout, x.out),
        libraries={"torch interpolate": torch_ops} if layout == "rgb" else {},
        cpu=cpu if layout == "rgb" else None,
    )


# --- pictures ------------------------------------------------------------------------------------


def resize(batch: int, height: int, width: int) -> Stage:
    half = (height // 2, width // 2)

    def inputs(device: torch.device) -> Inputs:
        out = torch.empty(batch, *half, 3, dtype=torch.uint8, device=device)
        return Inputs(images=_levels(batch, height, width, 3, device=device), out=out)

    def torchvision(x: Inputs) -> Tensor:
        from torchvision.transforms.v2.functional import resize

        small = resize(x.images.permute(0, 3, 1, 2), list(half), antialias=False)
        return small.permute(0, 2, 3, 1).contiguous()

    def cv_cuda(x: Inputs) -> Tensor:
        import cvcuda

        shape = (batch, *half, 3)
        return _cv_cuda(x, lambda images: cvcuda.resize(images, shape, cvcuda.Interp.LINEAR))

    return Stage(
        name="resize to half",
        batch=batch,
        size=(height, width),
        bytes=lambda x: _nbytes(x.images, x.out),
        inputs=inputs,
        ours=lambda x: kernels.resize(x.images, half, out=x.out),
        reference=lambda x: reference.resize(x.images, "bilinear", x.out),
        libraries={
            "torch interpolate": lambda x: _interpolate(x.images, half, "bilinear"),
            "torchvision": torchvision,
            "CV-CUDA": cv_cuda,
        },
        cpu=lambda x: [_bound(cv2.resize, image, half[::-1]) for image in x.images.numpy()],
    )


def convert_color(batch: int, height: int, width: int, target: str = "bgr") -> Stage:
    shape = (batch, height, width, 3) if target == "bgr" else (batch, height * 3 // 2, width)
    code = cv2.COLOR_RGB2BGR if target == "bgr" else cv2.COLOR_RGB2YUV_I420

    def inputs(device: torch.device) -> Inputs:
        out = torch.empty(shape, dtype=torch.uint8, device=device)
        return Inputs(images=_levels(batch, height, width, 3, device=device), out=out)

    def cv_cuda(x: Inputs) -> Tensor:
        import cvcuda

        return _cv_cuda(x, lambda image: cvcuda.cvtcolor(image, cvcuda.ColorConversion.RGB2BGR))

    return Stage(
        name=f"convert_color, rgb to {target}",
        batch=batch,
        size=(height, width),
        bytes=lambda x: _nbytes(x.images, x.out),
        inputs=inputs,
        ours=lambda x: kernels.convert_color(x.images, "rgb", target, out=x.out),
        reference=lambda x: reference.convert_color(x.images, "rgb", target, x.out),
        libraries={"torch flip": lambda x: x.images.flip(3), "CV-CUDA": cv_cuda}
        if target == "bgr"
        else {},
        cpu=lambda x: [_bound(cv2.cvtColor, image, code) for image in x.images.numpy()],
    )


def _levels(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


def _interpolate(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(n, h, w, 3) uint8 -> the same at another size, through PyTorch's own resize."""
    resized = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode=mode)
    return resized.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _cv_cuda(x: Inputs, run: Callable) -> Tensor:
    import cvcuda

    return torch.as_tensor(run(cvcuda.as_tensor(x.images, "NHWC")).cuda(), device="cuda")


def _nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bound(function: Callable, *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)
