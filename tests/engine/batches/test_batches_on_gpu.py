"""Requests of a few frames on a GPU: a CPU's frames, files of either encoder, many clients."""

import io
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import kernels
from engine import Avatar, Pipeline
from engine.batches import BatchRequest, SharedBatches
from engine.media import jpeg

pytestmark = pytest.mark.gpu

WAIT = 120
BATCH = 8


@pytest.fixture(scope="module")
def pipeline(native, fp16_safe_checkpoints) -> Pipeline:
    return Pipeline(Avatar.load(native, device="cuda", **fp16_safe_checkpoints), batch_size=BATCH)


@pytest.fixture(scope="module")
def on_cpu(native, fp16_safe_checkpoints) -> Pipeline:
    return Pipeline(Avatar.load(native, **fp16_safe_checkpoints))


def faces_of(pipeline: Pipeline, start: int, count: int) -> np.ndarray:
    """Pictures as a client makes them of the avatar's frames."""
    numbers = [(start + i) % len(pipeline.avatar) for i in range(count)]
    return kernels.face_input(*pipeline.avatar.batch(numbers))[0].numpy()


def requests_of(pipeline: Pipeline, speech: torch.Tensor, seed: int) -> list[BatchRequest]:
    random, found = np.random.default_rng(seed), []
    for number in range(4):
        count, start = int(random.integers(1, 33)), int(random.integers(-50, 50))
        begin = int(random.integers(0, 40_000))
        pcm = speech[begin : begin + int(random.integers(0, 24_000))].numpy()
        faces = faces_of(pipeline, start, count) if number % 2 else None
        if number == 3 and count > 1:
            faces = np.concatenate([faces[:, :3], faces[:, 3:]]).reshape(faces.shape)
        found.append(BatchRequest(count, start, pcm, 3 * number, faces=faces))
    return found


def frames_of(files: list[bytes], pipeline: Pipeline) -> torch.Tensor:
    shape = pipeline.avatar.height, pipeline.avatar.width, 3
    frames = [np.frombuffer(file, np.uint8).reshape(shape) for file in files]
    return torch.from_numpy(np.stack(frames))


def test_the_cpus_frames_for_many_clients(pipeline, on_cpu, speech):
    requests = [requests_of(on_cpu, speech, seed) for seed in range(6)]
    found: list[list] = [[] for _ in requests]

    def client(number: int) -> None:
        futures = [batches.submit(request) for request in requests[number]]
        found[number] = [future.result(WAIT) for future in futures]

    with SharedBatches(pipeline, encode=lambda rgb: rgb.tobytes()) as batches:
        clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(WAIT)
        assert batches.frames == sum(r.count for each in requests for r in each)
        assert batches.buffer_bytes > 0
    with SharedBatches(on_cpu, encode=lambda rgb: rgb.tobytes()) as batches:
        for each, results in zip(requests[:2], found[:2], strict=True):
            for request, result in zip(each, results, strict=True):
                wanted = frames_of(batches.submit(request).result(WAIT).files, pipeline)
                frames = frames_of(result.files, pipeline)
                off = (frames.float() - wanted.float()) / 255
                assert -10 * torch.log10(off.square().mean() + 1e-12) >= 50
                assert result.inference_seconds > 0 and result.composite_seconds > 0


def test_files_of_the_gpu_are_as_good_as_pillows(pipeline, speech):
    request = BatchRequest(20, 3, speech[16000:30000].numpy())
    with SharedBatches(pipeline, encode=lambda rgb: rgb.tobytes()) as batches:
        wanted = frames_of(batches.submit(request).result(WAIT).files, pipeline).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not jpeg.on_gpu(pipeline.device):
            pytest.skip("nvImageCodec does not work")
    with SharedBatches(pipeline, quality=75) as batches:
        files = batches.submit(request).result(WAIT).files
    for file, frame in zip(files, wanted, strict=True):
        image = Image.open(io.BytesIO(file))
        assert "progressive" not in image.info
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
        mine = Image.open(io.BytesIO(jpeg.encode_jpeg(frame, 75, "4:2:0")))
        errors = [np.abs(np.asarray(i).astype(int) - frame).mean() for i in (image, mine)]
        assert errors[0] <= 1.15 * errors[1]


def test_a_request_that_fails_fails_alone(pipeline, on_cpu, speech):
    pcm = speech[:9000].numpy()
    bad = np.full((2, 6, 320, 320), 3e38, np.float32)  # infinity in float16
    with SharedBatches(pipeline) as batches:
        futures = [
            batches.submit(BatchRequest(2, 0, pcm, faces=faces))
            for faces in (faces_of(on_cpu, 0, 2), bad, faces_of(on_cpu, 4, 2))
        ]
        assert [future.exception(WAIT) is None for future in futures] == [True, False, True]
    assert "\n" not in str(futures[1].exception())
