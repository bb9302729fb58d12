"""The generator in few passes over memory: what it computes, and how many passes there are."""

from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from models.batch_norm import fold_batch_norms
from models.fused_generator import FusedGenerator
from models.generator import InvertedResidual

SHAPES = (6, 320, 320), (32, 16, 16), (3, 320, 320)  # of inputs and output


@pytest.fixture(scope="module")
def fused(generator) -> FusedGenerator:
    """Of the generator, whose norms are random, in float32."""
    folded = deepcopy(generator).double()
    fold_batch_norms(folded)
    return FusedGenerator(folded).float()


def inputs(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    first, second, _ = SHAPES
    return [
        torch.rand(n, *first, generator=generator),
        torch.randn(n, *second, generator=generator),
    ]


@torch.inference_mode()
def test_computes_what_the_generator_computes(generator, fused):
    """The output may have any strides."""
    given = inputs(1)
    expected = generator(*given)
    assert expected.std() > 0.01
    out = torch.full(expected.shape, torch.nan).contiguous(memory_format=torch.channels_last)
    fused(*given, out=out)
    assert (out - expected).abs().max() < 1e-5


def test_every_product_has_its_epilogue(generator, fused):
    """61 convolutions of 1x1 are matrix products that add the bias, 30 of them with ReLU. 30
    depthwise ones are sums, with the bias, and 2 convolutions are left. (The compiler for an H200
    makes 51 kernels of the rest: one a depthwise convolution with bias and ReLU, one for each
    upsampling with its concatenation.)"""
    on_meta = deepcopy(fused).to("meta")

    def call(*tensors):
        on_meta(*tensors)
        return ()

    with torch.inference_mode():
        graph = make_fx(call)(*(torch.empty(1, *shape, device="meta") for shape in SHAPES)).graph
    counts = Counter(str(n.target) for n in graph.nodes if n.op == "call_function")
    blocks = sum(isinstance(layer, InvertedResidual) for layer in generator.modules())
    assert blocks == 30
    assert counts["aten._addmm_activation.default"] == blocks
    assert counts["aten.addmm.default"] == blocks + 1
    assert counts["aten.convolution.default"] == 2
    assert counts["aten.relu.default"] == blocks + 2
    assert counts["aten.cat.default"] == 6 and counts["aten.copy_.default"] == 1
    # matrix products of rows that are multiples of 16 bytes in float16
    for node in graph.nodes:
        if "addmm" in str(node.target):
            _, rows, weight, *_ = node.args
            rows, weight = rows.meta["val"], weight.meta["val"]
            assert rows.shape[1] % 8 == weight.shape[1] % 8 == 0
            assert rows.is_contiguous() and weight.t().is_contiguous()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
@torch.inference_mode()
def test_the_compiler_traces_it_whole(fused):
    """Without a break in the graph."""
    graphs = []

    def backend(graph, examples, **_):
        graphs.append(graph)
        return lambda *tensors: ()

    out = torch.empty(1, *SHAPES[2])
    torch.compile(fused, backend=backend, fullgraph=True, dynamic=False)(*inputs(1), out=out)
    assert len(graphs) == 1
