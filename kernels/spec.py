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

MIN_SAMPLES = (MEL_WINDOW - 1) * HOP  # the shortest speech with one whole mel window


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
