"""The whole generator on top of its reference, and the plan of its buffer."""

import pytest
import torch

from engine.plans.comparison import measure
from kernels.generator.network import FusedGenerator, reference_of
from kernels.generator.plan import layers, places
from tests.kernels.generator.rounding import rounded_of

CPU = torch.device("cpu")


def run(network: FusedGenerator, samples, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    n = len(samples.inputs)
    out = torch.full((n, 3, 320, 320), torch.nan, dtype=dtype)
    assert network(samples.inputs.to(dtype), samples.audio.to(dtype), out) is out
    return out


def difference(out: torch.Tensor, expected: torch.Tensor):
    return measure("generator", [out.float().numpy()], [expected.numpy()])


def test_computes_what_pytorch_computes(demo_weights, samples):
    """A batch of two different frames, in float32."""
    out = run(FusedGenerator(demo_weights, CPU, reference_of, dtype=torch.float32), samples)
    assert difference(out, samples.expected).largest < 1e-5


def test_accurate_with_the_kernels_rounding(demo_weights, samples):
    out = run(FusedGenerator(demo_weights, CPU, rounded_of), samples, torch.float16)
    for frame, expected in zip(out, samples.expected, strict=True):
        found = difference(frame[None], expected[None])
        assert found.psnr >= 55 and found.largest <= 3e-2, found


def test_no_two_activations_that_are_needed_overlap(demo_weights):
    """Each layer's results get numbers of their own, which are there when they are read."""
    numbers: dict[str, float] = {}

    def numbered_of(layer, device):
        def run(x, out, **others):
            made = {"out": out} | {n: others.pop(n) for n in ("expanded", "convolved")}
            read = {"x": x, **others}

            def check(tensors):
                for name, tensor in tensors.items():
                    if tensor is not None and (value := numbers.get(getattr(layer, name).name)):
                        assert bool((tensor == value).all()), (layer.name, name)

            check(read)
            for name, tensor in made.items():
                if tensor is not None:
                    numbers[getattr(layer, name).name] = float(len(numbers) + 1)
                    tensor.fill_(len(numbers))
            check(read | made)  # its own results do not overlap what it reads

        return run

    network = FusedGenerator(demo_weights, CPU, numbered_of)
    out = torch.zeros(1, 3, 320, 320, dtype=torch.float16)
    network(torch.zeros(1, 6, 320, 320).half(), torch.zeros(1, 32, 16, 16).half(), out)
    assert len(numbers) > 45 and out.unique().tolist() == [numbers["out"]]


def test_the_buffer_is_no_larger_than_what_is_needed_at_one_time(demo_weights):
    made = layers(demo_weights)
    planned = places(made).values()
    needed = [
        sum(2 * place.activation.values for place in planned if place.first <= at <= place.last)
        for at in range(len(made))
    ]
    assert all(place.begin % 128 == 0 for place in planned)  # for wide accesses
    network = FusedGenerator(demo_weights, CPU, reference_of)
    assert network.bytes(1) == max(needed) < 13e6
    assert network.bytes(25) == 25 * network.bytes(1)


def test_little_memory_traffic(demo_weights):
    """At most 110 MB a frame; layer by layer, the generator moves 358 MB."""
    network = FusedGenerator(demo_weights, CPU, reference_of)
    assert 60e6 < sum(network.traffic.values()) < 110e6
    # three planes of float16, and 32 channels of the same size
    assert network.traffic["inc"] == 2 * 320 * 320 * (3 + 32)
    assert network.traffic["up5.0"] == 2 * 320 * 320 * (32 // 4 + 32 + 16)
    # a residual block reads its input twice
    assert network.traffic["down3.1"] == 2 * 40 * 40 * (128 + 2 * 256 + 128 + 128)
    assert network.traffic["down4.1"] == 2 * 20 * 20 * (256 + 2 * 512 + 2 * 512 + 256 + 256)


def test_the_model_says_how_much_is_moved(demo_weights):
    from kernels.generator.network_cases import traffic_line  # needs Triton

    moved = sum(FusedGenerator(demo_weights, CPU, reference_of).traffic.values()) / 1e6
    # 12.15 million weights of two bytes
    line = f"The generator moves {moved:.1f} MB a frame, and 24.3 MB of weights a batch."
    assert traffic_line() == line


def test_an_empty_batch(demo_weights):
    network = FusedGenerator(demo_weights, CPU, reference_of)
    out = torch.empty(0, 3, 320, 320)
    assert network(torch.empty(0, 6, 320, 320), torch.empty(0, 32, 16, 16), out) is out


@pytest.mark.parametrize(
    ("inputs", "audio", "out"),
    [
        ((2, 6, 320, 320), (1, 32, 16, 16), (1, 3, 320, 320)),
        ((1, 6, 256, 256), (1, 32, 16, 16), (1, 3, 256, 256)),
        ((1, 6, 320, 320), (2, 32, 16, 16), (1, 3, 320, 320)),
        ((1, 6, 320, 320), (1, 16, 16, 32), (1, 3, 320, 320)),
    ],
)
def test_wrong_shapes(demo_weights, inputs, audio, out):
    network = FusedGenerator(demo_weights, CPU, reference_of)
    with pytest.raises(ValueError, match="; expected"):
        network(torch.empty(inputs), torch.empty(audio), torch.empty(out))
