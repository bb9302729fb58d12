"""Write files for the engine's tests: audio of all kinds, and avatar folders of all layouts.

PyAV is imported late, because GPU hosts without it use folders of images.
"""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import checkpoint


def write_audio(
    path: Path, samples: np.ndarray, rate: int, codec: str, picture: bool = False
) -> Path:
    """Write (channels, n) float samples in any format; `picture` adds a video stream before it."""
    import av

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[0]]
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        if codec in ("aac", "libmp3lame"):
            stream.bit_rate = 192000
        for i in range(10 if picture else 0):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, np.uint8), "rgb24")
            container.mux(video.encode(image))
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32), "fltp", layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        for stream in container.streams:
            container.mux(stream.encode(None))
    return path


def write_video(path: Path, frames: np.ndarray, *, codec: str = "libx264rgb", **options) -> Path:
    """Write (n, H, W, 3) RGB frames; losslessly with the default codec and no options."""
    import av

    settings = {"qp": "0"} if codec == "libx264rgb" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={**settings, **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        stream.time_base = Fraction(1, 25)
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def silent_film(path: Path) -> None:
    """Write a video without an audio stream, even if its name is that of an audio file."""
    write_video(path.with_suffix(".mp4"), np.zeros((5, 48, 64, 3), np.uint8), codec="libx264")
    path.with_suffix(".mp4").rename(path)


class Folders:
    """The same avatar in every layout. `frames` are the decoded JPEG files."""

    def __init__(self, root: Path, frames: np.ndarray, boxes: list[list[int]], networks: dict):
        self.root, self.boxes, self.networks = root, boxes, networks
        self._jpegs = root / "jpegs"
        self._jpegs.mkdir(parents=True)
        decoded = []
        for number, frame in enumerate(frames):
            path = self._jpegs / f"{number}.jpg"
            Image.fromarray(frame).save(path, quality=95)
            with Image.open(path) as image:
                decoded.append(np.asarray(image))
        self.frames = np.stack(decoded)

    def _images(self, folder: Path, pattern: str) -> None:
        folder.mkdir(parents=True)
        for number in range(len(self.frames)):
            shutil.copy(self._jpegs / f"{number}.jpg", folder / pattern.format(number))

    def native(self, name: str = "native", *, video: bool = False, fps: object = 25) -> Path:
        root = self.root / name
        root.mkdir()
        if video:
            write_video(root / "frames.mp4", self.frames)
        else:
            self._images(root / "frames", "{:05}.jpg")
        record = {"name": name, "fps": fps, "frames": "frames.mp4" if video else "frames"}
        for kind, path in self.networks.items():
            shutil.copy(path, root / path.name)
            record[kind] = path.name
        (root / "boxes.json").write_text(json.dumps(self.boxes))
        (root / "avatar.json").write_text(json.dumps({**record, "boxes": "boxes.json"}))
        return root

    def synctalk(self, generator: Path, name: str = "synctalk") -> Path:
        root = self.root / name
        self._images(root / "full_body_img", "{}.jpg")
        (root / "landmarks").mkdir()
        for number, box in enumerate(self.boxes):
            (root / "landmarks" / f"{number}.lms").write_text(landmarks(box))
        (root / "checkpoint").mkdir()
        weights = checkpoint.load(generator).state_dict()
        torch.save(weights, root / "checkpoint" / "195.pth")
        # lower numbers, which must not be taken, though they come later by name
        torch.save({"no": torch.zeros(1)}, root / "checkpoint" / "95.pth")
        return root

    def package(self, name: str = "package", *, video: bool = True, boxes: str = "list") -> Path:
        root = self.root / name
        root.mkdir()
        (root / "dataset_manifest.json").write_text(json.dumps({"version": "2.0", "name": name}))
        if video:
            write_video(root / "full_body_video.mp4", self.frames)
        else:
            self._images(root / "full_body_img", "{:06}.jpg")
        if boxes == "list":
            (root / "crop_rects.json").write_text(json.dumps(self.boxes))
        else:
            (root / "cache").mkdir()
            rects = {str(number): {"rect": box} for number, box in enumerate(self.boxes)}
            (root / "cache" / "crop_rectangles.json").write_text(json.dumps(rects))
        self._foreign_networks(root)
        return root

    def cpu_server(self, name: str = "cpu_server") -> Path:
        root = self.root / name
        self._images(root / "frames", "frame_{}.jpg")
        (root / "crop_rects.json").write_text(json.dumps(self.boxes))
        self._foreign_networks(root)
        return root

    def _foreign_networks(self, root: Path) -> None:
        for folder, file, kind in [
            ("checkpoint", "model_best.onnx", "generator"),
            ("models", "audio_encoder.onnx", "audio_encoder"),
        ]:
            (root / folder).mkdir()
            shutil.copy(self.networks[kind], root / folder / file)


def landmarks(box: list[int]) -> str:
    """Return 110 landmarks for a box, whose fractions must be truncated toward zero."""
    x0, y0, x1, _ = box
    points = [(5.5, 7.25)] * 110
    away = lambda value: value + (0.75 if value >= 0 else -0.75)  # noqa: E731
    points[1], points[31], points[52] = (away(x0), 3.0), (away(x1), 4.0), (8.0, away(y0))
    return "\n".join(f"{x} {y}" for x, y in points) + "\n"
