"""Fixtures: a small avatar in every layout, and networks for TensorRT."""

import fcntl
import hashlib
import json
import shutil
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from engine.cache import cache_folder
from engine.faces import FaceNetworks, face_networks
from engine.faces.fetch import Unavailable, fetch, from_folder
from engine.faces.nets import DETECTOR, MESH
from engine.files import write_whole
from engine.runtime.exported import exported
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from tests.conftest import DEMO
from tests.engine import onnx_files
from tests.engine.files import Folders

# GPU hosts may have neither: the other tests need no media files
if not (find_spec("av") and find_spec("scipy")):
    collect_ignore = ["media", "preparing", "live/test_command.py", "runtime/test_output_check.py"]
    collect_ignore += [
        f"test_{name}.py"
        for name in (
            *("changed_files", "doctor", "freed", "interruption", "long_speech"),
            *(
                "prepare",
                "prepare_faces",
                "prepare_odd",
                "render",
                "render_speech",
                "render_video",
                "scarce_resources",
            ),
        )
    ]
    collect_ignore += [
        f"avatar/test_{name}.py" for name in ("containers", "damaged_videos", "frames")
    ]
    collect_ignore += [
        f"faces/test_{name}.py" for name in ("boxes", "detector", "mesh", "tflite", "tracking")
    ]


@pytest.fixture(scope="session")
def small(person) -> tuple[np.ndarray, list[list[int]]]:
    """12 frames of 500 x 391 around the person's face, and their boxes."""
    boxes = json.loads((DEMO / "boxes.json").read_text())[::10][:12]
    left, top = 200, 330
    frames = person[:12, top : top + 391, left : left + 500].numpy()
    return frames, [[x0 - left, y0 - top, x1 - left, y1 - top] for x0, y0, x1, y1 in boxes]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, small, networks) -> Folders:
    """The avatar folders, for tests that only read them."""
    return Folders(tmp_path_factory.mktemp("avatars"), *small, networks)


@pytest.fixture(scope="session")
def native(folders) -> Path:
    return folders.native("shared")


@pytest.fixture
def own(tmp_path, small, networks) -> Folders:
    """Copies of the avatar folders, for tests that change them."""
    frames, _ = small
    return Folders(tmp_path / "avatars", frames[:4, :200, :200], [[20, 30, 120, 130]] * 4, networks)


@pytest.fixture(scope="session")
def trt():
    """TensorRT for RTX, which parses and builds without a GPU."""
    return pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this platform")


@pytest.fixture(scope="session")
def export_cache(tmp_path_factory) -> Path:
    """A shared XDG_CACHE_HOME for tests that export checkpoints, which is slow, so that it is done
    once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def halves(fp16_safe_checkpoints, export_cache, shared_folder) -> dict[str, Path]:
    """Both networks as float16 ONNX files with a free batch, as the engine exports checkpoints."""

    def export_all(root: Path) -> list[Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(root))
            return [
                exported(s, fp16_safe_checkpoints[s.kind], "fp16")
                for s in (GENERATOR, AUDIO_ENCODER)
            ]

    shared = shared_folder("halves", export_all)
    shutil.copytree(shared, export_cache, dirs_exist_ok=True)
    return dict(zip(("generator", "audio_encoder"), export_all(export_cache), strict=True))


def keep_export(kind: str, checkpoint: Path, network: Path) -> None:
    """Put the ONNX file of a checkpoint into the cache, as if the engine had exported it."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:32]
    checksum = f"{zlib.crc32(network.read_bytes()):08x}"
    shutil.copy(network, cache_folder() / f"{kind}-{digest}-fp32-{checksum}.onnx")


@pytest.fixture(scope="session")
def sources(fp16_safe_checkpoints, halves, checkpoints, networks, export_cache, tmp_path_factory):
    """(kind, precision, form) -> a network's file; the form is checkpoint, free or fixed."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(export_cache))
        for kind, path in checkpoints.items():
            keep_export(kind, path, networks[kind])
    found = {}
    for precision, saved, free in (
        ("fp16", fp16_safe_checkpoints, halves),
        ("fp32", checkpoints, networks),
    ):
        for kind in saved:
            found[kind, precision, "checkpoint"] = saved[kind]
            found[kind, precision, "free"] = free[kind]
            fixed = onnx_files.fixed_batch(free[kind], folder / f"{kind}-{precision}.onnx")
            found[kind, precision, "fixed"] = fixed
    return found


@pytest.fixture(scope="session")
def older(fp16_safe_checkpoints, shared_folder) -> Path:
    """A float32 generator for one frame, with other tensor names, whose values fit float16."""

    def make(folder: Path) -> None:
        onnx_files.older_export(fp16_safe_checkpoints["generator"], folder / "older.onnx")

    return shared_folder("older", make) / "older.onnx"


@pytest.fixture(scope="session")
def face_models(request) -> Path:
    """A folder for `--models`, with the files of the networks that find faces.

    They are fetched as for users, once for a checkout.
    """
    folder = request.config.cache.mkdir("faces")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of another worker
        for file in (DETECTOR, MESH):
            try:
                from_folder(file, folder)
            except Unavailable:
                try:
                    data = fetch(file)
                except Unavailable as error:
                    pytest.skip(f"{file.name} cannot be fetched: {error}")
                write_whole(folder / file.name, lambda path, data=data: path.write_bytes(data))
    return folder


@pytest.fixture(scope="session")
def face_nets(face_models, tmp_path_factory) -> FaceNetworks:
    """The networks that find faces, converted by this checkout."""
    pytest.importorskip("tflite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("faces")))
        return face_networks(face_models)
