"""The whole pipeline against a frame-by-frame loop, and with other batch sizes, layouts and
threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import kernels
from benchmarks import frame_loop
from engine import Avatar, InputError, Pipeline
from engine.loop import frame_numbers
from models import checkpoint
from tests.conftest import DEMO, ROOT
from tests.engine.conftest import keep_export
from tests.engine.tiny import write_avatar, write_speech
from tests.tolerances import TOLERANCES, assert_close


@pytest.fixture(scope="module")
def avatar(native) -> Avatar:
    return Avatar.load(native)


@pytest.fixture(scope="module")
def pipeline(avatar) -> Pipeline:
    return Pipeline(avatar)


def finished(pipeline: Pipeline, speech, **options) -> torch.Tensor:
    return torch.cat(list(pipeline.render(speech, **options)))


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """0.75 s from the middle of the speech."""
    return speech[16000:28000]


@pytest.fixture(scope="module")
def rendered(pipeline, short) -> torch.Tensor:
    return finished(pipeline, short)


def test_parity_with_the_frame_loop(folders, native, checkpoints, speech, monkeypatch):
    """More than 50 frames in both modes, against librosa, OpenCV and PyTorch, frame by frame."""
    pcm = speech[: int(2.1 * 16000)]
    encoder, generator = (checkpoint.load(checkpoints[k]) for k in ("audio_encoder", "generator"))
    generated = {}  # kept, because it is the same in both modes, and slow

    def once(picture, audio):
        key = (picture.numpy().tobytes(), audio.numpy().tobytes())
        if key not in generated:
            generated[key] = generator(picture, audio)
        return generated[key]

    boxes = [tuple(box) for box in folders.boxes]
    pipeline = Pipeline(Avatar.load(native), batch_size=7)
    for mode in kernels.COMPOSITE_MODES:
        ours = finished(pipeline, pcm, mode=mode).numpy()
        loop = frame_loop.render(
            pcm.numpy(), lambda i: folders.frames[i][..., ::-1], boxes, encoder, once, mode=mode
        )
        theirs = np.stack([frame[..., ::-1] for frame in loop])
        assert len(ours) >= 50
        to_loop = TOLERANCES["frames", torch.uint8, "a loop of librosa, OpenCV and PyTorch"]
        assert_close(ours, theirs, to_loop)
        # the comparison is meaningful: the mouths differ from the frames, and move
        numbers = [n for n, _ in zip(frame_numbers(12), ours, strict=False)]
        assert (ours != folders.frames[numbers]).any(axis=(1, 2, 3)).all()
        outside = np.ones(ours.shape[1:3], bool)
        x0, y0 = np.min(boxes, axis=0)[:2]
        x1, y1 = np.max(boxes, axis=0)[2:]
        outside[y0:y1, x0:x1] = False
        assert np.array_equal(ours[:, outside], folders.frames[numbers][:, outside])


def test_speech_moves_the_mouth(pipeline, short, rendered):
    silent = finished(pipeline, torch.zeros_like(short))
    assert (silent != rendered).float().mean() > 0.001


@pytest.mark.parametrize("batch_size", [1, 5, 25, 40])
def test_batch_size_does_not_change_frames(avatar, short, rendered, batch_size):
    batches = list(Pipeline(avatar, batch_size=batch_size).render(short))
    assert max(map(len, batches)) == min(batch_size, len(rendered))
    assert torch.equal(torch.cat(batches), rendered)


@pytest.mark.parametrize(
    "make",
    [
        lambda f, _: (f.native("pipe-video", video=True), {}),
        lambda f, _: (f.package("pipe-package"), {}),
        lambda f, _: (f.package("pipe-images", video=False, boxes="cache"), {}),
        lambda f, _: (f.cpu_server("pipe-cpu"), {}),
        lambda f, c: (
            f.synctalk(c["generator"], "pipe-synctalk"),
            {"audio_encoder": c["audio_encoder"]},
        ),
    ],
)
def test_layouts_render_the_same(
    folders, checkpoints, networks, short, rendered, make, tmp_path, monkeypatch, capsys
):
    """Checkpoints have been exported: `runtime/test_runtime.py` does that."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root, replaced = make(folders, checkpoints)
    avatar = Avatar.load(root, **replaced)
    for kind in networks:
        if (path := getattr(avatar, kind)).suffix != ".onnx":
            keep_export(kind, path, networks[kind])
    assert torch.equal(finished(Pipeline(avatar), short), rendered)
    assert "exporting" not in capsys.readouterr().err


