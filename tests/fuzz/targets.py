"""What is read from files, and how; and files to begin with, small and of many kinds."""

import io
import json
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ROOT
from tests.engine.tiny import write_avatar
from tests.fuzz import mutate
from tests.fuzz.mutate import mixed
from tests.fuzz.target import Target

CASES = ROOT / "tests" / "cases"
PICTURES = np.random.default_rng(1).integers(0, 256, (12, 48, 64, 3), np.uint8)
PICTURES[:, :24] //= 8  # a dark half, so that not all of it is noise
SOUND = (0.3 * np.sin(np.arange(6000) / 9))[None].astype(np.float32)


def _errors() -> tuple[type[Exception], ...]:
    from engine.errors import InputError
    from models.checkpoint import CheckpointError

    return InputError, CheckpointError


# --- media ---------------------------------------------------------------------------------------


def read_audio(path: Path) -> None:
    from engine.media.speech import read_speech

    read_speech(path)


def read_video(path: Path) -> None:
    """Open a film as an avatar's frames, and decode forwards, backwards, and some again."""
    from engine.avatar.frames import FrameCache, VideoFile

    film = VideoFile(path)
    count = len(film)
    numbers = [*range(min(count, 20)), *range(count - 1, max(count - 5, -1), -1), 0]
    if film.height * film.width * len(numbers) < 64 << 20:
        cache = FrameCache(film, 1 << 20)
        cache.read(numbers, np.empty((len(numbers), film.height, film.width, 3), np.uint8))


def sounds(folder: Path) -> list[bytes]:
    import av

    kinds = [
        ("a.wav", "pcm_s16le", 16000), ("b.wav", "pcm_f32le", 44100), ("c.flac", "flac", 48000),
        ("d.ogg", "libopus", 48000), ("e.mp3", "libmp3lame", 44100), ("f.m4a", "aac", 44100),
        ("g.mka", "libopus", 48000), ("h.aac", "aac", 22050), ("i.aiff", "pcm_s16be", 8000),
        ("j.w64", "pcm_s24le", 16000), ("k.mkv", "ac3", 48000),
    ]  # fmt: skip
    found = []
    for name, codec, rate in kinds:
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=rate)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(SOUND, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        found.append((folder / name).read_bytes())
    return [*found, (CASES / "eight_channels.opus").read_bytes()]


def films(folder: Path) -> list[bytes]:
    import av

    kinds = [
        ("a.mp4", "libx264", {"g": "6"}), ("b.mov", "libx264", {"bf": "0"}),
        ("c.mkv", "libx264", {}), ("d.webm", "libvpx-vp9", {"deadline": "realtime"}),
        ("e.avi", "mjpeg", {}), ("f.avi", "mpeg4", {}), ("g.ts", "mpeg2video", {}),
        ("h.mp4", "libx265", {"x265-params": "log-level=none"}), ("i.webm", "libvpx", {}),
    ]  # fmt: skip
    found = []
    for name, codec, options in kinds:
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width = PICTURES.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number, picture in enumerate(PICTURES):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        found.append((folder / name).read_bytes())
    return [*found, (CASES / "late_sound.mp4").read_bytes()]


def pictures(_: Path) -> list[bytes]:
    from PIL import Image

    rgb = Image.fromarray(PICTURES[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}), (rgb.convert("L"), "PNG", {}), (rgb.convert("RGBA"), "PNG", {}),
        (rgb.quantize(16), "PNG", {}), (rgb.convert("1"), "PNG", {}),
        (Image.fromarray(np.full((48, 64), 4000, np.uint16)), "PNG", {}),
        (rgb, "PNG", {"exif": exif}), (rgb, "PNG", {"icc_profile": b"profile" * 20}),
        (rgb, "JPEG", {}), (rgb.convert("L"), "JPEG", {}), (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}),
        (rgb, "TIFF", {}), (rgb, "GIF", {}), (rgb, "BMP", {}), (rgb, "WEBP", {}),
    ]  # fmt: skip
    found = []
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


# --- avatars -------------------------------------------------------------------------------------


_root: list[Path] = []  # a folder for avatars, in the child


def prepare() -> None:
    """Write avatar folders, of which each target replaces one file."""
    if _root:
        return
    root = Path(tempfile.mkdtemp(prefix="viseme-fuzz-"))
    native = write_avatar(root / "native")
    # what an avatar of the package layout has, beside that of the native one
    shutil.copytree(native / "frames", native / "full_body_img")
    shutil.copy(native / "boxes.json", native / "crop_rects.json")
    write_avatar(root / "boxes")
    write_avatar(root / "image", frames=1)
    for name in ("full_body_img", "landmarks"):
        (root / "synctalk" / name).mkdir(parents=True)
    shutil.copy(native / "frames" / "0.png", root / "synctalk" / "full_body_img")
    _root.append(root)


def load(name: str) -> None:
    """Open an avatar folder, and read its first and its last frame."""
    from engine import Avatar

    avatar = Avatar.load(_root[0] / name, networks=False)
    avatar.batch([0, len(avatar) - 1])


def read_avatar(path: Path) -> None:
    """Open a folder with this avatar.json, or dataset_manifest.json if it has a version."""
    data, names = path.read_bytes(), ("avatar.json", "dataset_manifest.json")
    for name in names:
        (_root[0] / "native" / name).unlink(missing_ok=True)
    (_root[0] / "native" / names[b'"version"' in data]).write_bytes(data)
    load("native")


def read_boxes(path: Path) -> None:
    shutil.copy(path, _root[0] / "boxes" / "boxes.json")
    load("boxes")


def read_landmarks(path: Path) -> None:
    shutil.copy(path, _root[0] / "synctalk" / "landmarks" / "0.lms")
    load("synctalk")


