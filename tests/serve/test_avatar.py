"""Avatars of the configuration: their folders or files, what they take, and that it comes back."""

import asyncio
import gc
import json
import logging
import shutil
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.batches import BatchRequest
from engine.errors import InputError
from engine.live import Scheduler
from engine.live.live import _has_bf16
from engine.media.jpeg import encode_jpeg
from examples import DEMO
from serve.avatar import load_avatar
from serve.config import Config, Gpus, Model
from serve.registry import Registry
from tests.engine.files import write_video
from tests.engine.tiny import NETWORKS, write_avatar

CPU = Gpus(count=0)
LONG = 30.0


@pytest.fixture
def scheduler():
    found = Scheduler()
    found.start()
    yield found
    found.close()


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_avatar(tmp_path / "tiny")


def go_model(tiny: Path, **changes) -> Model:
    """The same avatar as an entry of the Go server's configuration."""
    entry = {
        "model_path": tiny / NETWORKS["generator"].name,
        "background_dir": tiny / "frames",
        "crop_rects_path": tiny / "boxes.json",
        "num_frames": 6,
    }
    return Model(**{**entry, **changes})


def batch(served, **request) -> list[bytes]:
    speech = 0.3 * np.random.default_rng(1).standard_normal(16000).astype(np.float32)
    request = BatchRequest(**{"count": 4, "start": 1, "speech": speech, **request})
    return served.batches.submit(request).result(LONG).files


def test_a_folder_and_the_go_servers_files_are_the_same_avatar(tiny, scheduler):
    encoder = tiny / NETWORKS["audio_encoder"].name
    config = Config(gpus=CPU, audio_encoder=encoder)
    folder = load_avatar("folder", Model(avatar=tiny), Config(gpus=CPU), 0, scheduler)
    files = load_avatar("files", go_model(tiny), config, 0, scheduler)
    try:
        assert (files.name, files.gpu, len(files.avatar)) == ("files", 0, 6)
        assert files.avatar.audio_encoder == encoder
        assert files.live.scheduler is scheduler and folder.live.scheduler is scheduler
        assert batch(folder) == batch(files) and len(set(batch(files))) == 4
        for served in (folder, files):
            with served.live.open(clock="taken") as session:
                session.push(np.zeros(8000, np.float32))
                session.flush()
                assert session.take(LONG).frames.shape == (1, 96, 80, 3)
    finally:
        folder.close()
        files.close()
    with pytest.raises(InputError, match="closed"):
        files.live.open()
    assert scheduler.failure is None


@pytest.mark.parametrize("configured", [None, "fp32", "bf16"])
def test_precision(tiny, scheduler, configured):
    """Unless one is configured, live sessions take what is fast, and renders what is exact."""
    can = _has_bf16()
    if configured == "bf16" and not can:
        pytest.skip("this CPU does not multiply bfloat16")
    config = Config(gpus=CPU, networks={"precision": configured})
    served = load_avatar("a", Model(avatar=tiny), config, 0, scheduler)
    try:
        found = [
            "bfloat16" in live.pipeline.generator.description
            for live in (served.live, served.renders)
        ]
        assert found == ([can, False] if configured is None else [configured == "bf16"] * 2)
        assert (served.live is served.renders) == (configured is not None or not can)
    finally:
        served.close()


def test_quality_and_batch_size_are_the_configurations(tiny, scheduler):
    sizes = []
    for quality, batch_size in ((30, 2), (90, 3)):
        config = Config(
            gpus=CPU, output={"jpeg_quality": quality}, networks={"batch_size": batch_size}
        )
        served = load_avatar("a", Model(avatar=tiny), config, 0, scheduler)
        sizes.append(len(batch(served)[0]))
        assert served.live.pipeline.batch_size == batch_size
        served.close()
    assert sizes[0] < sizes[1]


