"""A real server of a small avatar: frames next to a render's, files next to Pillow's."""

import asyncio
import io
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import kernels
from engine import Avatar, Pipeline
from serve.config import Config
from serve.registry import Registry
from serve.rpc.monolithic import add_to_server
from tests.engine.tiny import write_avatar
from tests.serve.rpc.fakes import Running
from tests.serve.rpc.go_client import GoClient, Messages

QUALITY = 60
FRAMES, BATCH, CONTEXT = 90, 15, 15  # a context of 15 frames holds all that a frame hears


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """A server of an avatar, the avatar itself, 4 s of speech, and its renders."""
    folder = write_avatar(tmp_path_factory.mktemp("tiny") / "tiny", height=97, width=83)
    config = Config.model_validate(
        {
            "models": {"tiny": {"avatar": folder}},
            "gpus": {"count": 0},
            "output": {"jpeg_quality": QUALITY},
            "networks": {"batch_size": 8},
            "limits": {"max_requests": 16},
        }
    )
    avatar = Avatar.load(folder, device="cpu")
    count = np.arange(4 * 16000)
    noise = np.random.default_rng(3).uniform(-1, 1, len(count))
    speech = (noise * (1 + np.sin(count / 3000)) / 8).astype(np.float32)
    pipeline = Pipeline(avatar, batch_size=8)

    def render(mode: str) -> list[np.ndarray]:
        batches = pipeline.render(torch.from_numpy(speech), loop="wrap", mode=mode)
        return list(torch.cat(list(batches)).numpy()[:FRAMES])

    return SimpleNamespace(config=config, avatar=avatar, speech=speech, render=render)


@pytest.fixture(scope="module")
def client(tiny) -> Iterator[GoClient]:
    made = []

    def add(server) -> None:
        made.append(Registry(tiny.config))
        add_to_server(made[0], tiny.config, server)

    with Running(add) as running:
        try:
            with GoClient(running.port, Messages()) as client:
                client.port = running.port
                yield client
        finally:
            asyncio.run_coroutine_threadsafe(made[0].close(), running.loop).result(60)


def batches(client: GoClient, speech: np.ndarray, **more) -> list[bytes]:
    """Return the files of 90 frames, asked for in batches that know nothing of each other."""
    files = []
    for first in range(0, FRAMES, BATCH):
        context = min(first, CONTEXT)
        fields = {name: value(first) for name, value in more.items()}
        answer = client.infer(
            model_id="tiny", batch_size=BATCH, start_frame_idx=first, audio_context_frames=context,
            raw_audio=speech[640 * (first - context) :].tobytes(), **fields,
        )  # fmt: skip
        assert answer.success, answer.error
        files += answer.composited_frames
    return files


def encoded(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "jpeg", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def assert_shows(files: list[bytes], frames: list[np.ndarray]) -> None:
    """Check that files hold frames, but for the rounding of another processor."""
    assert len(files) == len(frames)
    for file, frame in zip(files, frames, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(file)), np.int16)
        expected = np.asarray(Image.open(io.BytesIO(encoded(frame))), np.int16)
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).mean() < 0.2


def faces(avatar: Avatar, first: int) -> np.ndarray:
    """(15, 6, 320, 320): what a client that has the avatar's frames makes of them."""
    numbers = [(first + i) % len(avatar) for i in range(BATCH)]
    inputs, _ = kernels.face_input(*avatar.batch(numbers))
    return inputs.float().numpy()


def test_the_servers_own_frames(client, tiny):
    frames = tiny.render("crop")
    assert np.abs(frames[0].astype(int) - frames[30]).mean() > 0.1  # the speech is seen
    assert_shows(batches(client, tiny.speech), frames)


@pytest.mark.parametrize("planar", [False, True])
def test_frames_of_the_clients_faces(client, tiny, planar):
    def visual(first: int) -> bytes:
        made = faces(tiny.avatar, first)
        return (np.concatenate([made[:, :3], made[:, 3:]]) if planar else made).tobytes()

    assert_shows(batches(client, tiny.speech, visual_frames=visual), tiny.render("direct"))


def test_frames_far_away(client, tiny):
    """The avatar has 6 frames; none of them is at 2**31 - 1 or before 0, but they repeat."""
    sound = {"model_id": "tiny", "audio_features": bytes(32768)}
    frames = client.infer(**sound, batch_size=6).composited_frames
    assert len(set(frames)) == 6
    for start in (-1, -(2**31), 2**31 - 1):
        answer = client.infer(**sound, batch_size=8, start_frame_idx=start)
        assert list(answer.composited_frames) == [frames[(start + i) % 6] for i in range(8)]


