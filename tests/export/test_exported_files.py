"""The exported files: their content and their results."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.tolerances import TOLERANCES, assert_close

TENSOR_TYPE = {"fp16": onnx.TensorProto.FLOAT16, "fp32": onnx.TensorProto.FLOAT}


def inputs_of(network, n):
    torch.manual_seed(n)
    if type(network).__name__ == "AudioEncoder":
        return [8 * torch.rand(n, 1, 80, 16) - 4]
    return [torch.rand(n, 6, 320, 320), torch.randn(n, 32, 16, 16).relu()]


def described(values):
    return [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values
    ]


def test_names_shapes_and_types(exported, kind):
    model = onnx.load(exported.file, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    inputs, outputs = {
        "generator": (
            [("input", ["batch", 6, 320, 320]), ("audio", ["batch", 32, 16, 16])],
            [("output", ["batch", 3, 320, 320])],
        ),
        "audio_encoder": (
            [("mel_spectrogram", ["batch", 1, 80, 16])],
            [("audio_features", ["batch", 512])],
        ),
    }[kind]
    assert described(model.graph.input) == inputs
    assert described(model.graph.output) == outputs
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TENSOR_TYPE[exported.report.precision]


def test_no_redundant_nodes(exported, kind):
    model = onnx.load(exported.file)
    assert (
        collections.Counter(node.op_type for node in model.graph.node)
        == {
            "generator": {
                "Conv": 93,
                "Relu": 62,
                "Add": 15,
                "Concat": 6,
                "Resize": 5,
                "Sigmoid": 1,
            },
            "audio_encoder": {"Conv": 13, "Relu": 13, "Add": 7, "Squeeze": 2},
        }[kind]
    )
    assert len(model.graph.node) == exported.report.nodes


def test_weights_are_in_the_file_in_its_precision(exported):
    model = onnx.load(exported.file, load_external_data=False)
    weights = [t for t in model.graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {TENSOR_TYPE[exported.report.precision]}
    assert not any(t.external_data for t in model.graph.initializer)
    assert exported.file.stat().st_size == exported.report.bytes


def test_files_contain_no_paths(exported):
    model = onnx.load(exported.file)
    for weights in model.graph.initializer:
        weights.ClearField("raw_data")  # fifty random megabytes contain ".py" by chance
    content = model.SerializeToString()
    assert len(content) < 200_000
    assert b".py" not in content and b"/models/" not in content


@pytest.mark.parametrize("n", [1, 2, 5])
@torch.inference_mode()
def test_computes_what_pytorch_does(exported, kind, n):
    inputs = inputs_of(exported.network, n)
    expected = exported.network(*inputs).numpy()
    # A network whose output hardly varies would pass whatever was exported.
    assert expected.std() > 0.05 * expected.max()

    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    dtype = np.float16 if exported.report.precision == "fp16" else np.float32
    names = [i.name for i in session.get_inputs()]
    feeds = {name: x.numpy().astype(dtype) for name, x in zip(names, inputs, strict=True)}
    (actual,) = session.run(None, feeds)
    assert actual.dtype == dtype and actual.shape == expected.shape
    precision = torch.from_numpy(actual).dtype
    assert_close(actual, expected, TOLERANCES[kind, precision, "PyTorch"])


def test_report_gives_the_differences(exported, kind):
    report = exported.report
    assert report.file == exported.file
    low, high = {"fp16": (1e-5, 5e-3), "fp32": (1e-9, 1e-5)}[report.precision]
    assert low < report.relative_difference < high
    if kind == "generator":
        assert report.max_difference == report.relative_difference
        assert report.psnr >= 55
    else:
        assert report.psnr is None


def test_max_batch_1_fixes_the_batch(audio_encoder_checkpoint, tmp_path):
    from export import export

    file = tmp_path / "one.onnx"
    export("audio_encoder", audio_encoder_checkpoint[1], file, precision="fp32", max_batch=1)
    model = onnx.load(file)
    assert described(model.graph.input) == [("mel_spectrogram", [1, 1, 80, 16])]
    assert described(model.graph.output) == [("audio_features", [1, 512])]
