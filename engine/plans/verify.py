"""Verify in ONNX Runtime, on a CPU, that a converted ONNX graph computes the same results."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from ..errors import InputError, one_line
from .comparison import measure, random_inputs
from .onnx_graph import OnnxGraph


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
    subject = f"{graph.path}, {changes},"
    try:
        actual = after.run([graph.output], _feeds(graph, after, 3))[0]
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise InputError(f"{subject} does not run: {one_line(error)}") from error
    if len(actual) != 3 or actual.shape[1:] != parts[0].shape[1:]:
        raise InputError(
            f"{subject} returns {list(actual.shape)} for a batch of 3; export it with a free batch"
        )
    difference = measure(graph.signature.kind, [actual], parts)
    if excess := difference.excess(precision):
        remedy = "use --precision fp32" if "to fp16" in changes else "export it with a free batch"
        raise InputError(f"{subject} {excess}; {remedy}")
    return difference.relative


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
    """Return random inputs in the types that the session takes."""
    types = {v.name: v.type for v in session.get_inputs()}
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        name: value.astype(dtypes[types[name]])
        for name, value in zip(graph.inputs, random_inputs(graph.signature.kind, n), strict=True)
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