def test_sound_at_other_rates(client, tiny):
    """The same sound at 48 kHz gives nearly the same frames."""
    time = np.arange(32000) / 16000

    def ask(rate: int) -> np.ndarray:
        at = np.arange(2 * rate) / rate
        sound = (np.interp(at, time, np.cumsum(tiny.speech[:32000]) / 50)).astype("<f4")
        answer = client.infer(model_id="tiny", batch_size=20, raw_audio=sound.tobytes(), sample_rate=rate)  # fmt: skip
        assert answer.success
        return np.stack([np.asarray(Image.open(io.BytesIO(f)), int) for f in answer.composited_frames])  # fmt: skip

    assert np.abs(ask(48000) - ask(16000)).mean() < 1.5


@pytest.mark.parametrize("samples", [1, 100, 2999, 3000, 20_000])
def test_little_sound(client, tiny, samples):
    sound = tiny.speech[:samples].tobytes()
    answer = client.infer(model_id="tiny", batch_size=32, raw_audio=sound)
    assert answer.success and len(answer.composited_frames) == 32


# --- files ----------------------------------------------------------------------------------------


def segments(file: bytes) -> list[tuple[int, bytes]]:
    """Return the markers of a JPEG file and what belongs to them, up to the scan."""
    assert file[:2] == b"\xff\xd8" and file[-2:] == b"\xff\xd9"
    found, place = [], 2
    while not found or found[-1][0] != 0xDA:
        lead, marker, size = struct.unpack_from(">BBH", file, place)
        assert lead == 0xFF
        found.append((marker, file[place + 4 : place + 2 + size]))
        place += 2 + size
    return found


def quantisation(file: bytes) -> list[list[int]]:
    tables = {}
    for marker, content in segments(file):
        while marker == 0xDB and content:
            assert content[0] >> 4 == 0  # of 8 bits
            tables[content[0] & 15] = list(content[1:65])
            content = content[65:]
    return [tables[number] for number in sorted(tables)]


def test_the_files_are_baseline_jpegs(client, tiny):
    frames = client.infer(model_id="tiny", batch_size=2, audio_features=bytes(32768))
    for file in frames.composited_frames:
        found = segments(file)
        (start,) = [
            content for marker, content in found if 0xC0 <= marker <= 0xCF and marker != 0xC4
        ]
        assert [marker for marker, _ in found].count(0xC0) == 1  # SOF0: baseline
        depth, height, width, components = struct.unpack_from(">BHHB", start)
        assert (depth, height, width, components) == (8, 97, 83, 3)
        sampling = [start[7 + 3 * i] for i in range(3)]
        assert sampling == [0x22, 0x11, 0x11]  # 4:2:0
        pillows = encoded(np.zeros((97, 83, 3), np.uint8))
        assert quantisation(file) == quantisation(pillows)
        scan = found[-1][1]
        assert scan[0] == 3 and scan[-3:] == b"\0\x3f\0"  # one scan, sequential


# --- many clients ---------------------------------------------------------------------------------


def test_clients_get_their_own_frames(client, tiny):
    """6 clients, 90 frames each: bit for bit those of a run alone."""
    speeches = [np.roll(tiny.speech, 7001 * person) for person in range(6)]
    more = {"visual_frames": lambda first: faces(tiny.avatar, first).tobytes()}
    options = [more if person == 0 else {} for person in range(6)]
    alone = [batches(client, speech, **o) for speech, o in zip(speeches, options, strict=True)]
    together = [[] for _ in range(6)]

    def run(person: int) -> None:
        with GoClient(client.port, client.messages) as own:
            together[person] = batches(own, speeches[person], **options[person])

    threads = [threading.Thread(target=run, args=(person,)) for person in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert together == alone
    assert len({tuple(files) for files in alone}) == 6


def test_statistics(client, tiny):
    client.call("UnloadModel", model_id="tiny")
    assert client.call("Health").loaded_models == 0
    assert client.call("UnloadModel", model_id="tiny").error == (
        "Failed to unload model: model 'tiny' not loaded"
    )
    (before,) = client.call("GetModelStats").models
    request = {"model_id": "tiny", "batch_size": 4, "raw_audio": tiny.speech.tobytes()}
    first, second = client.infer(**request), client.infer(**request)
    assert first.model_loaded and first.model_load_time_ms > 0 and not second.model_loaded
    for answer in (first, second):
        assert answer.success and answer.gpu_id == 0
        parts = (answer.inference_time_ms, answer.composite_time_ms, answer.audio_processing_ms)
        assert min(parts) > 0 and answer.total_time_ms >= max(parts)
    (after,) = client.call("GetModelStats").models
    assert after.request_count == before.request_count + 2 and after.loaded
    spent = first.inference_time_ms + second.inference_time_ms
    assert after.total_inference_ms - before.total_inference_ms == pytest.approx(spent, abs=1.1)
    mean = after.total_inference_ms / after.request_count
    assert after.avg_inference_ms == pytest.approx(mean, abs=1)
    assert after.last_used_timestamp >= before.last_used_timestamp > 1_600_000_000
    health = client.call("Health")
    assert health.healthy and health.loaded_models == 1 and list(health.gpu_ids) == [0]
    assert client.call("LoadModel", model_id="tiny", preferred_gpu=3).error.startswith(
        "Failed to load model: gpu is 3; expected "
    )
