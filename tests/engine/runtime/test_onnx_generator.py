"""The weights of a generator out of ONNX files: of all forms, and of files that compute something
else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine.errors import InputError
from engine.runtime.onnx_generator import convolutions_of, read_convolutions
from engine.runtime.torch import read_folded
from tests.engine import onnx_files


@pytest.fixture(scope="module")
def plain(networks, checkpoints) -> tuple[Path, dict]:
    """An exported file, and the weights it should have."""
    return networks["generator"], read_folded(checkpoints["generator"], "generator")


def check(path: Path, expected: dict, bound: float) -> None:
    found = read_convolutions(path)
    assert found.keys() == expected.keys()
    for name, pair in expected.items():
        for have, want in zip(found[name], pair, strict=True):
            assert have.dtype == torch.float64 and have.shape == want.shape
            assert (have - want).abs().max() <= bound * want.abs().max(), name


def test_exported_files(plain, halves, fp16_safe_checkpoints, older, tmp_path):
    path, expected = plain
    check(path, expected, 1e-7)
    check(onnx_files.baked_sizes(path, tmp_path / "sizes.onnx"), expected, 1e-7)
    expected = read_folded(fp16_safe_checkpoints["generator"], "generator")
    check(halves["generator"], expected, 5e-4)
    check(onnx_files.float32_outside(halves["generator"], tmp_path / "x.onnx"), expected, 5e-4)
    check(older, expected, 1e-6)  # other names


def with_norms(source: Path, target: Path) -> Path:
    """Split each bias off its convolution, into a batch norm of random variances."""
    model = onnx.load(source)
    graph, rng = model.graph, np.random.default_rng(1)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        if node.op_type != "Conv" or node.input[1].startswith("outc"):
            continue
        node = graph.node[-1]
        weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        name, count = node.output[0], len(bias)
        variance = np.exp(rng.uniform(-9, 9, count))
        mean, scale = rng.normal(size=count), rng.uniform(0.5, 2, count)
        factor = scale / np.sqrt(variance + 1e-3)
        tensors = {
            "scale": scale, "shift": bias + mean * factor, "mean": mean, "variance": variance
        }  # fmt: skip
        weight = (weight / factor[:, None, None, None]).astype(np.float32)
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
        for kind, values in tensors.items():
            values = numpy_helper.from_array(values.astype(np.float32), f"{name} {kind}")
            graph.initializer.append(values)
        names = [f"{name} before", *(f"{name} {kind}" for kind in tensors)]
        node.output[0] = names[0]
        del node.input[2:]
        norm = helper.make_node("BatchNormalization", names, [name], epsilon=1e-3)
        graph.node.append(norm)
    onnx.save(model, target)
    return target


def test_norms_that_are_not_folded(plain, tmp_path):
    path, expected = plain
    check(with_norms(path, tmp_path / "norms.onnx"), expected, 1e-4)


def first(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def leaky(model):
    first(model, "Relu").op_type = "LeakyRelu"


def other_domain(model):
    first(model, "Sigmoid").domain = "ours"


def half_pixels(model):
    set_attribute(first(model, "Resize"), "coordinate_transformation_mode", "half_pixel")


def dilated(model):
    set_attribute(first(model, "Conv"), "dilations", [2, 2])


def other_stride(model):
    node = next(n for n in model.graph.node if "audio_model.conv5.weight" in n.input)
    set_attribute(node, "strides", [1, 1])


def swapped_channels(model):
    node = first(model, "Concat")
    node.input[:] = node.input[::-1]


def no_residual(model):
    node = first(model, "Add")
    node.input[:] = [node.input[0]] * 2


def other_residual(model):
    node = [node for node in model.graph.node if node.op_type == "Add"][1]
    node.input[:] = [first(model, "Add").output[0], node.input[1]]


def other_skip(model):
    nodes = [node for node in model.graph.node if node.op_type == "Concat"]
    nodes[-1].input[1] = first(model, "Conv").output[0]


def subtracts(model):
    first(model, "Add").op_type = "Sub"


def two_outputs(model):
    model.graph.output.append(model.graph.output[0])


def other_shape(model):
    tensor = next(t for t in model.graph.initializer if t.name == "inc.inconv.0.conv.0.weight")
    tensor.dims[0], tensor.dims[1] = 6, 12


def no_numbers(model):
    tensor = next(t for t in model.graph.initializer if t.name == "inc.inconv.0.conv.0.weight")
    tensor.raw_data = tensor.raw_data[:-4]


def outside(model):
    tensor = next(t for t in model.graph.initializer if t.name == "inc.inconv.0.conv.0.weight")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/dev/zero")


def computed_weights(model):
    del model.graph.initializer[0]


def no_output(model):
    del model.graph.output[:]


def goes_round(model):
    first(model, "Sigmoid").input[0] = model.graph.output[0].name


CHANGES = [
    leaky, other_domain, half_pixels, dilated, other_stride, swapped_channels, no_residual,
    other_residual, other_skip, subtracts, two_outputs, other_shape, no_numbers, outside,
    computed_weights, no_output, goes_round,
]  # fmt: skip


@pytest.fixture(scope="module")
def stored(plain) -> onnx.ModelProto:
    return onnx.load(plain[0])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_files_that_compute_something_else(stored, change):
    model = onnx.ModelProto()
    model.CopyFrom(stored)
    change(model)
    with pytest.raises(ValueError, match="."):
        convolutions_of(model.graph)


def test_files_of_something_else(networks, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is not a generator as"):
        read_convolutions(networks["audio_encoder"])
    with pytest.raises(InputError, match="is not a generator as"):
        read_convolutions(onnx_files.strange(tmp_path / "strange.onnx"))
    with pytest.raises(InputError, match="no such file"):
        read_convolutions(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no ONNX\n" * 3)
    with pytest.raises(InputError, match=r"text.onnx is not an ONNX file: .*") as caught:
        read_convolutions(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("engine.runtime.onnx_generator.MAX_BYTES", 10)
    with pytest.raises(InputError, match="10"):
        read_convolutions(tmp_path / "text.onnx")
