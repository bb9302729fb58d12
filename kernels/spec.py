"""The sizes, rates and formats that all stages share, and the counts that follow from them."""

from typing import Literal, get_args

SAMPLE_RATE = 16000  # of PCM, Hz
HOP_LENGTH = 200  # samples from one mel row to the next
WIN_LENGTH = 800  # samples of one analysis window
MEL_RATE = SAMPLE_RATE // HOP_LENGTH  # mel rows per second
MEL_BANDS = 80
MEL_WINDOW_ROWS = 16  # mel rows of one audio-encoder input
FEATURE_DIM = 512  # numbers that the audio encoder makes of one mel window
FEATURES_PER_FRAME = 16  # features that the generator gets for one video frame
FPS = 25  # video frames per second, unless an avatar says otherwise

CROP_SIZE = 328  # side of the face crop, pixels
ROI_SIZE = 320  # side of the generator's picture, which is the crop without its margin
MARGIN = (CROP_SIZE - ROI_SIZE) // 2
MASK_ROWS = (5, 310)  # half-open ranges: the part of the ROI that the generator must not see
MASK_COLUMNS = (5, 315)

MAX_SIDE = 8192  # of a picture, pixels; the integer sampling positions are exact up to it
MIN_SAMPLES = (MEL_WINDOW_ROWS - 1) * HOP_LENGTH  # the shortest speech with one whole mel window

CompositeMode = Literal["crop", "direct"]
ResizeMode = Literal["bilinear", "bicubic", "direct"]
ByteFormat = Literal["rgb", "bgr", "rgba", "nv12", "i420"]
ColorFormat = Literal[ByteFormat, "planar_bgr"]
COMPOSITE_MODES: tuple[CompositeMode, ...] = get_args(CompositeMode)
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
COMPOSITE_FORMATS: tuple[ByteFormat, ...] = get_args(ByteFormat)
COLOR_FORMATS: tuple[ColorFormat, ...] = get_args(ColorFormat)
YUV_FORMATS: tuple[ByteFormat, ...] = ("nv12", "i420")  # the same bytes in another order

# BT.709, limited range (Y 16-235, U and V 16-240), as integers over 65536, so that every
# implementation rounds alike. Y_RGB, U_RGB and V_RGB weigh R, G and B; the others go back.
# The weights of U and of V must sum to zero so that grey has no chroma; green takes the
# rounding error.
_KR, _KB = 0.2126, 0.0722
_LUMA, _CHROMA = 65536 * 219 / 255, 65536 * 224 / 255
YUV_SHIFT = 16
Y_RGB = (round(_LUMA * _KR), round(_LUMA * (1 - _KR - _KB)), round(_LUMA * _KB))
_U_R, _U_B = round(-_CHROMA * _KR / (2 - 2 * _KB)), round(_CHROMA / 2)
U_RGB = (_U_R, -_U_R - _U_B, _U_B)
_V_R, _V_B = round(_CHROMA / 2), round(-_CHROMA * _KB / (2 - 2 * _KR))
V_RGB = (_V_R, -_V_R - _V_B, _V_B)
RGB_Y = round(65536 * 255 / 219)
R_V = round(65536 * 255 / 224 * (2 - 2 * _KR))
B_U = round(65536 * 255 / 224 * (2 - 2 * _KB))
G_U = round(-65536 * 255 / 224 * (2 - 2 * _KB) * _KB / (1 - _KR - _KB))
G_V = round(-65536 * 255 / 224 * (2 - 2 * _KR) * _KR / (1 - _KR - _KB))


def mel_rows(samples: int) -> int:
    """Return the number of mel rows of `samples` samples: T = 1 + S // 200."""
    return 1 + samples // HOP_LENGTH


def mel_window_count(rows: int, fps: float = FPS) -> int:
    """Return the number of mel windows, and so of features: M = int((T - 16) / 80 * fps) + 2.

    The division is done in floating point, in this order: trained avatars were cut that way,
    and exact arithmetic gives one window more for some lengths.

    Args:
        rows: T, rows of the mel.
        fps: video frames per second.

    Raises:
        ValueError: `rows` is less than one mel window (16).
    """
    if rows < MEL_WINDOW_ROWS:
        raise ValueError(
            f"speech is too short: {rows} mel rows; expected at least {MEL_WINDOW_ROWS} "
            f"({MIN_SAMPLES} samples at {SAMPLE_RATE} Hz, {MIN_SAMPLES / SAMPLE_RATE:.2f} s)"
        )
    return int((rows - MEL_WINDOW_ROWS) / MEL_RATE * float(fps)) + 2


def frame_count(windows: int) -> int:
    """Return the number of video frames of `windows` features: N = M + 2.

    The first and the last feature each count twice, see `kernels.feature_windows`.
    """
    return windows + 2
