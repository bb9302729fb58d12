"""Frames of requests against librosa, OpenCV and PyTorch, and against renders."""

import io

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import kernels
from engine import Avatar, Pipeline
from engine.batches import BatchRequest, SharedBatches
from engine.batches.audio import feature_count, feature_rows, mel_windows
from tests.conftest import DEMO
from tests.engine.batches import plain
from tests.engine.batches.conftest import frames_of

WAIT = 60


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    off = np.abs(found.astype(int) - wanted)
    assert (off <= 1).mean() >= 0.999


CASES = {  # count, start, samples, context
    "one": (1, 0, 16000, 0),
    "across the avatar's end": (8, 3, 8 * 640, 0),
    "before its beginning": (25, -3, 25 * 640, 0),
    "the most": (32, 10**12, 32 * 640 + 7, 0),
    "context": (8, -(10**12), 20000, 8),
    "no speech": (8, 0, 0, 0),
    "a sample": (8, 0, 1, 0),
    "less than a mel window": (1, 6, 799, 0),
    "one mel window": (8, 5, 3000, 0),
    "one feature": (25, -1, 3800, 0),
    "more frames than features": (32, 2, 9000, 0),
    "context of which the last ones hear nothing": (8, 1, 9000, 20),
    "more context than speech": (8, 1, 9000, 10**20),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_are_those_of_the_formulas(batches, formulas, speech, case):
    count, start, samples, context = CASES[case]
    pcm = speech[20000 : 20000 + samples].numpy()
    audio = plain.feature_windows(pcm, count, min(context, 1000))
    faces = formulas.faces(start, count)
    requests = [BatchRequest(count, start, pcm, context, faces=faces)]
    if count <= 8:
        requests.append(BatchRequest(count, start, pcm, context))
    futures = [batches.submit(request) for request in requests]
    found = [frames_of(future.result(WAIT)) for future in futures]
    for frames, own in zip(found, (False, True), strict=False):
        check(frames, formulas.rendered(start, audio, own=own))
    # the comparison is meaningful: faces and speech count, and nothing outside the box changes
    numbers = formulas.numbers(start, count)
    shown = formulas.frames[numbers]
    assert (np.abs(found[0].astype(int) - shown) > 8).any(axis=(1, 2, 3)).all()
    assert np.array_equal(found[0][:, :30, :10], shown[:, :30, :10])
    if audio.any():
        silent = formulas.rendered(start, np.zeros_like(audio), own=False)
        assert (np.abs(found[0].astype(int) - silent) > 1).mean() > 0.005


def test_audio_that_is_given(batches, formulas):
    audio = np.random.default_rng(1).normal(size=(32, 16, 16)).astype(np.float32)
    faces = formulas.faces(2, 9)
    wanted = formulas.rendered(2, np.stack([audio] * 9), own=False)
    none = np.zeros(0, np.float32)
    given, both, alone = (
        batches.submit(BatchRequest(9, 2, faces=faces, **options)).result(WAIT)
        for options in ({"audio": audio}, {"audio": audio, "speech": none}, {"speech": none})
    )
    check(frames_of(given), wanted)
    # speech counts where both are there
    assert both.files == alone.files != given.files


@pytest.mark.parametrize(("context", "count"), [(0, 32), (9, 8), (40, 32), (77, 11)])
def test_own_faces_are_a_renders(batches, on_host, speech, context, count):
    """Bit for bit, as long as the speech goes on: a render pads it at its end."""
    start, pcm = 3, speech[: (context + count + 14) * 640]
    render = on_host.render(pcm, loop="wrap", start_frame=start)
    wanted = torch.cat(list(render))[context : context + count].numpy()
    request = BatchRequest(count, start + context, speech.numpy(), context)
    assert np.array_equal(frames_of(batches.submit(request).result(WAIT)), wanted)


def test_the_demos_networks(speech):
    """Requests that share batches and calls of the encoder, bit for bit a render."""
    avatar = Avatar.load(DEMO)
    pipeline = Pipeline(avatar, batch_size=4)
    render = pipeline.render(speech[:32000], loop="wrap", start_frame=0)
    wanted = torch.cat([next(render) for _ in range(2)]).numpy()
    render.close()
    pcm = speech[:32000].numpy()
    with SharedBatches(pipeline, encode=lambda rgb: rgb.tobytes()) as batches:
        parts = [BatchRequest(n, i, pcm, i) for i, n in ((0, 1), (1, 3), (4, 1), (5, 2))]
        futures = [batches.submit(part) for part in parts]
        shape = avatar.height, avatar.width, 3
        found = np.concatenate([frames_of(future.result(WAIT), shape) for future in futures])
    assert np.array_equal(found, wanted[:7])


def test_files_are_baseline_jpegs_of_the_quality(on_host, speech):
    pcm = speech[:16000].numpy()
    request = BatchRequest(8, 2, pcm)
    with SharedBatches(on_host, encode=lambda rgb: rgb.tobytes()) as batches:
        frames = frames_of(batches.submit(request).result(WAIT))
    for quality in (75, 30):
        with SharedBatches(on_host, quality=quality) as batches:
            result = batches.submit(request).result(WAIT)
        assert min(result.audio_seconds, result.inference_seconds, result.composite_seconds) > 0
        for file, frame in zip(result.files, frames, strict=True):
            image = Image.open(io.BytesIO(file))
            assert image.format == "JPEG" and image.size == (200, 140)
            assert "progressive" not in image.info
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
            mine = io.BytesIO()
            Image.fromarray(frame).save(mine, "jpeg", quality=quality)
            assert image.quantization == Image.open(mine).quantization
            off = np.asarray(image).astype(int) - frame
            assert np.abs(off).mean() < (6 if quality == 75 else 10)


# --- the parts of the speech ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 30_000),
    count=st.integers(1, 32),
    context=st.integers(0, 80),
)
@example(3799, 32, 0)
@example(3800, 1, 0)
@example(3800, 32, 17)
def test_what_frames_hear(samples, count, context):
    """The features by number, against the formula written out."""
    rows = 1 + samples // 200
    m = max((rows - 16) * 25 // 80, 0)
    assert feature_count(samples) == m
    padded = [0, *range(m), m - 1] if m else []
    first, stop, found = feature_rows(samples, count, context)
    assert 0 <= first <= stop <= m and stop - first <= count + 15
    for frame in range(count):
        for place in range(16):
            row = context + frame - 8 + place
            wanted = 1 + padded[row] - first if 0 <= row < len(padded) else 0
            assert found[frame, place] == wanted


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(3800, 40_000), at=st.floats(0, 1), most=st.integers(1, 48))
def test_windows_of_a_part_are_those_of_the_whole(speech, samples, at, most):
    pcm = speech[:samples]
    m = feature_count(samples)
    first = min(int(at * m), m - 1)
    stop = min(first + most, m)
    whole = kernels.mel_windows(kernels.log_mel(pcm), count=m)
    found = mel_windows(pcm.numpy(), first, stop, lambda tensor: [tensor])
    assert torch.equal(found, whole[first:stop])