def test_a_bounded_cache_does_not_change_frames(native, short, rendered):
    avatar = Avatar.load(native, cache_bytes=1)
    assert torch.equal(finished(Pipeline(avatar), short), rendered)


def test_threads_render_as_if_alone(native, avatar, pipeline, short, rendered):
    """Two threads use one pipeline, one uses a pipeline with the same avatar, one has its own."""
    pipelines = [pipeline, pipeline, Pipeline(avatar, batch_size=3), Pipeline(Avatar.load(native))]
    with ThreadPoolExecutor(4) as threads:
        for frames in threads.map(lambda one: finished(one, short), pipelines):
            assert torch.equal(frames, rendered)


def test_the_caller_may_change_frames(pipeline, short, rendered):
    for frames in pipeline.render(short):
        frames.zero_()
    kept = list(pipeline.render(short))
    assert torch.equal(torch.cat(kept), rendered)


def test_a_render_can_be_abandoned(pipeline, short, rendered):
    render = pipeline.render(short)
    next(render)
    render.close()
    assert torch.equal(finished(pipeline, short), rendered)


def test_files_and_tensors_are_the_same(pipeline):
    whole = pipeline.render(DEMO / "speech.wav")
    first = next(whole)
    whole.close()
    from engine.media.speech import read_speech

    assert torch.equal(first, next(pipeline.render(read_speech(DEMO / "speech.wav"))))


def test_arrays_and_tensors_are_the_same(pipeline, short, rendered, recwarn):
    """As librosa and soundfile return them, read-only and reversed ones, and with gradients."""
    array = short.numpy().copy()
    array.setflags(write=False)
    assert pipeline.frame_count(array) == len(rendered)
    for same in (array, array[::-1].copy()[::-1], short.clone().requires_grad_()):
        batches = pipeline.render(same)
        assert torch.equal(next(batches), rendered[: pipeline.batch_size])
        batches.close()
    assert not recwarn.list


def test_torch_runtime(native, avatar, checkpoints, short, rendered):
    same = Avatar.load(native, **checkpoints)
    frames = finished(Pipeline(same, runtime="torch"), short[:4800])
    reference = finished(Pipeline(avatar), short[:4800])
    assert_close(frames, reference, TOLERANCES["frames", torch.uint8, "those of another runtime"])


@pytest.mark.parametrize(
    ("samples", "frames"), [(3000, 4), (3199, 4), (3200, 4), (4800, 6), (16000, 24)]
)
def test_frame_counts(pipeline, samples, frames):
    pcm = torch.zeros(samples)
    assert pipeline.frame_count(pcm) == frames
    if frames < 10:
        assert len(finished(pipeline, pcm)) == frames


def test_other_frame_rates(own, short):
    for fps, frames in [(25, 18), (30, 20), (50, 32)]:
        pipeline = Pipeline(Avatar.load(own.native(str(fps), fps=fps)))
        assert pipeline.frame_count(short) == frames
        assert abs(frames / fps - 0.75) < 0.14


def take(count: int, *arguments, **options) -> list[int]:
    return [
        number
        for number, _ in zip(frame_numbers(*arguments, **options), range(count), strict=False)
    ]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_frames_without_the_first_ones(tmp_path, batch_size):
    from engine.media.speech import read_speech

    pipeline = Pipeline(Avatar.load(write_avatar(tmp_path / "tiny")), batch_size=batch_size)
    pcm = read_speech(write_speech(tmp_path / "speech.wav", 3))
    frames = torch.cat(list(pipeline.render(pcm, loop="wrap", start_frame=2)))
    for skip in (1, 9, 10, 31, len(frames) - 8, len(frames) - 1):
        some = list(pipeline.render(pcm, loop="wrap", start_frame=2, skip=skip))
        assert torch.equal(torch.cat(some), frames[skip:])
    for skip in (-1, len(frames)):
        with pytest.raises(InputError, match=f"skip is {skip}; expected 0 to {len(frames) - 1}"):
            pipeline.render(pcm, skip=skip)


