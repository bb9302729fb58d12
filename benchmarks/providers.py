"""The providers that `benchmarks.pipeline` compares: each renders finished frames from PCM.

All of them render the same avatar with the same networks and the same batch size. The avatar's
frames are decoded and the networks opened when a renderer is made, which is not part of a render.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import kernels
from benchmarks import frame_loop, runner, timing
from engine import Avatar, Pipeline
from engine.device.stopwatch import Stopwatch
from engine.errors import DeviceError
from engine.loop import frame_numbers
from engine.pipeline import ENCODER_BATCH
from engine.runtime import Network, open_network
from engine.runtime.exported import exported
from engine.runtime.fused import check_device
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR, Signature
from examples import DEMO
from kernels import CROP_SIZE, FEATURE_DIM, MEL_BANDS, ROI_SIZE, reference

FPS = 25.0
BOX_SIZE = 182  # width of a face box in pixels, approximately
SWAY = 16  # pixels by which the person moves
WORKERS = os.cpu_count() or 1
Frames = Generator[Any, None, None]  # batches of finished frames
CACHE_BYTES = 1 << 30  # on a CPU all frames are decoded beforehand, for every provider


@dataclass(frozen=True)
class Renderer:
    """A provider that is ready to render.

    Attributes:
        render: renders (S,) float32 PCM on the host, yielding batches of finished frames; a
            stopwatch, if given, measures the stages.
        description: the runtime of the generator, for people.
        clock: the device on which its stages are timed.
        frame_bytes: bytes that the avatar's frames take on the GPU.
    """

    render: Callable[[Tensor, Stopwatch | None], Frames]
    description: str
    clock: torch.device
    frame_bytes: int = 0


# --- the avatar ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scene:
    """An avatar folder in the layout of the CPU server, and its networks' checkpoints."""

    folder: Path
    networks: dict[str, Path]  # by the kind of their signature
    width: int
    height: int
    boxes: list[frame_loop.Box]

    @lru_cache(maxsize=2)  # noqa: B019  a run has two scenes
    def avatar(self, device: torch.device) -> Avatar:
        """Load the avatar with all its frames decoded."""
        avatar = Avatar.load(
            self.folder,
            device=device,
            cache_bytes=CACHE_BYTES,
            generator=self.networks[GENERATOR.kind],
            audio_encoder=self.networks[AUDIO_ENCODER.kind],
        )
        if device.type == "cpu":
            for number in range(len(avatar)):
                avatar.batch([number])
        return avatar

    @cached_property
    def pictures(self) -> list[np.ndarray]:
        """The frames as (H, W, 3) uint8 BGR."""
        return [_read(path) for path in sorted(self.folder.glob("frames/*"))]


def make_scene(
    folder: Path, networks: dict[str, Path], width: int, height: int, count: int
) -> Scene:
    """Write frames of a person who sways, with a face box that moves and changes its size."""
    (folder / "frames").mkdir(parents=True)
    still = cv2.resize(_read(DEMO / "still.jpg"), (width + SWAY, height + SWAY))
    boxes = []
    for number in range(count):
        x, y = (number * 3) % SWAY, (number * 5) % SWAY
        frame = still[y : y + height, x : x + width]
        cv2.imwrite(str(folder / "frames" / f"frame_{number:04}.jpg"), frame)
        size = min(BOX_SIZE, width // 2) - number % 5
        left, top = width // 2 - size // 2 - x, height // 3 - y
        boxes.append((left, top, left + size, top + size))
    (folder / "crop_rects.json").write_text(json.dumps(boxes))
    return Scene(folder, networks, width, height, boxes)


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


# --- runtimes ------------------------------------------------------------------------------------


def prepare(
    runtime: str,
    device: torch.device,
    *,
    networks: dict[str, Path],
    batches: tuple[int, int, int],
    seconds: float,
) -> str | None:
    """Convert checkpoints for a runtime: to plans beside them, or to ONNX files in the cache.

    Args:
        networks: checkpoints by the kind of their signature.
        batches: minimum, optimal and maximum batch size of the generator's plan.
        seconds: how long it may take.

    Returns:
        Why the runtime cannot be used, or None.
    """
    if reason := unavailable(runtime, device):
        return reason
    try:
        with timing.time_limit(seconds):
            for signature in (AUDIO_ENCODER, GENERATOR):
                path = networks[signature.kind]
                if runtime == "onnxruntime":
                    exported(signature, path, "fp16" if device.type == "cuda" else "fp32")
                elif runtime == "tensorrt":
                    _build_plan(signature, path, batches)
    except Exception as error:  # an exporter or a compiler may raise anything
        return runner.in_one_line(error)
    return None


def unavailable(runtime: str, device: torch.device) -> str | None:
    """Return why a runtime cannot run on the device, or None. Opens no network."""
    if runtime == "fused":
        if device.type != "cuda":
            return runner.NO_GPU
        try:
            check_device(device)
        except DeviceError as error:
            return str(error)
    if runtime == "tensorrt":
        if device.type != "cuda":
            return runner.NO_GPU
        if not (find_spec("tensorrt") or find_spec("tensorrt_rtx")):
            return "TensorRT is not installed"
    if runtime == "openvino":
        if device.type == "cuda":
            return "it runs on CPUs"
        if not find_spec("openvino"):
            return "OpenVINO is not installed"
    if runtime == "onnxruntime":
        if not find_spec("onnxruntime"):
            return "ONNX Runtime is not installed"
        import onnxruntime

        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device.type == "cuda" and not cuda:
            return f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider here"
    return None


def _build_plan(signature: Signature, path: Path, batches: tuple[int, int, int]) -> None:
    kind = signature.kind.replace("_", "-")
    command = [sys.executable, "-m", "engine.build", kind, str(path)]
    if signature is GENERATOR:
        command += ["--batch", *map(str, batches)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1].removeprefix("error: "))


