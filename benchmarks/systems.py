"""The systems that `benchmarks.pipeline` compares: each makes finished frames of PCM its own way.

All of them render the same avatar with the same networks, every batch as large as the others'. What
they need before the first PCM comes (frames decoded, networks opened) is done when they are made.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import kernels
from benchmarks import frame_loop
from engine import Avatar, Pipeline
from engine.device.stopwatch import Stopwatch
from engine.pipeline import ENCODER_BATCH, frame_numbers
from engine.runtime import Network, open_network
from engine.runtime.exported import exported
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from kernels import CROP_SIZE, FEATURE_DIM, MEL_BANDS, ROI_SIZE, reference

STILL = Path(__file__).parents[1] / "examples" / "demo" / "still.jpg"
SIGNATURES = {"audio_encoder": AUDIO_ENCODER, "generator": GENERATOR}
FPS = 25.0
BOX = 182  # pixels, about
WORKERS = os.cpu_count() or 1
CACHE_BYTES = 1 << 30  # frames decoded beforehand, on a CPU: all systems are spared it


@dataclass(frozen=True)
class System:
    """What renders.

    render: (S,) float32 PCM on the host, and a stopwatch or None, to finished frames, a batch at a
        time.
    description: the generator's runtime, for people.
    clock: where the times of its stages are taken.
    """

    render: Callable[[Tensor, Stopwatch | None], Iterator]
    description: str
    clock: torch.device


# --- what is rendered ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scene:
    """An avatar folder in the layout of the CPU server, and the checkpoints of its networks."""

    folder: Path
    networks: dict[str, Path]
    width: int
    height: int
    boxes: list[tuple[int, int, int, int]]

    @lru_cache(maxsize=2)  # noqa: B019  of a run's two scenes
    def avatar(self, device: torch.device) -> Avatar:
        avatar = Avatar.load(self.folder, device=device, cache_bytes=CACHE_BYTES, **self.networks)
        if not avatar.resident:
            for number in range(len(avatar)):
                avatar.batch([number])
        return avatar

    @cached_property
    def pictures(self) -> list[np.ndarray]:
        """The frames as OpenCV has them, BGR."""
        return [cv2.imread(str(path)) for path in sorted(self.folder.glob("frames/*"))]


def make_scene(
    folder: Path, networks: dict[str, Path], width: int, height: int, count: int
) -> Scene:
    """Frames of a person who sways, with a face box that moves and changes its size."""
    (folder / "frames").mkdir(parents=True)
    sway = 16
    still = cv2.resize(cv2.imread(str(STILL)), (width + sway, height + sway))
    boxes = []
    for number in range(count):
        x, y = (number * 3) % sway, (number * 5) % sway
        frame = still[y : y + height, x : x + width]
        cv2.imwrite(str(folder / "frames" / f"frame_{number:04}.jpg"), frame)
        side = min(BOX, width // 2) - number % 5
        left, top = width // 2 - side // 2 - x, height // 3 - y
        boxes.append((left, top, left + side, top + side))
    (folder / "crop_rects.json").write_text(json.dumps(boxes))
    return Scene(folder, networks, width, height, boxes)


def absent(runtime: str, device: torch.device) -> str | None:
    """Why a runtime cannot run on the device, where that shows without opening a network."""
    if runtime == "tensorrt":
        if device.type != "cuda":
            return "no CUDA GPU"
        if not (find_spec("tensorrt") or find_spec("tensorrt_rtx")):
            return "TensorRT is not installed"
    if runtime == "onnxruntime":
        if not find_spec("onnxruntime"):
            return "ONNX Runtime is not installed"
        import onnxruntime

        if device.type == "cuda" and (
            "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
        ):
            return f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider here"
    return None


def prepare(
    runtime: str, device: torch.device, networks: dict[str, Path], batches: tuple[int, int, int]
) -> None:
    """What a runtime makes of checkpoints: plans beside them, or ONNX files in the user's cache.

    Args:
        batches: of the generator's plan: the least, the one it is tuned for, the most.

    Raises:
        RuntimeError, InputError: it cannot be made, in one line.
    """
    for kind, path in networks.items():
        if runtime == "onnxruntime":
            exported(SIGNATURES[kind], path, "fp16" if device.type == "cuda" else "fp32")
        if runtime == "tensorrt":
            command = [sys.executable, "-m", "engine.build", kind.replace("_", "-"), str(path)]
            if kind == "generator":
                command += ["--batch", *map(str, batches)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(lines[-1].removeprefix("error: "))


# --- who renders it ------------------------------------------------------------------------------


def viseme(scene: Scene, device: torch.device, batch: int, *, runtime: str) -> System:
    """Ours."""
    pipeline = Pipeline(scene.avatar(device), batch_size=batch, runtime=runtime)
    if runtime == "torch":  # what was compiled for one pipeline need not be for the next
        pipeline.audio_encoder, pipeline.generator = _networks(scene, device, runtime)
    render = lambda pcm, stopwatch: pipeline.render(pcm, stopwatch=stopwatch)  # noqa: E731
    return System(render, pipeline.generator.description, device)


def eager(scene: Scene, device: torch.device, batch: int) -> System:
    """The stages written in PyTorch, and the networks in it: nothing fused, nothing compiled."""
    avatar = scene.avatar(device)
    encoder, generator = _networks(scene, device, "torch")
    empty = partial(torch.empty, device=device)

    def render(pcm: Tensor, stopwatch: Stopwatch | None) -> Iterator[Tensor]:
        stage = _stage(stopwatch)
        with stage("log_mel"):
            mel = empty(1, kernels.mel_rows(len(pcm)), MEL_BANDS)
            (mel,) = reference.log_mel(pcm.to(device)[None], None, mel)
        with stage("audio encoder"):
            count = kernels.mel_window_count(len(mel), FPS)
            windows = reference.mel_windows(mel, FPS, 0, empty(count, 1, MEL_BANDS, 16))
            features = empty(count, FEATURE_DIM)
            for some, result in zip(
                windows.split(ENCODER_BATCH), features.split(ENCODER_BATCH), strict=True
            ):
                encoder(some, out=result)
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

    return System(render, generator.description, device)


def split(scene: Scene, device: torch.device, batch: int, *, runtime: str) -> System:
    """Networks on the device, all the rest on the CPU: OpenCV, a frame a thread.

    What goes to a GPU and comes back passes pinned memory, and the threads prepare the next batch
    while the generator runs. Finished frames stay on the host, where such servers encode them.
    On a CPU it is what people run there.
    """
    encoder, generator = _networks(scene, device, runtime)
    pool = ThreadPoolExecutor(WORKERS)
    pictures, boxes = scene.pictures, scene.boxes
    pinned = partial(torch.empty, pin_memory=device.type == "cuda")
    staged = [pinned(batch, 6, ROI_SIZE, ROI_SIZE) for _ in range(2)]
    crops = [np.empty((batch, CROP_SIZE, CROP_SIZE, 3), np.uint8) for _ in range(2)]
    audio, returned = pinned(batch, 32, 16, 16), pinned(batch, 3, ROI_SIZE, ROI_SIZE)
    generated = torch.empty(batch, 3, ROI_SIZE, ROI_SIZE, dtype=generator.dtype, device=device)

    def prepare(turn: int, place: int, number: int) -> None:
        planes, crop = frame_loop.face_input(pictures[number], boxes[number])
        staged[turn].numpy()[place], crops[turn][place] = planes, crop

    def finish(turn: int, place: int, number: int) -> np.ndarray:
        face = returned.numpy()[place]
        crop = crops[turn][place]
        return frame_loop.composite(pictures[number], boxes[number], crop, face, "crop")

    def render(pcm: Tensor, stopwatch: Stopwatch | None) -> Iterator[list[np.ndarray]]:
        stage = _stage(stopwatch)
        with stage("log_mel"):
            mel = _mel_on_the_cpu(pcm)
        with stage("audio encoder"):
            padded = _encode(encoder, mel, device)
        total, numbers = len(padded), frame_numbers(len(boxes))

        def ahead(turn: int, first: int) -> tuple[list[int], list]:
            some = list(islice(numbers, max(0, min(batch, total - first))))
            jobs = [pool.submit(prepare, turn, place, n) for place, n in enumerate(some)]
            return some, jobs

        following = ahead(0, 0)
        for step, first in enumerate(range(0, total, batch)):
            turn, (some, jobs) = step % 2, following
            n = len(some)
            with stage("audio encoder"):
                for place in range(n):
                    audio[place].numpy()[...] = frame_loop.feature_window(padded, first + place)
            with stage("face_input"):
                for job in jobs:
                    job.result()
            following = ahead((step + 1) % 2, first + batch)
            with stage("generator"):
                inputs = [part[:n].to(device, non_blocking=True) for part in (staged[turn], audio)]
                generator(*inputs, out=generated[:n])
                returned[:n].copy_(generated[:n].float())  # waits
            with stage("composite"):
                finished = list(pool.map(partial(finish, turn), range(n), some))
            yield finished

    return System(render, generator.description, torch.device("cpu"))


def _networks(scene: Scene, device: torch.device, runtime: str) -> list[Network]:
    if runtime == "torch":
        return [_kept(kind, scene.networks[kind], device) for kind in SIGNATURES]
    return [
        open_network(signature, scene.networks[kind], device=device, runtime=runtime)
        for kind, signature in SIGNATURES.items()
    ]


@lru_cache
def _kept(kind: str, path: Path, device: torch.device) -> Network:
    return open_network(SIGNATURES[kind], path, device=device, runtime="torch")


def _stage(stopwatch: Stopwatch | None) -> Callable:
    return stopwatch.stage if stopwatch else lambda *_, **__: nullcontext()


def mel_library() -> str:
    return "librosa" if find_spec("librosa") else "the reference stage"


def _mel_on_the_cpu(pcm: Tensor) -> np.ndarray:
    """(S,) -> (T, 80)."""
    if find_spec("librosa"):
        return frame_loop.log_mel(pcm.numpy())
    out = torch.empty(1, kernels.mel_rows(len(pcm)), MEL_BANDS)
    return reference.log_mel(pcm[None], None, out)[0].numpy()


def _encode(encoder: Network, mel: np.ndarray, device: torch.device) -> np.ndarray:
    """(T, 80) -> (M + 2, 512) features, the first and the last doubled."""
    count = kernels.mel_window_count(len(mel), FPS)
    starts = [min(int(80 * frame / FPS), len(mel) - 16) for frame in range(count)]
    windows = np.stack([mel[start : start + 16].T for start in starts])[:, None]
    features = torch.empty(count, FEATURE_DIM, device=device)
    for some, result in zip(
        torch.from_numpy(windows.astype(np.float32)).split(ENCODER_BATCH),
        features.split(ENCODER_BATCH),
        strict=True,
    ):
        encoder(some.to(device), out=result)
    rows = features.cpu().numpy()
    return np.concatenate([rows[:1], rows, rows[-1:]])
