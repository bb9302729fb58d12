"""A hand in front of the mouth: its pixels stay the frame's own, in renders, live and in batches."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import kernels
from benchmarks import frame_loop
from engine import Avatar, Pipeline
from engine.batches import BatchRequest, SharedBatches
from engine.live.gpu_renderer import GpuRenderer
from engine.live.live import _picture_numbers
from engine.live.renderer import CpuRenderer
from engine.loop import frame_numbers
from tests.engine.files import landmarks
from tests.engine.live.stage import Stage, voice
from tests.engine.tiny import NETWORKS, write_speech
from tests.tolerances import TOLERANCES, assert_close

COUNT, HEIGHT, WIDTH = 5, 150, 190
BOXES = [[40 + 2 * number, 22, 150 + 2 * number, 132] for number in range(COUNT)]


def draw_hand(image: np.ndarray, number: int, color: tuple[int, int, int]) -> None:
    """A palm with four fingers, which moves up before the mouth."""
    x, y = 92 + number, 150 - 11 * number
    cv2.circle(image, (x, y), 25, color, -1)
    for finger in range(4):
        begin = (x - 18 + 12 * finger, y)
        cv2.line(image, begin, (begin[0] + finger * 3 - 4, y - 46), color, 9)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    """A SyncTalk 2D folder: red is a hand, white the background beside the face, and all else is in
    the colours of other parts."""
    root = tmp_path_factory.mktemp("hand") / "person"
    for name in ("full_body_img", "landmarks", "parsing"):
        (root / name).mkdir(parents=True)
    for number in range(COUNT):
        bgr = np.ascontiguousarray(small[0][number, 145 : 145 + HEIGHT, 70 : 70 + WIDTH, ::-1])
        draw_hand(bgr, number, (120, 150, 205))
        cv2.imwrite(str(root / "full_body_img" / f"{number}.jpg"), bgr)
        parsing = np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8)
        parsing[:, :55] = 255
        draw_hand(parsing, number, (0, 0, 255))
        cv2.imwrite(str(root / "parsing" / f"{number}.png"), parsing)
        (root / "landmarks" / f"{number}.lms").write_text(landmarks(BOXES[number]))
    return root


@pytest.fixture(scope="module")
def kept(folder) -> np.ndarray:
    """Where each frame is kept, (F, H, W)."""
    images = [cv2.imread(str(folder / "parsing" / f"{n}.png")) for n in range(COUNT)]
    return np.stack([((i == [0, 0, 255]) | (i == [255, 255, 255])).all(axis=2) for i in images])


def open_avatar(folder: Path, *, parsing: bool, in_memory: bool = False) -> Pipeline:
    """With all frames in memory, everything is done as on a GPU."""
    avatar = Avatar.load(folder, **NETWORKS, parsing=parsing)
    if in_memory:
        avatar._frames, _, _, avatar._masks = avatar.masked_batch(list(range(COUNT)))
    return Pipeline(avatar, batch_size=4)


@pytest.fixture(scope="module")
def masked(folder) -> Pipeline:
    return open_avatar(folder, parsing=True)


@pytest.fixture(scope="module")
def in_memory(folder) -> Pipeline:
    return open_avatar(folder, parsing=True, in_memory=True)


def frames_of(pipeline: Pipeline) -> np.ndarray:
    return pipeline.avatar.batch(list(range(COUNT)))[0].numpy()


def check_hand(finished: np.ndarray, numbers: list[int], frames: np.ndarray, kept: np.ndarray):
    """The hand is before the mouth in most frames, and the mouth beside it is generated."""
    assert np.array_equal(finished[kept[numbers]], frames[numbers][kept[numbers]])
    changed = (finished != frames[numbers]).any(axis=3)
    assert changed.any(axis=(1, 2)).all()
    covered = [kept[n, y0:y1, x0:x1].mean() for n, (x0, y0, x1, y1) in enumerate(BOXES)]
    assert min(covered) > 0.05 and max(covered) < 0.6


@pytest.mark.parametrize("place", ["host", "memory"])
@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_a_render(folder, masked, in_memory, kept, place, mode):
    speech = torch.from_numpy(voice(1, 6000))
    pipeline = masked if place == "host" else in_memory
    finished = torch.cat([batch.clone() for batch in pipeline.render(speech, mode=mode)]).numpy()
    numbers = [number for number, _ in zip(frame_numbers(COUNT), finished, strict=False)]
    frames = frames_of(masked)
    check_hand(finished, numbers, frames, kept)
    plain = open_avatar(folder, parsing=False)
    expected = torch.cat(list(plain.render(speech, mode=mode))).numpy()
    expected[kept[numbers]] = frames[numbers][kept[numbers]]
    assert np.array_equal(finished, expected)


def test_a_render_is_the_familys(folder, masked):
    """Frame by frame, with what the pipeline's own generator returns."""
    speech = torch.from_numpy(voice(1, 6000))
    generated = []
    network = masked.generator

    class Remembering:
        dtype, capturable, stream = network.dtype, network.capturable, network.stream

        def __call__(self, inputs, audio, *, out):
            network(inputs, audio, out=out)
            generated.extend(out.clone())

    masked.generator = Remembering()
    try:
        finished = torch.cat(list(masked.render(speech))).numpy()
    finally:
        masked.generator = network
    numbers = [number for number, _ in zip(frame_numbers(COUNT), finished, strict=False)]
    for rgb, number, mouth in zip(finished, numbers, generated, strict=True):
        bgr = cv2.imread(str(folder / "full_body_img" / f"{number}.jpg"))
        parsing = cv2.imread(str(folder / "parsing" / f"{number}.png"))
        box = tuple(BOXES[number])
        _, crop = frame_loop.face_input(bgr, box)
        expected = frame_loop.composite(bgr, box, crop, mouth.numpy(), "crop", parsing)
        to_opencv = TOLERANCES["composite", torch.uint8, "OpenCV"]
        assert_close(rgb[..., ::-1], expected, to_opencv)