def read_image(path: Path) -> None:
    frames = _root[0] / "image" / "frames"
    for old in frames.iterdir():
        old.unlink()
    shutil.copy(path, frames / f"0{path.suffix}")
    load("image")


def boxes(_: Path) -> list[bytes]:
    rects = [[10 + n, 20, 60 + n, 70] for n in range(6)]
    objects: list[object] = [
        rects,
        {str(n): {"rect": rect} for n, rect in enumerate(rects)},
        {f"{n:05}": rect for n, rect in enumerate(rects)},
        [[0.5, 1.0, 50.5, 51.0], [-10, -10, 40, 40]],
    ]
    return [json.dumps(each).encode() for each in objects]


def avatars(_: Path) -> list[bytes]:
    parts = {
        "name": "tiny", "frames": "frames", "boxes": "boxes.json",
        "generator": "meter.onnx", "audio_encoder": "loudness_encoder.onnx",
    }  # fmt: skip
    objects: list[object] = [
        {**parts, "fps": 25},
        {**parts, "fps": "30000/1001"},
        {"version": "2.0", "name": "tiny", "fps": 25},
    ]
    return [json.dumps(each).encode() for each in objects]


def landmarks(_: Path) -> list[bytes]:
    points = [(5.5, 7.25)] * 110
    points[1], points[31], points[52] = (10.5, 3), (60, 4), (8, 20.75)
    return ["\n".join(f"{x} {y}" for x, y in points).encode()]


# --- networks ------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> None:
    from models.checkpoint import load

    load(path)


def weights() -> dict[str, Any]:
    """Return tensors with some names of the audio encoder, and of others."""
    import torch

    random = torch.Generator().manual_seed(1)
    names = ["encoder.0.weight", "module.encoder.0.bias", "outc.conv.weight", "steps"]
    return {
        name: torch.randn(2, 3, generator=random).to(kind)
        for name, kind in zip(
            names, (torch.float32, torch.float16, torch.bfloat16, torch.int64), strict=True
        )
    }


def pickles(_: Path) -> list[bytes]:
    import torch

    found = []
    for content in (weights(), {"model": weights(), "epoch": 3, "note": "x"}):
        for is_zip in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=is_zip)
            found.append(file.getvalue())
    return found


def safetensors(_: Path) -> list[bytes]:
    from safetensors.torch import save

    return [save(weights()), save(weights(), metadata={"kind": "audio_encoder"})]


def read_network(path: Path) -> None:
    """Open an audio encoder, or what else it is, and run it."""
    import torch

    from engine.errors import InputError
    from engine.runtime import open_network
    from engine.runtime.signature import AUDIO_ENCODER, GENERATOR

    cpu = torch.device("cpu")
    try:
        network = open_network(AUDIO_ENCODER, path, device=cpu)
        network(torch.ones(2, 1, 80, 16), out=torch.empty(2, 512))
    except InputError:
        network = open_network(GENERATOR, path, device=cpu)
        inputs = torch.ones(1, 6, 320, 320), torch.ones(1, 32, 16, 16)
        network(*inputs, out=torch.empty(1, 3, 320, 320))


def networks(_: Path) -> list[bytes]:
    names = ("loudness_encoder", "identity", "meter")
    return [(CASES / f"{name}.onnx").read_bytes() for name in names]


def read_plan_record(path: Path) -> None:
    from engine.plans.record import read_record

    read_record(path.with_suffix(".plan"))


def plan_records(_: Path) -> list[bytes]:
    key = {
        "network": "generator", "source_sha256": "0" * 64, "edition": "tensorrt_rtx",
        "version": "1.2", "architectures": [89, 90], "precision": "fp16", "batch": [1, 25, 40],
        "format": 4,
    }  # fmt: skip
    tensors = [["input", "fp16", [-1, 6, 320, 320]], ["audio", "fp16", [-1, 32, 16, 16]]]
    record = {
        "key": key, "source": "generator.pth", "onnx_sha256": "1" * 64, "inputs": tensors,
        "outputs": [["output", "fp16", [-1, 3, 320, 320]]], "scratch_bytes": 1000,
        "build_seconds": 3.5, "plan_bytes": 5, "plan_sha256": "2" * 64,
    }  # fmt: skip
    return [json.dumps(record).encode(), json.dumps({**record, "scratch_bytes": None}).encode()]


def of_image(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"


def warm_up() -> None:
    """Import everything, so that the libraries' own memory does not count."""
    import models.checkpoint  # noqa: F401


SOME_JSON = mixed(mutate.mutate_json, 0.8)
READERS: dict[str, tuple[Any, Any, Any, Any]] = {
    "audio": (read_audio, sounds, ".bin", mixed(mutate.mutate_chunks, 0.4)),
    "video": (read_video, films, ".bin", mixed(mutate.mutate_chunks, 0.4)),
    "image": (read_image, pictures, of_image, mixed(mutate.mutate_chunks)),
    "boxes": (read_boxes, boxes, ".json", SOME_JSON),
    "avatar": (read_avatar, avatars, ".json", SOME_JSON),
    "landmarks": (read_landmarks, landmarks, ".lms", mixed(mutate.mutate_lines, 0.7)),
    "safetensors": (read_checkpoint, safetensors, ".safetensors", mixed(mutate.mutate_safetensors)),
    "pth": (read_checkpoint, pickles, ".pth", mixed(mutate.mutate_zip)),
    "onnx": (read_network, networks, ".onnx", mixed(mutate.mutate_onnx, 0.8)),
    "plan": (read_plan_record, plan_records, ".json", SOME_JSON),
}


def start() -> None:
    warm_up()
    prepare()


TARGETS = {
    name: Target(*reader, allowed=_errors(), prepare=start) for name, reader in READERS.items()
}
