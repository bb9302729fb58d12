"""The sizes and rates that every stage agrees on, and how many of what there are."""

SAMPLE_RATE = 16000  # PCM, Hz
HOP = 200  # samples from one mel row to the next
WINDOW = 800  # samples under the analysis window
MEL_RATE = SAMPLE_RATE // HOP  # mel rows a second
MEL_BANDS = 80
MEL_WINDOW = 16  # mel rows that the audio encoder sees at once
FEATURE = 512  # numbers the audio encoder makes of one mel window
FEATURE_WINDOW = 16  # features that the generator sees at once
FPS = 25  # video frames a second, unless an avatar says otherwise

CROP = 328  # side of the face crop
ROI = 320  # side of the generator's picture: the crop without its margin
MARGIN = (CROP - ROI) // 2
MASK_ROWS = (5, 310)  # the part of the ROI that the generator must not see: half-open ranges
MASK_COLUMNS = (5, 315)

MAX_SIDE = 8192  # of a picture, pixels: what the integer sampling positions are made for
MIN_SAMPLES = (MEL_WINDOW - 1) * HOP  # the shortest speech with one whole mel window

# BT.709, limited range (Y 16-235, U and V 16-240), in integers over 65536 so that every
# implementation rounds alike: rows Y, U, V of the columns R, G, B, and back.
# In each row that must not see grey, green is what makes the sum zero.
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
    """Rows of the mel of `samples` samples: T = 1 + S // 200."""
    return 1 + samples // HOP


def mel_window_count(rows: int, fps: float = FPS) -> int:
    """Mel windows (and features) in a mel of `rows` rows: M = int((T - 16) / 80 * fps) + 2.

    The division is done in floating point, in this order: trained avatars were cut that way,
    and exact arithmetic gives one window more for some lengths.

    Raises:
        ValueError: fewer rows than one mel window (16).
    """
    if rows < MEL_WINDOW:
        raise ValueError(
            f"speech is too short: {rows} mel rows, at least {MEL_WINDOW} are needed "
            f"({MIN_SAMPLES} samples at {SAMPLE_RATE} Hz, {MIN_SAMPLES / SAMPLE_RATE:.2f} s)"
        )
    return int((rows - MEL_WINDOW) / MEL_RATE * float(fps)) + 2


def frame_count(windows: int) -> int:
    """Video frames of a render with `windows` features: N = M + 2, the first and last held."""
    return windows + 2