def test_the_command(folder, masked, kept, tmp_path):
    from engine.render import main  # GPU hosts have no PyAV, which it needs

    speech = write_speech(tmp_path / "speech.wav", 0.4)
    for name, options in (("plain", []), ("masked", ["--parsing"])):
        command = ["--avatar", folder, "--audio", speech, "-o", tmp_path / f"{name}.mp4"]
        command += ["--frames", tmp_path / name, "--no-progress", "--device", "cpu", *options]
        for kind, path in NETWORKS.items():
            command += [f"--{kind.replace('_', '-')}", path]
        assert main(list(map(str, command))) == 0
    paths = sorted((tmp_path / "masked").iterdir())
    finished = np.stack([np.asarray(Image.open(path)) for path in paths])
    numbers = [number for number, _ in zip(frame_numbers(COUNT), paths, strict=False)]
    check_hand(finished, numbers, frames_of(masked), kept)
    plain = np.stack([np.asarray(Image.open(tmp_path / "plain" / path.name)) for path in paths])
    assert (plain[kept[numbers]] != finished[kept[numbers]]).any()


@pytest.mark.parametrize("kind", [CpuRenderer, GpuRenderer])
def test_live(masked, in_memory, kept, kind):
    """Speech, then silence, whose mouths are kept and shown again."""
    pipeline = masked if kind is CpuRenderer else in_memory
    stage = Stage(kind(pipeline))
    session = stage.open(picture=_picture_numbers(COUNT, "pingpong", None))
    session.push(voice(1, 6000))
    session.flush()
    pieces = stage.take(session, 60)
    finished = torch.cat([piece.frames for piece in pieces])
    numbers = [number for number, _ in zip(frame_numbers(COUNT), pieces, strict=False)]
    check_hand(finished.numpy(), numbers, frames_of(masked), kept)
    sound = np.concatenate([*(piece.sound[0] for piece in pieces), np.zeros(16_000, np.float32)])
    rendered = torch.cat(list(masked.render(torch.from_numpy(sound))))[: len(finished)]
    assert torch.equal(finished[:-15], rendered[: len(finished) - 15])


@pytest.mark.parametrize("place", ["host", "memory"])
def test_batches(masked, in_memory, kept, place):
    """With the avatar's own pictures, and with those of a client."""
    pipeline = masked if place == "host" else in_memory
    faces = np.random.default_rng(2).random((4, 6, 320, 320), np.float32)
    frames, numbers = frames_of(masked), [3, 4, 0, 1]
    with SharedBatches(pipeline, encode=lambda rgb: rgb.tobytes()) as batches:
        for given in (None, faces):
            request = BatchRequest(4, 3, speech=voice(1, 6000), faces=given, layout="interleaved")
            files = batches.submit(request).result(30).files
            finished = np.stack([np.frombuffer(file, np.uint8) for file in files])
            check_hand(finished.reshape(4, HEIGHT, WIDTH, 3), numbers, frames, kept)


@pytest.mark.gpu
def test_on_a_gpu(folder, masked, kept):
    avatar = Avatar.load(folder, **NETWORKS, parsing=True, device="cuda")
    numbers = list(range(COUNT))
    assert torch.equal(avatar.masks.cpu(), masked.avatar.masked_batch(numbers)[3])
    assert avatar.frame_bytes == COUNT * HEIGHT * (WIDTH * 3 + 24)
    pipeline = Pipeline(avatar, batch_size=4)
    finished = torch.cat([b.cpu() for b in pipeline.render(torch.from_numpy(voice(1, 6000)))])
    numbers = [number for number, _ in zip(frame_numbers(COUNT), finished, strict=False)]
    check_hand(finished.numpy(), numbers, avatar.frames.cpu().numpy(), kept)