def test_frame_numbers():
    assert take(9, 4) == [1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert take(9, 4) == [frame_loop.pingpong(i, 4) for i in range(9)]
    assert take(5, 1) == [0] * 5
    assert take(5, 2) == [1, 0, 1, 0, 1]
    assert take(6, 4, "wrap") == [0, 1, 2, 3, 0, 1]
    assert take(6, 4, "wrap", 3) == [3, 0, 1, 2, 3, 0]
    assert take(6, 4, "pingpong", 3) == [3, 2, 1, 0, 1, 2]
    assert take(3, 4, "pingpong", 0) == [0, 1, 2]


def test_loop_and_start(pipeline, folders, short):
    x, y = 3, 3  # a pixel that no box covers
    for options in [{}, {"loop": "wrap"}, {"loop": "wrap", "start_frame": 7}, {"start_frame": 11}]:
        frames = finished(pipeline, short, **options)
        numbers = take(len(frames), 12, options.get("loop", "pingpong"), options.get("start_frame"))
        assert np.array_equal(frames[:, y, x].numpy(), folders.frames[numbers][:, y, x])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, s: p.render(s, loop="bounce"),
            "loop is 'bounce'; expected one of: pingpong, wrap",
        ),
        (lambda p, s: p.render(s, start_frame=12), "start frame is 12; expected 0 to 11"),
        (lambda p, s: p.render(s, start_frame=-1), "start frame is -1"),
        (lambda p, s: p.render(s, mode="blend"), "mode is 'blend'; expected one of: crop, direct"),
        (
            lambda p, s: p.render(s[:2999]),
            r"2999 samples at 16 kHz \(0.187 s\); expected at least 3000",
        ),
        (lambda p, s: p.render(s[:0]), "0 samples"),
        (
            lambda p, s: p.render(s.double()),
            r"speech is \(12000,\) float64; expected \(S,\) float32",
        ),
        (lambda p, s: p.render(s.double().numpy()), r"speech is \(12000,\) float64; expected"),
        (lambda p, s: p.render(s[None]), r"\(1, 12000\)"),
        (lambda p, s: p.render(s.tolist()), "speech is of the type list; expected a file, or"),
        (lambda p, s: p.render(b"speech.wav"), "speech is of the type bytes; expected a file, or"),
        (lambda p, s: p.render((32768 * s).numpy()), r"is -?\d+(\.\d+)?; expected -1 to 1; scale"),
        (lambda p, s: p.render(s, start_frame=1.5), "start frame is 1.5; expected an integer"),
        (
            lambda p, s: p.render(s.clone().index_fill_(0, torch.tensor(77), float("nan"))),
            "sample 77 is nan",
        ),
        (lambda p, s: p.render("no.wav"), "no.wav does not exist"),
        (lambda p, s: Pipeline(p.avatar, batch_size=0), "batch size is 0; expected at least 1"),
        (lambda p, s: Pipeline(p.avatar, runtime="x"), "runtime is 'x'"),
    ],
)
def test_bad_input_is_an_immediate_error(pipeline, short, call, message):
    with pytest.raises(InputError, match=message):
        call(pipeline, short)


STUB = """
import sys, torch
from benchmarks.render import own_peak
from engine import Avatar, Pipeline
pipeline = Pipeline(Avatar.load(sys.argv[1], cache_bytes=1 << 20))
class Stub:  # as large as the real outputs, and quick
    dtype, capturable, stream = torch.float32, True, None
    graph_bytes = 0
    def __call__(self, *inputs, out):
        return out.fill_(0.5)
pipeline.generator = pipeline.audio_encoder = Stub()
speech = torch.rand(int(sys.argv[2]) * 16000) - 0.5
assert sum(len(frames) for frames in pipeline.render(speech)) > 20 * int(sys.argv[2])
print(own_peak())
"""


def test_memory_does_not_grow_with_the_speech(native):
    peaks = []
    for seconds in (2, 60):
        command = [sys.executable, "-c", STUB, str(native), str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks.append(int(done.stdout) / 1e6)
    # a minute of finished frames would be 880 MB; two equal runs differ by up to 60
    assert peaks[1] - peaks[0] < 150