def _open_networks(scene: Scene, device: torch.device, runtime: str) -> tuple[Network, Network]:
    """Open the audio encoder and the generator."""
    kinds = (AUDIO_ENCODER.kind, GENERATOR.kind)
    open_one = _open_and_keep if runtime in KEPT else _open
    encoder, generator = (open_one(kind, scene.networks[kind], device, runtime) for kind in kinds)
    return encoder, generator


def _open(kind: str, path: Path, device: torch.device, runtime: str) -> Network:
    signature = GENERATOR if kind == GENERATOR.kind else AUDIO_ENCODER
    return open_network(signature, path, device=device, runtime=runtime)


KEPT = "fused", "torch"  # PyTorch, which may run the audio encoder, would compile again
_open_and_keep = cache(_open)


# --- providers -----------------------------------------------------------------------------------


def viseme(scene: Scene, device: torch.device, batch: int, runtime: str) -> Renderer:
    """Make a renderer of this project's pipeline."""
    avatar = scene.avatar(device)
    if runtime in KEPT:
        _open_networks(scene, device, runtime)  # the pipeline shares networks that are open
    pipeline = Pipeline(avatar, batch_size=batch, runtime=runtime)

    def render(pcm: Tensor, stopwatch: Stopwatch | None) -> Frames:
        yield from pipeline.render(pcm, stopwatch=stopwatch)

    return Renderer(render, pipeline.generator.description, device, _frame_bytes(avatar))