def test_which_audio_encoder(tiny, tmp_path, scheduler):
    """The model's, the folder's own, the configuration's: the first one that there is."""
    own = tiny / NETWORKS["audio_encoder"].name
    others = [Path(shutil.copy(own, tmp_path / f"{name}.onnx")) for name in ("model", "all")]
    config = Config(gpus=CPU, audio_encoder=others[1])
    layout = tmp_path / "cpu_server"  # has no encoder of its own
    shutil.copytree(tiny / "frames", layout / "frames")
    shutil.copy(tiny / "boxes.json", layout / "crop_rects.json")
    (layout / "checkpoint").mkdir()
    shutil.copy(NETWORKS["generator"], layout / "checkpoint" / "model_best.onnx")
    for model, expected in [
        (Model(avatar=tiny), own),
        (Model(avatar=tiny, audio_encoder=others[0]), others[0]),
        (Model(avatar=layout), others[1]),
        (go_model(tiny, audio_encoder=others[0]), others[0]),
        (go_model(tiny), others[1]),
    ]:
        served = load_avatar("a", model, config, 0, scheduler)
        assert served.avatar.audio_encoder == expected
        served.close()
    with pytest.raises(InputError, match="no audio encoder"):
        load_avatar("a", Model(avatar=layout), Config(gpus=CPU), 0, scheduler)


def test_a_video_instead_of_a_folder(tiny, tmp_path, scheduler, caplog):
    frames = np.random.default_rng(7).integers(0, 256, (6, 96, 80, 3), np.uint8)
    video = write_video(tmp_path / "film.mp4", frames)
    config = Config(gpus=CPU, audio_encoder=NETWORKS["audio_encoder"])
    for folder in (None, tmp_path / "not extracted", tiny / "frames"):
        caplog.clear()
        model = go_model(tiny, background_dir=folder, source_video=video)
        with caplog.at_level(logging.WARNING):
            served = load_avatar("a", model, config, 0, scheduler)
        shown = served.avatar.batch([2])[0][0].numpy()
        assert np.array_equal(shown, frames[2]) == (folder != tiny / "frames")
        assert ("is not a folder; the frames of" in caplog.text) == (
            folder == tmp_path / "not extracted"
        )
        served.close()


def test_the_first_frames(tiny, scheduler):
    config = Config(gpus=CPU, audio_encoder=NETWORKS["audio_encoder"])
    for model in (go_model(tiny, num_frames=4), Model(avatar=tiny, num_frames=4)):
        served = load_avatar("a", model, config, 0, scheduler)
        assert len(served.avatar) == 4
        served.close()
    with pytest.warns(UserWarning, match="6 frames and 6 boxes, fewer than the 523"):
        load_avatar("a", go_model(tiny, num_frames=523), config, 0, scheduler).close()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"background_dir": None}, "model 'a' has no background_dir or source_video"),
        ({"crop_rects_path": None}, "model 'a' has no crop_rects_path"),
        ({"model_path": None}, r"model 'a' has no model_path; expected it, or avatar \(a folder\)"),
        ({"background_dir": "/nowhere"}, "/nowhere does not exist"),
        ({"model_path": "/no.onnx"}, r"/no.onnx \(generator\) does not exist"),
        ({"parsing": True}, "model 'a' has parsing, but no avatar; expected avatar: DIR with it"),
        ({"avatar": "/a"}, "model 'a' has avatar and background_dir; expected one of them"),
    ],
)
def test_faults_of_an_entry(tiny, scheduler, change, line):
    config = Config(gpus=CPU, audio_encoder=NETWORKS["audio_encoder"])
    with pytest.raises(InputError, match=line):
        load_avatar("a", go_model(tiny, **change), config, 0, scheduler)


