"""What only a GPU can show: full sizes, no allocation, no synchronisation, CUDA graphs."""

from collections.abc import Callable

import pytest
import torch

import kernels
from kernels import reference
from kernels.fused import composite, face_input, log_mel, windows
from tests.tolerances import F32, TOLERANCES, U8, assert_close

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
Stage = tuple[Callable[[], object], list[torch.Tensor]]
MEL = TOLERANCES["log_mel", F32, "reference"]
INPUT = TOLERANCES["face_input", U8, "reference"]
COMPOSITE = TOLERANCES["composite", U8, "reference"]


def pictures(frames: int, height: int, width: int, n: int, dtype=torch.float16):
    """Make random but smooth frames, and boxes of about 182 pixels that move and leave the frame."""
    generator = torch.Generator(CUDA).manual_seed(height + n)
    coarse = torch.rand(frames, 3, height // 8, width // 8, device=CUDA, generator=generator)
    made = torch.empty(frames, height, width, 3, dtype=torch.uint8, device=CUDA)
    for frame, picture in zip(made, coarse, strict=True):
        fine = torch.nn.functional.interpolate(picture[None], (height, width), mode="bilinear")
        frame.copy_(fine[0].permute(1, 2, 0) * 255)
    step = torch.arange(frames, device=CUDA)
    x0, y0 = (37 * step) % width - 91, (53 * step) % height - 91
    size = 164 + step % 41
    boxes = torch.stack([x0, y0, x0 + size, y0 + size], dim=1).int()
    index = torch.randint(0, frames, (n,), device=CUDA, generator=generator)
    generated = torch.rand(n, 3, 320, 320, device=CUDA, generator=generator).to(dtype)
    return made, boxes, index, generated


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (1920, 1080), (1280, 720)])
def test_forty_full_frames(height, width):
    frames, boxes, index, generated = pictures(60, height, width, 40)
    inputs = torch.full((40, 6, 320, 320), float("nan"), dtype=torch.float16, device=CUDA)
    crops = torch.full((40, 328, 328, 3), 77, dtype=torch.uint8, device=CUDA)
    kernels.face_input(frames, boxes, index, out=(inputs, crops))
    want = torch.empty_like(inputs), torch.empty_like(crops)
    reference.face_input(frames, boxes, index, *want)
    assert_close(crops, want[1], INPUT)
    assert_close((inputs.float() * 255).round(), (want[0].float() * 255).round(), INPUT)
    for mode in kernels.COMPOSITE_MODES:
        finished = {}
        for format in kernels.COMPOSITE_FORMATS:
            got = kernels.composite(
                frames, boxes, index, crops, generated, mode=mode, format=format
            )
            expected = torch.empty_like(got)
            reference.composite(frames, boxes, index, crops, generated, mode, format, expected)
            assert_close(got, expected, COMPOSITE)
            finished[format] = got
        assert torch.equal(
            finished["i420"], kernels.convert_color(finished["nv12"], "nv12", "i420")
        )


