"""The whole generator in its kernels on a GPU, and its layers packed on any machine."""

import pytest
import torch

from engine.plans.comparison import measure, random_inputs
from kernels.generator.network import FusedGenerator, kernels_of
from kernels.generator.plan import layers

triton = pytest.importorskip("triton")
from kernels.generator.wide import Wide  # noqa: E402

CUDA = torch.device("cuda")


def test_each_layer_has_kernels(demo_weights):
    """Packing checks what the kernels support, on the CPU too. Those that write to memory between
    their parts are the ones for which the plan has such memory."""
    made = layers(demo_weights)
    packed = {layer.name: kernels_of(layer, torch.device("cpu"))._packed for layer in made}
    wide = {name: one for name, one in packed.items() if isinstance(one, Wide)}
    assert wide.keys() == {layer.name for layer in made if layer.expanded}
    separate = {name for name, one in wide.items() if one.separate}
    assert separate == {layer.name for layer in made if layer.convolved}
    assert 0 < len(separate) < len(wide) < len(packed)


@pytest.fixture(scope="module")
def network(demo_weights) -> FusedGenerator:
    return FusedGenerator(demo_weights, CUDA)


@pytest.fixture(scope="module")
def frames(module):
    """Seven frames, and what PyTorch makes of them in float32 on the CPU."""
    pictures, audio = (torch.from_numpy(value) for value in random_inputs("generator", 7))
    return pictures.to(CUDA).half(), audio.to(CUDA).half(), module(pictures, audio)


def run(network: FusedGenerator, pictures, audio) -> torch.Tensor:
    """Run on poisoned memory, into an output between guard bands."""
    n, size = len(pictures), 3 * 320 * 320
    torch.full((network.bytes(n) // 2,), torch.nan, dtype=torch.float16, device=CUDA)  # reused
    whole = torch.full(((n + 2) * size,), torch.nan, dtype=torch.float16, device=CUDA)
    out = whole[size:-size].view(n, 3, 320, 320)
    assert network(pictures, audio, out) is out
    assert whole[:size].isnan().all() and whole[-size:].isnan().all()
    return out


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2, 3, 8, 25, 40])
def test_close_to_pytorch_in_any_batch(network, frames, n):
    """Frames do not depend on the batch or on their neighbours in it, beyond rounding."""
    pictures, audio, expected = frames
    index = torch.arange(n) * 3 % 7
    out = run(network, pictures[index], audio[index]).float().cpu()
    found = measure("generator", [out.numpy()], [expected[index].numpy()])
    assert found.psnr >= 55 and found.largest <= 3e-2, found


@pytest.mark.gpu
def test_inputs_in_float32(network, frames):
    pictures, audio, _ = frames
    first = run(network, pictures[:2], audio[:2])
    assert torch.equal(run(network, pictures[:2].float(), audio[:2].float()), first)


@pytest.mark.gpu
def test_a_graph_of_it_reads_new_inputs(network, frames):
    """It allocates from the graph's memory only, and the host waits for nothing."""
    pictures, audio, _ = frames
    given, heard = pictures[:2].clone(), audio[:2].clone()
    out = torch.empty(2, 3, 320, 320, dtype=torch.float16, device=CUDA)
    network(given, heard, out)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        network(given, heard, out)
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    for first in (0, 2, 4):
        given.copy_(pictures[first : first + 2])
        heard.copy_(audio[first : first + 2])
        graph.replay()
        expected = run(network, pictures[first : first + 2], audio[first : first + 2])
        assert torch.equal(out, expected)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] > allocated  # of `run`
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    graph.replay()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
