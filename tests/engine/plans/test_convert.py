"""ONNX files converted for TensorRT compute what PyTorch computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine import InputError
from engine.plans.convert import convert
from engine.plans.onnx_graph import load_graph
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from models import checkpoint
from tests.engine import onnx_files
from tests.tolerances import TOLERANCES, assert_close

SIGNATURES = {"generator": GENERATOR, "audio_encoder": AUDIO_ENCODER}
TOLERANCE = 5e-3  # relative to the largest value, for weights and values in float16


@pytest.fixture(scope="module")
def expected(fp16_safe_checkpoints):
    """kind -> 3 inputs, and PyTorch's outputs in float32."""
    generator = torch.Generator().manual_seed(5)
    inputs = {
        "generator": [
            torch.rand(3, 6, 320, 320, generator=generator),
            torch.randn(3, 32, 16, 16, generator=generator),
        ],
        "audio_encoder": [torch.rand(3, 1, 80, 16, generator=generator) * 8 - 4],
    }
    found = {}
    with torch.inference_mode():
        for kind, tensors in inputs.items():
            found[kind] = tensors, checkpoint.load(fp16_safe_checkpoints[kind])(*tensors)
    return found


def from_half(make, kind):
    return lambda files, target: make(files[kind], target)


@pytest.mark.parametrize(
    ("kind", "precision", "freed", "make"),
    [
        ("generator", "fp16", True, lambda files, target: files["older"]),
        ("generator", "fp16", True, from_half(onnx_files.baked_sizes, "generator")),
        ("audio_encoder", "fp16", True, from_half(onnx_files.baked_reshape, "audio_encoder")),
        ("audio_encoder", "fp32", True, from_half(onnx_files.baked_reshape, "audio_encoder")),
        ("audio_encoder", "fp16", False, from_half(onnx_files.float32_outside, "audio_encoder")),
        ("audio_encoder", "fp32", False, from_half(onnx_files.float32_outside, "audio_encoder")),
        ("audio_encoder", "fp32", False, from_half(onnx_files.weights_beside, "audio_encoder")),
    ],
    ids=[
        "older exporter",
        "sizes",
        "reshape",
        "reshape to fp32",
        "float32 outside",
        "float32 outside to fp32",
        "weights beside",
    ],
)
def test_conversion(halves, older, expected, tmp_path, kind, precision, freed, make):
    path = make({**halves, "older": older}, tmp_path / "made.onnx")
    graph = load_graph(SIGNATURES[kind], path)
    convert(graph, precision)
    assert any("batch of 1 freed" in notice for notice in graph.notices) == freed
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    dtype = {"fp16": np.float16, "fp32": np.float32}[precision]
    name = {"fp16": "tensor(float16)", "fp32": "tensor(float)"}[precision]
    assert {value.type for value in [*session.get_inputs(), *session.get_outputs()]} == {name}
    tensors, wanted = expected[kind]
    feeds = {n: t.numpy().astype(dtype) for n, t in zip(graph.inputs, tensors, strict=True)}
    (output,) = session.run([graph.output], feeds)
    assert output.dtype == dtype and output.shape == tuple(wanted.shape)
    difference = np.abs(output.astype(np.float64) - wanted.numpy()).max()
    assert difference < TOLERANCE * wanted.abs().max()
    # every weight has the precision, except a Resize's region and scales, which are float32
    inner, other = graph.model.graph, {"fp16": TensorProto.FLOAT, "fp32": TensorProto.FLOAT16}
    wrong = {tensor.name for tensor in inner.initializer if tensor.data_type == other[precision]}
    for node in inner.node:
        data = node.input[:1] if node.op_type == "Resize" else node.input
        assert not wrong.intersection(data), node.name


def test_matching_graphs_are_not_converted(halves):
    for kind, signature in SIGNATURES.items():
        graph = load_graph(signature, halves[kind])
        convert(graph, "fp16")
        assert graph.data == halves[kind].read_bytes() and graph.notices == []


