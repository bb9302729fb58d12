"""A network of faces in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runtime.onnxruntime import open_session


class FaceNetwork:
    """An ONNX file with one input.

    Args:
        path: the file.
        outputs: their names.
        device: "cpu" or "cuda".

    Raises:
        InputError: ONNX Runtime cannot open the file.
        DeviceError: it does not run on the device.
    """

    def __init__(self, path: Path, outputs: list[str], device: str):
        self._session = open_session(path, torch.device(device))
        self._outputs, self._input = outputs, self._session.get_inputs()[0].name

    def __call__(self, values: np.ndarray) -> Any:
        """Return the outputs for a float32 input."""
        return self._session.run(self._outputs, {self._input: values})
