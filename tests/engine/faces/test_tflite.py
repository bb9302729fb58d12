"""The converted networks compute what LiteRT, Google's interpreter of TFLite files, computes.

litert.npz has LiteRT's outputs; litert.py made it and says how.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.faces.nets import DETECTOR, MESH

tflite = pytest.importorskip("tflite")
from engine.faces.tflite import _pads, to_onnx  # noqa: E402


@pytest.fixture(scope="module")
def litert() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("litert.npz")) as file:
        return dict(file)


def run(path: Path, pictures: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pictures})


def test_the_detector(litert, face_nets):
    raw, logits = run(face_nets.detector, litert["whole"][None].astype(np.float32) / 127.5 - 1)
    assert raw.shape == (1, 2304, 16) and logits.shape == (1, 2304, 1)
    assert np.argsort(-logits[0, :, 0])[: len(litert["best"])].tolist() == litert["best"].tolist()
    np.testing.assert_allclose(logits[0, litert["best"], 0], litert["logits"], atol=1e-3)
    np.testing.assert_allclose(raw[0, litert["best"]], litert["raw"], atol=2e-3)


def test_the_mesh(litert, face_nets):
    points, presence = run(face_nets.mesh, litert["face"][None].astype(np.float32) / 255)
    np.testing.assert_allclose(points.reshape(468, 3), litert["points"], atol=2e-3)
    np.testing.assert_allclose(presence.item(), litert["presence"], atol=1e-3)


def test_the_batch_size_is_free(litert, face_nets):
    face = litert["face"].astype(np.float32) / 255
    pictures = np.stack([face, face[:, ::-1], face[::-1]])
    together = run(face_nets.mesh, pictures)
    for number, picture in enumerate(pictures):
        for one, many in zip(run(face_nets.mesh, picture[None]), together, strict=True):
            np.testing.assert_allclose(many[number], one[0], atol=1e-3)


def test_weights_are_kept_in_float16_and_nothing_is_computed_in_it(face_nets):
    for path in face_nets:
        model = onnx.load(path)
        kinds = {one.data_type for one in model.graph.initializer if len(one.dims) == 4}
        assert kinds == {onnx.TensorProto.FLOAT16}
        assert path.stat().st_size < 1_300_000
        shaped = onnx.shape_inference.infer_shapes(model).graph
        types = {value.name: value.type.tensor_type.elem_type for value in shaped.value_info}
        weights = {one.name for one in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type != "Cast":
                used = [types[name] for name in node.input if name in types and name not in weights]
                assert onnx.TensorProto.FLOAT16 not in used


def changed(data: bytes, kind: int, to: int) -> bytes:
    """The file with another operator instead of one kind."""
    made, model = bytearray(data), tflite.Model.GetRootAsModel(data, 0)
    for number in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(number)
        if kind in (code.BuiltinCode(), code.DeprecatedBuiltinCode()):
            for field, size in ((4, 1), (10, 4)):  # the older one, the newer one
                if place := code._tab.Offset(field):
                    start = code._tab.Pos + place
                    made[start : start + size] = to.to_bytes(size, "little")
    assert made != data
    return bytes(made)


def test_other_operators_are_refused(face_models):
    data = (face_models / MESH.name).read_bytes()
    operators = tflite.BuiltinOperator
    with pytest.raises(InputError, match="TFLite operator TANH is not supported"):
        to_onnx(changed(data, operators.PRELU, operators.TANH))


def test_other_options_are_refused(face_models):
    data = (face_models / DETECTOR.name).read_bytes()
    model = tflite.Model.GetRootAsModel(data, 0)
    operator = model.Subgraphs(0).Operators(289)
    table = operator.BuiltinOptions()
    options = tflite.ResizeBilinearOptions()
    options.Init(table.Bytes, table.Pos)
    assert options.HalfPixelCenters()
    made = bytearray(data)
    made[table.Pos + table.Offset(10)] = 0
    with pytest.raises(InputError, match="only supported with half-pixel centers"):
        to_onnx(bytes(made))


@given(side=st.integers(1, 50), size=st.integers(1, 7), stride=st.integers(1, 4))
def test_same_padding_as_tensorflow_defines_it(side, size, stride):
    """The output has ceil(side / stride) pixels, and the odd pixel is at the end."""
    top, left, bottom, right = _pads(tflite.Padding.SAME, (side, 9), (size, 1), (stride, 1))
    assert (left, right) == (0, 0) and top <= bottom <= top + 1
    outputs = (side + top + bottom - size) // stride + 1
    assert outputs == -(-side // stride)
    # no more than is needed: with one pixel less there is one output less
    assert top + bottom == 0 or (side + top + bottom - 1 - size) // stride + 1 < outputs
    assert _pads(tflite.Padding.VALID, (side, 9), (size, 1), (stride, 1)) == [0, 0, 0, 0]