def audio_encoder(tmp_path, nodes, weights):
    """Make a float32 ONNX file of these nodes, with an audio encoder's input and output."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 1, 80, 16])],
        [value("y", TensorProto.FLOAT, ["n", 512])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    return path


def first_512(inputs):
    """Return nodes that flatten a tensor and take its first 512 values as "y"."""
    return [
        helper.make_node("Flatten", [inputs], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "end", "one"], ["y"]),
    ]


SLICE = {
    "zero": np.array([0], np.int64),
    "end": np.array([512], np.int64),
    "one": np.array([1], np.int64),
}


def test_a_batch_norm_whose_variance_is_beyond_float16(tmp_path):
    """It is folded into the convolution before it in float32."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"]),
        *first_512("b"),
    ]
    weights = {
        "w": np.full((1, 1, 3, 3), 30.0, np.float32),
        "scale": np.array([2.0], np.float32),
        "bias": np.array([0.5], np.float32),
        "mean": np.array([3.0], np.float32),
        "var": np.array([1e5], np.float32),
    }
    path = audio_encoder(tmp_path, nodes, {**weights, **SLICE})
    graph = load_graph(AUDIO_ENCODER, path)
    convert(graph, "fp16")
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Flatten", "Slice"]
    x = torch.rand(2, 1, 80, 16) * 8 - 4
    c = torch.nn.functional.conv2d(x, torch.full((1, 1, 3, 3), 30.0), padding=1)
    wanted = (c - 3) / np.sqrt(1e5) * 2 + 0.5
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x.numpy().astype(np.float16)})
    formula = TOLERANCES["converted graph", torch.float16, "formula"]
    assert_close(y, wanted.flatten(1)[:, :512], formula)


def test_floats_of_shapes_stay_float32(tmp_path):
    """Older exporters compute sizes in float32, also in a float16 network."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sizes", "half"], ["halves"]),
        helper.make_node("Cast", ["halves"], ["target"], to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "target"], ["r"], mode="nearest"),
        helper.make_node("Mul", ["r", "gain"], ["g"]),
        helper.make_node("Concat", ["g", "g"], ["two"], axis=1),
        *first_512("two"),
    ]
    # the same constant for a size and for the data
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    weights = {"half": scales, "gain": np.array([3.0], np.float32), **SLICE}
    graph = load_graph(AUDIO_ENCODER, audio_encoder(tmp_path, nodes, weights))
    convert(graph, "fp16")
    inner = graph.model.graph
    types = {tensor.name: tensor.data_type for tensor in inner.initializer}
    for node in inner.node:
        if node.op_type == "Mul":
            wanted = TensorProto.FLOAT16 if "g" in node.output else TensorProto.FLOAT
            assert types[node.input[1]] == wanted
    x = np.random.default_rng(0).uniform(-4, 4, (3, 1, 80, 16)).astype(np.float16)
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    assert y.shape == (3, 512) and y.dtype == np.float16


@pytest.mark.parametrize(
    ("gain", "message"),
    [(1e5, r"g16 is not finite in fp16|values reach"), (2e4, r"values reach 8e\+04 at loud")],
)
def test_values_beyond_float16_are_refused(tmp_path, gain, message):
    nodes = [
        helper.make_node("Mul", ["x", "g16"], ["l"], "loud"),
        helper.make_node("Div", ["l", "g16"], ["q"], "quiet"),
        *first_512("q"),
    ]
    path = audio_encoder(tmp_path, nodes, {"g16": np.array([gain], np.float32), **SLICE})
    with pytest.raises(InputError, match=f"{message}.*use --precision fp32") as caught:
        convert(load_graph(AUDIO_ENCODER, path), "fp16")
    assert "\n" not in str(caught.value)
    convert(load_graph(AUDIO_ENCODER, path), "fp32")


def test_small_errors_everywhere_are_refused(networks, monkeypatch):
    monkeypatch.setattr("engine.plans.comparison.MIN_PSNR", 200.0)
    said = r"to fp16, has a PSNR of \d\d\.\d dB; expected at least 200; use --precision fp32"
    with pytest.raises(InputError, match=said):
        convert(load_graph(GENERATOR, networks["generator"]), "fp16")