def test_ten_minutes_of_speech(speech):
    pcm = speech.repeat(600 * 16000 // len(speech) + 1)[: 600 * 16000].to(CUDA)
    mel = kernels.log_mel(pcm)
    want = reference.log_mel(pcm[None], None, torch.empty_like(mel)[None])[0]
    assert_close(mel, want, MEL)
    cut = kernels.mel_windows(mel)
    assert torch.equal(cut, reference.mel_windows(mel, 25.0, 0, 0, torch.empty_like(cut)))
    features = torch.randn(len(cut), 512, device=CUDA).half()
    got = kernels.feature_windows(features)
    assert torch.equal(got, reference.feature_windows(features, 0, torch.empty_like(got)))


def test_a_batch_of_speeches(speech):
    pcm = torch.stack([speech.roll(777 * i) for i in range(64)]).to(CUDA)
    lengths = torch.randint(1, len(speech) + 1, (64,), device=CUDA)
    mel = kernels.log_mel(pcm, lengths)
    want = reference.log_mel(pcm, lengths, torch.empty_like(mel))
    assert_close(mel, want, MEL)


def test_buffers_over_2_gib():
    count, height, width = 900, 1280, 720
    frames, boxes, _, _ = pictures(4, height, width, 1)
    avatar = torch.empty(count, height, width, 3, dtype=torch.uint8, device=CUDA)
    assert avatar.numel() > 2**31
    avatar[-4:] = frames
    all_boxes = torch.full((count, 4), 7, dtype=torch.int32, device=CUDA)
    all_boxes[-4:] = boxes
    few = torch.tensor([3, 1, 0, 2], device=CUDA)
    inputs, crops = kernels.face_input(frames, boxes, few)
    far = kernels.face_input(avatar, all_boxes, few + count - 4)
    assert torch.equal(far[0], inputs) and torch.equal(far[1], crops)
    generated = torch.rand(4, 3, 320, 320, device=CUDA)
    finished = kernels.composite(frames, boxes, few, crops, generated)
    assert torch.equal(
        kernels.composite(avatar, all_boxes, few + count - 4, crops, generated), finished
    )
    # An output as large.
    repeat = torch.arange(count, device=CUDA) % 4
    out = torch.full((count, height, width, 3), 77, dtype=torch.uint8, device=CUDA)
    kernels.composite(frames, boxes, few[repeat], crops[repeat], generated[repeat].half(), out=out)
    half = kernels.composite(frames, boxes, few, crops, generated.half())
    for frame, number in zip(out, repeat.tolist(), strict=True):
        assert torch.equal(frame, half[number])


def stages() -> dict[str, Stage]:
    """Return every stage as a call with `out=`, with the tensors that it writes."""
    frames, boxes, index, generated = pictures(30, 1280, 720, 25)
    pcm = torch.randn(8, 48000, device=CUDA) * 0.1
    lengths = torch.randint(3000, 48001, (8,), device=CUDA)
    mel = kernels.log_mel(pcm)
    one = kernels.log_mel(pcm[0])
    cut = kernels.mel_windows(one)
    features = torch.randn(len(cut), 512, device=CUDA).half()
    audio = kernels.feature_windows(features)
    rings = torch.randn(8, 32, 512, device=CUDA).half()
    numbers, sources = torch.randint(0, 10_000, (2, 25), device=CUDA)
    sources %= 8
    ring_audio = kernels.ring_feature_windows(rings, numbers, sources)
    inputs, crops = kernels.face_input(frames, boxes, index, dtype=torch.float16)
    rgba = kernels.convert_color(generated, "planar_bgr", "rgba")
    small = kernels.resize(frames, (640, 360))
    made: dict[str, Stage] = {
        "log_mel": (lambda: kernels.log_mel(pcm, lengths, out=mel), [mel]),
        "mel_windows": (lambda: kernels.mel_windows(one, out=cut), [cut]),
        "feature_windows": (lambda: kernels.feature_windows(features, out=audio), [audio]),
        "ring_feature_windows": (
            lambda: kernels.ring_feature_windows(rings, numbers, sources, out=ring_audio),
            [ring_audio],
        ),
        "face_input": (
            lambda: kernels.face_input(frames, boxes, index, out=(inputs, crops)),
            [inputs, crops],
        ),
        "convert_color": (
            lambda: kernels.convert_color(generated, "planar_bgr", "rgba", out=rgba), [rgba],
        ),
        "resize": (lambda: kernels.resize(frames, (640, 360), out=small), [small]),
    }  # fmt: skip
    for mode in kernels.COMPOSITE_MODES:
        for format in kernels.COMPOSITE_FORMATS:
            arguments = frames, boxes, index, crops.clone(), generated
            out = kernels.composite(*arguments, mode=mode, format=format)

            def paste(arguments=arguments, mode=mode, format=format, out=out):
                return kernels.composite(*arguments, mode=mode, format=format, out=out)

            made[f"composite {mode} {format}"] = paste, [out]
    return made


@pytest.fixture(scope="module")
def warm() -> dict[str, Stage]:
    """The stages after a first launch, which compiles the kernels and uploads the tables."""
    made = stages()
    for call, _ in made.values():
        call()
    torch.cuda.synchronize()
    return made


NAMES = [
    "log_mel", "mel_windows", "feature_windows", "ring_feature_windows",
    "face_input", "convert_color", "resize",
    *(f"composite {m} {f}" for m in kernels.COMPOSITE_MODES for f in kernels.COMPOSITE_FORMATS),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_stages_neither_allocate_nor_synchronise(warm, name):
    call, _ = warm[name]
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for count in ("allocation.all.allocated", "num_alloc_retries", "segment.all.allocated"):
        assert after[count] == before[count]


@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs(warm, name):
    call, outputs = warm[name]
    call()
    want = [output.clone() for output in outputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for output in outputs:
        output.fill_(77)
    graph.replay()
    torch.cuda.synchronize()
    for output, expected in zip(outputs, want, strict=True):
        assert torch.equal(output, expected)


def test_a_graph_of_ring_windows_reads_its_indices_again():
    features = torch.randn(200, 32, 512, device=CUDA).half()
    frames, sources = torch.zeros(2, 40, dtype=torch.int64, device=CUDA)
    audio = kernels.ring_feature_windows(features, frames, sources)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.ring_feature_windows(features, frames, sources, out=audio)
    for first, last in ((0, 30), (0, 10_000), (2**33, 2**33 + 100)):
        frames.random_(first, last)
        sources.random_(0, 200)
        features.normal_()
        audio.fill_(77)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(
            audio,
            reference.ring_feature_windows(features, frames, sources, torch.empty_like(audio)),
        )


def test_rings_over_2_gib():
    features = torch.zeros(140_000, 16, 512, dtype=torch.float16, device=CUDA)
    assert features.numel() > 2**30 and features.nbytes > 2**31
    features[-3:] = few = torch.randn(3, 16, 512, device=CUDA).half()
    numbers, sources = torch.tensor([[0, 7, 1000], [2, 0, 1]], device=CUDA)
    assert torch.equal(
        kernels.ring_feature_windows(features, numbers, sources + len(features) - 3),
        kernels.ring_feature_windows(few, numbers, sources),
    )


def test_other_rings_compile_nothing():
    def run(streams: int, rows: int, n: int) -> None:
        numbers, sources = torch.zeros(2, n, dtype=torch.int64, device=CUDA)
        features = torch.zeros(streams, rows, 512, device=CUDA)
        kernels.ring_feature_windows(features, numbers, sources)

    run(2, 96, 2)
    before = compiled(windows._ring_feature_windows)
    assert before > 0
    for streams, rows, n in ((1, 16, 1), (3, 17, 5), (200, 96, 40)):
        run(streams, rows, n)
    assert compiled(windows._ring_feature_windows) == before


def compiled(*jitted) -> int:
    """Count the variants of kernels that have been compiled for the current GPU."""
    device = torch.cuda.current_device()
    return sum(len(kernel.device_caches[device][0]) for kernel in jitted)


def test_boxes_of_other_sizes_compile_nothing():
    frames, boxes, index, generated = pictures(30, 1280, 720, 25)

    def run(boxes: torch.Tensor) -> None:
        _, crops = kernels.face_input(frames, boxes, index)
        kernels.composite(frames, boxes, index, crops, generated)

    jitted = face_input._face_input, composite._composite
    run(boxes)
    before = compiled(*jitted)
    assert before > 0
    for size in (1, 16, 182, 183, 700, 1999):
        larger = boxes.clone()
        larger[:, 2:] = larger[:, :2] + size
        run(larger)
    assert compiled(*jitted) == before


def test_lengths_and_batches_compile_nothing():
    """After one launch of each size class."""
    jitted = windows._mel_windows, log_mel._log_mel, face_input._face_input
    frames, boxes, index, _ = pictures(30, 1280, 720, 40)

    def run(samples: int, n: int) -> None:
        kernels.mel_windows(kernels.log_mel(torch.randn(samples, device=CUDA)))
        kernels.face_input(frames, boxes, index[:n].clone())

    for samples, n in ((16000, 1), (32007, 4), (200_000, 16)):
        run(samples, n)
    before = compiled(*jitted)
    for samples in range(3000, 3000 + 40 * 203, 203):
        run(samples, 1 + samples % 40)
    run(320_000, 40)
    assert compiled(*jitted) == before


def test_boxes_of_every_size():
    frames, _, _, _ = pictures(1, 720, 1280, 1)
    size = torch.arange(1, 701, device=CUDA)
    x0, y0 = (17 * size) % 1280 - size // 2, (29 * size) % 720 - size // 2
    boxes = torch.stack([x0, y0, x0 + size, y0 + size], dim=1).int()
    frames = frames.expand(700, -1, -1, -1)
    for part in torch.arange(700, device=CUDA).split(50):
        inputs, crops = kernels.face_input(frames, boxes, part)
        want = torch.empty_like(inputs), torch.empty_like(crops)
        reference.face_input(frames, boxes, part, *want)
        assert_close(crops, want[1], INPUT)
        generated = torch.rand(len(part), 3, 320, 320, device=CUDA)
        for mode in kernels.COMPOSITE_MODES:
            got = kernels.composite(frames, boxes, part, crops, generated, mode=mode)
            expected = torch.empty_like(got)
            reference.composite(frames, boxes, part, crops, generated, mode, "rgb", expected)
            assert_close(got, expected, COMPOSITE)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_gpu_that_is_not_the_current_one():
    pcm = torch.randn(16000)
    first, second = (kernels.log_mel(pcm.to(f"cuda:{number}")).cpu() for number in (0, 1))
    assert torch.equal(first, second)


def test_two_streams_at_once():
    frames, boxes, index, generated = pictures(30, 1280, 720, 25)
    _, crops = kernels.face_input(frames, boxes, index)
    want = kernels.composite(frames, boxes, index, crops, generated)
    torch.cuda.synchronize()
    results = []
    for _ in range(4):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            _, crops = kernels.face_input(frames, boxes, index)
            results.append(kernels.composite(frames, boxes, index, crops, generated))
    torch.cuda.synchronize()
    assert all(torch.equal(result, want) for result in results)
