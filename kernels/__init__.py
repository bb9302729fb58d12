"""The stages of the pipeline, one function each.

Tensors on CUDA run Triton kernels, tensors on a CPU plain PyTorch; callers do not choose. (With
TRITON_INTERPRET=1 in the environment, CPU tensors run the Triton kernels in Triton's interpreter,
which is how the kernels are tested without a GPU.) Every function takes `out=` to write into and
raises `ValueError`, with the offending value and what is supported, before it computes anything.
The values of indices, boxes and lengths are not checked, because they may be on the device: check
values from outside beforehand, as `engine.Avatar` does.

The first call on a GPU compiles the kernels and uploads tables. Later calls never wait for the
device, with `out=` they allocate nothing (unless an input other than the frames has to be made
contiguous first), and CUDA graphs can capture every stage. These compile again: another dtype,
mode, format or alignment; a frame width with another power of two as a factor; a batch or a speech
of another size class (`face_input`: 1 to 3, 4 to 15, 16 and more faces; `log_mel`: up to 512 mel
rows in all, and more).
"""

from . import reference
from .audio import (
    feature_windows,
    log_mel,
    mel_windows,
    ring_feature_windows,
)
from .faces import composite, face_input
from .images import convert_color, resize
from .spec import (
    COLOR_FORMATS,
    COMPOSITE_FORMATS,
    COMPOSITE_MODES,
    CROP_SIZE,
    FEATURE_DIM,
    FEATURES_PER_FRAME,
    FPS,
    HOP_LENGTH,
    MASK_COLUMNS,
    MASK_ROWS,
    MAX_SIDE,
    MEL_BANDS,
    MEL_WINDOW_ROWS,
    MIN_SAMPLES,
    RESIZE_MODES,
    ROI_SIZE,
    SAMPLE_RATE,
    ByteFormat,
    ColorFormat,
    CompositeMode,
    ResizeMode,
    frame_count,
    mel_rows,
    mel_window_count,
)

__all__ = [
    "COLOR_FORMATS",
    "COMPOSITE_FORMATS",
    "COMPOSITE_MODES",
    "CROP_SIZE",
    "FEATURES_PER_FRAME",
    "FEATURE_DIM",
    "FPS",
    "HOP_LENGTH",
    "MASK_COLUMNS",
    "MASK_ROWS",
    "MAX_SIDE",
    "MEL_BANDS",
    "MEL_WINDOW_ROWS",
    "MIN_SAMPLES",
    "RESIZE_MODES",
    "ROI_SIZE",
    "SAMPLE_RATE",
    "ByteFormat",
    "ColorFormat",
    "CompositeMode",
    "ResizeMode",
    "composite",
    "convert_color",
    "face_input",
    "feature_windows",
    "frame_count",
    "log_mel",
    "mel_rows",
    "mel_window_count",
    "mel_windows",
    "reference",
    "resize",
    "ring_feature_windows",
]
