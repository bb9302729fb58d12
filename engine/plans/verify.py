"""Verify in ONNX Runtime, on a CPU, that a converted ONNX graph computes the same results."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from ..errors import InputError, one_line
from .onnx_graph import OnnxGraph

# Largest |difference| allowed, relative to 1 for the generator's pixels and to the largest feature
# for the audio encoder. The values are those of python -m export, for the same reasons.
_TOLERANCES = {
    ("generator", "fp16"): 3e-2,
    ("generator", "fp32"): 1e-4,
    ("audio_encoder", "fp16"): 5e-3,
    ("audio_encoder", "fp32"): 1e-4,
}
_MIN_PSNR = 55.0  # dB, for the generator's output


def compare(graph: OnnxGraph, original: onnx.ModelProto, precision: str, changes: str) -> float:
    """Return the largest difference from the original graph on 3 inputs.

    Args:
        graph: the converted graph.
        original: the graph before.
        precision: the lower of the two graphs' precisions.
        changes: the conversions, for errors.

    Raises:
        InputError: it does not run, or differs by more than the tolerance.
    """
    before = open_session(graph, original.SerializeToString())
    after = open_session(graph, graph.data)
    feeds = _feeds(graph, before, 3)
    step = 1 if any(isinstance(value.shape[0], int) for value in before.get_inputs()) else 3
    parts = [
        before.run([graph.output], {name: value[i : i + step] for name, value in feeds.items()})[0]
        for i in range(0, 3, step)
    ]
    expected = np.concatenate(parts).astype(np.float64)
    subject = f"{graph.path}, {changes},"
    try:
        actual = after.run([graph.output], _feeds(graph, after, 3))[0].astype(np.float64)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(f"{subject} does not run: {one_line(error)}") from error
    if actual.shape != expected.shape:
        raise InputError(
            f"{subject} returns {list(actual.shape)} for a batch of 3; export it with a free batch"
        )
    scale = 1.0 if graph.signature.kind == "generator" else max(np.abs(expected).max(), 1e-30)
    difference = float(np.abs(actual - expected).max() / scale)
    tolerance = _TOLERANCES[graph.signature.kind, precision]
    remedy = "use --precision fp32" if "to fp16" in changes else "export it with a free batch"
    if not difference <= tolerance:
        raise InputError(
            f"{subject} differs by {difference:.2g}; expected at most {tolerance:g}; {remedy}"
        )
    squares = float(np.square(actual - expected).mean())
    if graph.signature.kind == "generator" and squares > 10 ** (-_MIN_PSNR / 10):
        psnr = -10 * np.log10(squares)
        raise InputError(
            f"{subject} has a PSNR of {psnr:.1f} dB; expected at least {_MIN_PSNR:g}; {remedy}"
        )
    return difference


def open_session(
    graph: OnnxGraph, data: bytes, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(
            f"{graph.path} cannot be opened by ONNX Runtime: {one_line(error)}"
        ) from error


def _feeds(
    graph: OnnxGraph, session: onnxruntime.InferenceSession, n: int
) -> dict[str, np.ndarray]:
    """Return random inputs of realistic scale, in the types that the session takes."""
    rng = np.random.default_rng(0)
    if graph.signature.kind == "audio_encoder":
        values = [rng.uniform(-4, 4, (n, 1, 80, 16))]
    else:
        blocks = rng.random((n, 6, 10, 10)).repeat(32, axis=2).repeat(32, axis=3)
        blocks[:, 3:, 5:310, 5:315] = 0  # the mouth is masked
        values = [blocks, np.maximum(rng.standard_normal((n, 32, 16, 16)), 0)]
    types = {v.name: v.type for v in session.get_inputs()}
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        name: value.astype(dtypes[types[name]])
        for name, value in zip(graph.inputs, values, strict=True)
    }


def check_fp16_range(graph: OnnxGraph) -> None:
    """Check that no tensor's values exceed float16's range.

    Every tensor of the graph is computed in float32 and its peak compared with 65504. Running the
    float16 graph would not show an overflow, because ONNX Runtime on a CPU computes it in float32.

    Raises:
        InputError: a value exceeds 65504. The message has the value and the node.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    inner = probe.graph
    inferred = onnx.shape_inference.infer_shapes(probe).graph
    floats = {
        value.name
        for value in [*inferred.value_info, *inferred.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    places = {}
    for node in list(inner.node):
        for name in floats.intersection(node.output):
            peak = f"{name}/peak"
            inner.node.add(op_type="Abs", input=[name], output=[f"{peak}/abs"])
            largest = inner.node.add(op_type="ReduceMax", input=[f"{peak}/abs"], output=[peak])
            largest.attribute.append(helper.make_attribute("keepdims", 0))
            inner.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
            places[peak] = node.name or name
    session = open_session(graph, probe.SerializeToString())
    peaks = session.run(list(places), _feeds(graph, session, 1))
    for place, peak in zip(places.values(), peaks, strict=True):
        if not peak <= np.finfo(np.float16).max:
            raise InputError(
                f"{graph.path}: values reach {peak:.3g} at {place}, beyond fp16's 65504; "
                "use --precision fp32"
            )