def eager(scene: Scene, device: torch.device, batch: int, runtime: str = "torch") -> Renderer:
    """Make a renderer of plain PyTorch: reference stages and networks, nothing fused."""
    avatar = scene.avatar(device)
    encoder, generator = _open_networks(scene, device, runtime)
    empty = partial(torch.empty, device=device)

    def render(pcm: Tensor, stopwatch: Stopwatch | None) -> Frames:
        stage = _stage(stopwatch)
        with stage("log_mel"):
            mel = empty(1, kernels.mel_rows(len(pcm)), MEL_BANDS)
            (mel,) = reference.log_mel(pcm.to(device)[None], None, mel)
        with stage("audio encoder"):
            count = kernels.mel_window_count(len(mel), FPS)
            windows = reference.mel_windows(mel, FPS, 0, 0, empty(count, 1, MEL_BANDS, 16))
            features = _encode(encoder, windows)
        total, numbers = kernels.frame_count(count), frame_numbers(len(avatar))
        for first in range(0, total, batch):
            n = min(batch, total - first)
            with stage("audio encoder"):
                audio = reference.feature_windows(features, first, empty(n, 32, 16, 16))
            with stage("frames", host=True):
                frames, boxes, index = avatar.batch(list(islice(numbers, n)))
            with stage("face_input"):
                inputs = empty(n, 6, ROI_SIZE, ROI_SIZE, dtype=generator.dtype)
                crops = empty(n, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
                reference.face_input(frames, boxes, index, inputs, crops)
            with stage("generator"):
                generated = empty(n, 3, ROI_SIZE, ROI_SIZE, dtype=generator.dtype)
                generator(inputs, audio, out=generated)
            with stage("composite"):
                out = empty(n, *frames.shape[1:], dtype=torch.uint8)
                reference.composite(frames, boxes, index, crops, generated, "crop", "rgb", out)
            yield out

    return Renderer(render, generator.description, device, _frame_bytes(avatar))


def split(scene: Scene, device: torch.device, batch: int, runtime: str) -> Renderer:
    """Make a renderer with the networks on the device and all else in OpenCV on the CPU.

    Frames are spread over threads, which prepare the next batch while the generator runs. Copies to
    and from a GPU use pinned memory. Finished frames stay on the host, where servers encode them.
    With a CPU as the device, it is the usual implementation without a GPU.
    """
    encoder, generator = _open_networks(scene, device, runtime)
    pool = ThreadPoolExecutor(WORKERS)
    pictures, boxes = scene.pictures, scene.boxes
    pinned = partial(torch.empty, pin_memory=device.type == "cuda")
    # Two buffers: one for the batch in the generator, one for the batch being prepared.
    staged = [pinned(batch, 6, ROI_SIZE, ROI_SIZE) for _ in range(2)]
    crops = [np.empty((batch, CROP_SIZE, CROP_SIZE, 3), np.uint8) for _ in range(2)]
    audio, returned = pinned(batch, 32, 16, 16), pinned(batch, 3, ROI_SIZE, ROI_SIZE)
    generated = torch.empty(batch, 3, ROI_SIZE, ROI_SIZE, dtype=generator.dtype, device=device)

    def prepare(buffer: int, place: int, number: int) -> None:
        planes, crop = frame_loop.face_input(pictures[number], boxes[number])
        staged[buffer].numpy()[place], crops[buffer][place] = planes, crop

    def finish(buffer: int, place: int, number: int) -> np.ndarray:
        face, crop = returned.numpy()[place], crops[buffer][place]
        return frame_loop.composite(pictures[number], boxes[number], crop, face, "crop")

    def submit(buffer: int, numbers: list[int]) -> tuple[list[int], list[Future]]:
        return numbers, [pool.submit(prepare, buffer, i, n) for i, n in enumerate(numbers)]

    def render(pcm: Tensor, stopwatch: Stopwatch | None) -> Frames:
        stage = _stage(stopwatch)
        with stage("log_mel"):
            mel = _log_mel_on_cpu(pcm)
        with stage("audio encoder"):
            windows = torch.from_numpy(frame_loop.mel_windows(mel)).to(device)
            padded = frame_loop.pad(_encode(encoder, windows).cpu().numpy())
        numbers = islice(frame_numbers(len(boxes)), len(padded))
        following = submit(0, list(islice(numbers, batch)))
        for step, first in enumerate(range(0, len(padded), batch)):
            buffer, (current, prepared) = step % 2, following
            n = len(current)
            with stage("audio encoder"):
                for place in range(n):
                    audio[place].numpy()[...] = frame_loop.feature_window(padded, first + place)
            with stage("face_input"):
                for future in prepared:
                    future.result()
            following = submit(1 - buffer, list(islice(numbers, batch)))
            with stage("generator"):
                copies = [t[:n].to(device, non_blocking=True) for t in (staged[buffer], audio)]
                generator(*copies, out=generated[:n])
                returned[:n].copy_(generated[:n].float())  # waits for the GPU
            with stage("composite"):
                finished = list(pool.map(partial(finish, buffer), range(n), current))
            yield finished

    return Renderer(render, generator.description, torch.device("cpu"))


def _frame_bytes(avatar: Avatar) -> int:
    on_gpu = avatar.device.type == "cuda"
    return len(avatar) * avatar.height * avatar.width * 3 if on_gpu else 0


def _stage(stopwatch: Stopwatch | None) -> Callable[..., AbstractContextManager]:
    return stopwatch.stage if stopwatch else lambda *_, **__: nullcontext()


def mel_library() -> str:
    """Return the name of the library that computes the mel on the CPU."""
    return "librosa" if find_spec("librosa") else "the reference stage"


def _log_mel_on_cpu(pcm: Tensor) -> np.ndarray:
    """Convert (S,) samples to a mel, (T, 80)."""
    if find_spec("librosa"):
        return frame_loop.log_mel(pcm.numpy())
    out = torch.empty(1, kernels.mel_rows(len(pcm)), MEL_BANDS)
    return reference.log_mel(pcm[None], None, out)[0].numpy()


def _encode(encoder: Network, windows: Tensor) -> Tensor:
    """Encode (M, 1, 80, 16) mel windows in batches: (M, 512)."""
    features = torch.empty(len(windows), FEATURE_DIM, device=windows.device)
    for some, out in zip(windows.split(ENCODER_BATCH), features.split(ENCODER_BATCH), strict=True):
        encoder(some, out=out)
    return features
