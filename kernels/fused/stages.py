"""The launchers of all stages, as `kernels.dispatch.Stages` lists them.

They are imported here, not in `__init__`, where their names would hide the modules of that name.
"""

from .color import convert_color
from .composite import composite
from .face_input import face_input
from .log_mel import log_mel
from .resize import resize
from .windows import feature_windows, mel_windows, ring_feature_windows

__all__ = [
    "composite",
    "convert_color",
    "face_input",
    "feature_windows",
    "log_mel",
    "mel_windows",
    "resize",
    "ring_feature_windows",
]
