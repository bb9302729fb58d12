"""Numbered images, and the choice of the JPEG encoder for frames on a GPU."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.media import images
from engine.media.images import ImageWriter, on_gpu

CPU = torch.device("cpu")


class OnGpu:
    """Frames that claim to be on a GPU."""

    is_cuda, device = True, CPU

    def __init__(self, pixels: np.ndarray):
        self._frames = [torch.from_numpy(frame) for frame in pixels]

    def __iter__(self):
        return iter(self._frames)

    def __len__(self):
        return len(self._frames)


class Codec(ModuleType):
    """A fake nvImageCodec, whose `encode` returns files, or fails in the ways of the real one."""

    QualityType = SimpleNamespace(QUALITY="quality")
    ChromaSubsampling = SimpleNamespace(CSS_444="444", CSS_420="420")
    BackendKind = SimpleNamespace(
        CPU_ONLY="cpu", GPU_ONLY="gpu", HYBRID_CPU_GPU="hybrid", HW_GPU_ONLY="hardware"
    )
    Backend, EncodeParams = staticmethod(str), SimpleNamespace

    def __init__(self, encode):
        super().__init__("nvidia.nvimgcodec")
        self.made, self._encode = [], encode

    def Encoder(self, device_id, backends):
        self.made.append((device_id, backends))
        return SimpleNamespace(encode=self._encode)

    def as_images(self, frames, cuda_stream):
        assert cuda_stream == 1
        return frames


def jpegs(frames, suffix, params, cuda_stream):
    """Return one bytes-like object per frame, as nvImageCodec does."""
    assert suffix == ".jpg" and params.chroma_subsampling == "444"
    files = []
    for frame in frames:
        file = io.BytesIO()
        options = {"quality": params.quality_value, "subsampling": 0}
        Image.fromarray(frame.numpy()).save(file, "JPEG", **options)
        files.append(bytearray(file.getvalue() + b"of the GPU"))
    return files


@pytest.fixture
def install(monkeypatch):
    """Replace nvImageCodec's module with a fake, or with nothing."""
    on_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))

    def put(codec):
        package = ModuleType("nvidia")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "nvidia", package)
        monkeypatch.delitem(sys.modules, "nvidia.nvimgcodec", raising=False)
        if codec is not None:
            package.nvimgcodec = codec
        return codec

    yield put
    on_gpu.cache_clear()


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 6, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def write(folder, pixels) -> list[bytes]:
    with ImageWriter(folder, "jpg", quality=80) as writer:
        for _ in range(2):
            writer.write(OnGpu(pixels), pixels)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_the_gpus_encoder_is_used(install, tmp_path, pixels, recwarn):
    codec = install(Codec(jpegs))
    files = write(tmp_path / "a", pixels)
    assert len(files) == 6 and all(file.endswith(b"of the GPU") for file in files)
    with Image.open(tmp_path / "a" / "000002.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - pixels[2]).mean() < 8
    # tried once, then one for the writer; on the GPU alone
    assert codec.made == [(0, ["gpu", "hybrid", "hardware"])] * 2
    assert len(recwarn) == 0


def fails(*_, **__):
    raise RuntimeError("Internal error - Could not create encoder. Code: 8\nand more")


BROKEN = {
    "no encoder": (
        lambda frames, *_, **__: [None] * len(frames),
        "nvImageCodec encoded 0 of 1 frames",
    ),
    "left out": (lambda *_, **__: [], "nvImageCodec encoded 0 of 1 frames"),
    "no GPU": (fails, "Internal error - Could not create encoder. Code: 8;"),
    "no JPEG": (lambda frames, *_, **__: [b"BM"] * len(frames), "nvImageCodec encodes no JPEG;"),
    "not installed": (None, r"nvImageCodec cannot be loaded \(.*nvimgcodec"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_pillow_encodes_if_nvimagecodec_cannot(install, tmp_path, pixels, case):
    encode, reason = BROKEN[case]
    install(None if encode is None else Codec(encode))
    message = rf"^JPEGs are encoded on the CPU, not on cpu: {reason}.*the extra 'jpeg' installs"
    with pytest.warns(UserWarning, match=message) as said:
        files = write(tmp_path / "a", pixels)
        again = write(tmp_path / "b", pixels)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    Image.fromarray(pixels[0]).save(tmp_path / "0.jpg", quality=80, subsampling=0)
    assert files == again and files[0] == files[3] == (tmp_path / "0.jpg").read_bytes()


def test_nothing_is_tried_for_frames_on_a_cpu(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(images, "on_gpu", lambda *_: pytest.fail("a GPU was asked for"))
    with ImageWriter(tmp_path / "a", "jpg") as writer:
        writer.write(torch.from_numpy(pixels), pixels)
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_two_writers_of_one_folder(tmp_path, pixels):
    """The first that is finished gets the name; of the other nothing stays."""
    frames = torch.from_numpy(pixels)
    with pytest.raises(OSError, match="not empty"), ImageWriter(tmp_path / "a", "png") as slow:
        slow.write(frames[:1], pixels[:1])
        with ImageWriter(tmp_path / "a", "png") as quick:
            quick.write(frames, pixels)
        slow.write(frames, pixels)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert len(list((tmp_path / "a").iterdir())) == 3
