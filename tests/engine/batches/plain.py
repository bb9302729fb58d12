"""Frames of a request as serve.md's formulas have them: small networks, librosa, OpenCV, PyTorch.

The networks depend on every value of their inputs. As the real ones, they are convolutions, whose
rows do not depend on each other in ONNX Runtime.
"""

from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from benchmarks import frame_loop

_random = torch.Generator().manual_seed(4)
ENCODER = torch.randn(512, 1, 80, 16, generator=_random) / 36
PICTURE = torch.randn(3, 6, 3, 3, generator=_random) / 2
AUDIO = torch.randn(3, 32, 16, 16, generator=_random) / 45


def encoder(windows: Tensor) -> Tensor:
    """(n, 1, 80, 16) -> (n, 512)"""
    return F.conv2d(windows, ENCODER).flatten(1)


def seen(pictures: Tensor) -> Tensor:
    """The generator's first part: (n, 6, 320, 320) -> (n, 3, 320, 320)."""
    return F.conv2d(pictures, PICTURE, padding=1)


def mouths(seen: Tensor, audio: Tensor) -> Tensor:
    """Its second part: (n, 3, 320, 320), (n, 32, 16, 16) -> (n, 3, 320, 320)."""
    return torch.sigmoid(seen + F.conv2d(audio, AUDIO))


def write_networks(folder: Path) -> dict[str, Path]:
    """Write both as ONNX files."""
    files = {"audio_encoder": folder / "encoder.onnx", "generator": folder / "generator.onnx"}
    node = helper.make_node
    _write(
        files["audio_encoder"],
        [node("Conv", ["mel", "w"], ["grid"]), node("Flatten", ["grid"], ["features"])],
        {"mel": (1, 80, 16)},
        ("features", (512,)),
        {"w": ENCODER},
    )
    _write(
        files["generator"],
        [
            node("Conv", ["picture", "w"], ["seen"], pads=[1, 1, 1, 1]),
            node("Conv", ["audio", "v"], ["heard"]),
            node("Add", ["seen", "heard"], ["both"]),
            node("Sigmoid", ["both"], ["mouth"]),
        ],
        {"picture": (6, 320, 320), "audio": (32, 16, 16)},
        ("mouth", (3, 320, 320)),
        {"w": PICTURE, "v": AUDIO},
    )
    return files


def _write(path, nodes, inputs, output, weights) -> None:
    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    graph = helper.make_graph(
        nodes,
        "small",
        [value(name, shape) for name, shape in inputs.items()],
        [value(*output)],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def feature_windows(speech: np.ndarray, count: int, context: int = 0) -> np.ndarray:
    """(count, 32, 16, 16): what frames `context` to `context` + `count` hear."""
    rows = 1 + len(speech) // 200
    windows = max(min((rows - 16) * 25 // 80, context + count + 16), 0)
    wanted = np.zeros((count, 16, 512), np.float32)
    if windows:
        mel = frame_loop.log_mel(speech)
        starts = [int(3.2 * k) for k in range(windows)]
        cut = np.stack([mel[start : start + 16].T for start in starts])[:, None]
        features = encoder(torch.from_numpy(cut.astype(np.float32))).numpy()
        padded = [features[0], *features, features[-1]]
        for frame in range(count):
            for place in range(16):
                row = context + frame - 8 + place
                if 0 <= row < len(padded):
                    wanted[frame, place] = padded[row]
    return wanted.reshape(count, 32, 16, 16)


class Formulas:
    """An avatar's frames, (F, H, W, 3) uint8 RGB, and boxes. What does not change is kept."""

    def __init__(self, frames: np.ndarray, boxes: list):
        self.frames, self._boxes = frames, boxes
        self._own = [
            frame_loop.face_input(f[..., ::-1], b) for f, b in zip(frames, boxes, strict=True)
        ]
        random = np.random.default_rng(1)
        self._client = np.stack([self._as_a_client(random, n) for n in range(len(frames))])
        self._seen: dict[tuple[int, bool], Tensor] = {}

    def _as_a_client(self, random: np.random.Generator, number: int) -> np.ndarray:
        """(6, 320, 320) made by other means than the server's, of a picture with noise."""
        cut = frame_loop.cut(self.frames[number][..., ::-1], self._boxes[number])
        noisy = cv2.resize(cut, (320, 320)) + random.normal(0, 4, (320, 320, 3))
        roi = np.clip(noisy, 0, 255).transpose(2, 0, 1) / 255
        masked = roi.copy()
        masked[:, 5:310, 5:315] = 0
        return np.concatenate([roi, masked]).astype(np.float32)

    def numbers(self, start: int, count: int) -> np.ndarray:
        return np.array([(start + i) % len(self.frames) for i in range(count)])

    def faces(self, start: int, count: int) -> np.ndarray:
        """(count, 6, 320, 320) float32: a client's pictures."""
        return self._client[self.numbers(start, count)]

    def rendered(self, start: int, audio: np.ndarray, *, own: bool) -> np.ndarray:
        """(n, H, W, 3) RGB: the client's pictures pasted directly, or the avatar's own with the
        margin of the crop."""
        found = []
        for number, heard in zip(self.numbers(start, len(audio)), audio, strict=True):
            picture, crop = self._own[number]
            if not own:
                picture = self._client[number]
            if (number, own) not in self._seen:
                self._seen[number, own] = seen(torch.from_numpy(picture)[None])
            mouth = mouths(self._seen[number, own], torch.from_numpy(heard)[None])[0].numpy()
            bgr, box = self.frames[number][..., ::-1], self._boxes[number]
            mode = "crop" if own else "direct"
            found.append(frame_loop.composite(bgr, box, crop, mouth, mode)[..., ::-1])
        return np.stack(found)