def test_masks(tiny, scheduler):
    """A client gets the avatar's own frames if all is kept."""
    (tiny / "parsing").mkdir()
    for number in range(6):
        Image.new("RGB", (80, 96), "red").save(tiny / "parsing" / f"{number}.png")
    config, files = Config(gpus=CPU), []
    for parsing in (False, True):
        served = load_avatar("a", Model(avatar=tiny, parsing=parsing), config, 0, scheduler)
        files.append(batch(served))
        served.close()
    own = served.avatar.batch([1, 2, 3, 4])[0].numpy()
    assert files[1] == [encode_jpeg(frame, config.output.jpeg_quality, "4:2:0") for frame in own]
    assert files[0] != files[1]


def test_a_failing_load_leaves_nothing(tiny, scheduler, monkeypatch):
    before = threading.active_count()
    (tiny / "boxes.json").write_text(json.dumps([[10, 20, 60, 70]] * 5 + [[900, 900, 950, 950]]))
    with pytest.raises(InputError, match="frame 5"):
        load_avatar("a", Model(avatar=tiny), Config(gpus=CPU), 0, scheduler)
    assert threading.active_count() == before


def test_what_it_takes(tiny, scheduler):
    served = load_avatar("a", Model(avatar=tiny), Config(gpus=CPU), 0, scheduler)
    frames, networks = 6 * 96 * 80 * 3, sum(path.stat().st_size for path in NETWORKS.values())
    rings = 512 * 128 * 512 * 4
    roi = 320 * 320 * (6 + 3) * 4  # of the one frame that is generated at once
    assert frames + networks + rings + roi < served.bytes < 2 * (rings + frames + networks + roi)
    served.close()


def test_a_session_may_wait_between_utterances(tiny):
    """Nobody takes its pieces for as long as its client says nothing."""

    async def work() -> int:
        registry = Registry(Config(models={"tiny": Model(avatar=tiny)}, gpus=CPU))
        async with registry.use("tiny") as use:
            scheduler, ends = use.served.live.scheduler, time.monotonic() + LONG
            with use.served.live.open(clock="taken") as session:
                session.push(np.zeros(8000, np.float32))
                session.flush()
                while not session._state.queue:
                    assert time.monotonic() < ends
                    await asyncio.sleep(0.01)
                session._state.waiting_since -= 3600
                swept = scheduler._next_sweep
                while scheduler._next_sweep <= swept + 1:  # it looks at all sessions
                    assert time.monotonic() < ends
                    await asyncio.sleep(0.01)
                pieces = []
                async for piece in session:
                    pieces.append(piece)
                    if piece.end:
                        break
        await registry.close()
        return len(pieces)

    assert asyncio.run(work()) == 13


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_demo_comes_and_goes_and_its_memory_comes_back():
    """Loads, uses it for a batch and a session, and unloads, five times over."""

    async def work() -> None:
        registry = Registry(Config(models={"demo": Model(avatar=DEMO)}, gpus=CPU))
        sizes = []
        for _ in range(6):
            async with registry.use("demo", timeout=300) as use:
                found = [weakref.ref(part) for part in (use.served, use.served.avatar)]
                found += [weakref.ref(use.served.live.pipeline), weakref.ref(use.served.batches)]
                found += [weakref.ref(use.served.live._renderer)]
                size = use.served.bytes
                files = await asyncio.to_thread(batch, use.served, count=2)
                assert all(file.startswith(b"\xff\xd8") for file in files)
                with use.served.live.open(clock="taken") as session:
                    session.push(np.zeros(8000, np.float32))
                    session.flush()
                    assert (await asyncio.to_thread(session.take, LONG)).frames.any()
            del use, session
            await registry.unload("demo")
            ends = time.monotonic() + LONG
            while any(part() for part in found) and time.monotonic() < ends:  # threads may hold it
                await asyncio.sleep(0.01)
            assert [part() for part in found] == [None] * len(found)
            sizes.append(resident())
        assert sizes[-1] - sizes[0] < size  # five rounds after the first
        await registry.close()

    before = set(threading.enumerate())
    gc.collect()
    gc.disable()  # nothing waits for it
    try:
        asyncio.run(work())
    finally:
        gc.enable()
    ours = {thread.name for thread in set(threading.enumerate()) - before}
    assert not ours
