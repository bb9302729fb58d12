"""The usual implementation: librosa, OpenCV and eager PyTorch, one frame after another.

It shares no code with `kernels` and `engine`. Tests compare the pipeline with it, and
`benchmarks.render` measures both in the same run.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch

Box = tuple[int, int, int, int]


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Convert (S,) samples at 16 kHz to a mel, (T, 80) float64 in [-4, 4]."""
    import librosa  # here, because GPU hosts may lack it and use only the other functions

    x = pcm.astype(np.float64)
    emphasised = np.append(x[0], x[1:] - 0.97 * x[:-1])
    spectrum = librosa.stft(
        emphasised, n_fft=800, hop_length=200, win_length=800, center=True, pad_mode="constant"
    )
    filters = librosa.filters.mel(
        sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600, dtype=np.float64
    )
    mel = filters @ np.abs(spectrum)
    decibels = 20 * np.log10(np.maximum(1e-5, mel)) - 20
    return np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).T


def mel_windows(mel: np.ndarray) -> np.ndarray:
    """Cut the audio encoder's inputs out of a (T, 80) mel: (M, 1, 80, 16) float32."""
    count = int((len(mel) - 16) / 80 * 25) + 2
    starts = [min(int(80 * frame / 25), len(mel) - 16) for frame in range(count)]
    return np.stack([mel[start : start + 16].T for start in starts])[:, None].astype(np.float32)


def pad(features: np.ndarray) -> np.ndarray:
    """Repeat the first and the last of (M, 512) features: (M + 2, 512)."""
    return np.concatenate([features[:1], features, features[-1:]])


def encode(mel: np.ndarray, encoder: torch.nn.Module) -> np.ndarray:
    """Encode a (T, 80) mel: (M + 2, 512) padded features."""
    with torch.inference_mode():
        parts = torch.from_numpy(mel_windows(mel)).split(64)
        return pad(np.concatenate([encoder(part).numpy() for part in parts]))


def feature_window(padded: np.ndarray, frame: int) -> np.ndarray:
    """Return rows frame - 8 to frame + 7 of the features, zeros outside, as (32, 16, 16)."""
    window = np.zeros((16, 512), np.float32)
    for place, row in enumerate(range(frame - 8, frame + 8)):
        if 0 <= row < len(padded):
            window[place] = padded[row]
    return window.reshape(32, 16, 16)


def cut(frame: np.ndarray, box: Box) -> np.ndarray:
    """Cut the box out of an (H, W, 3) frame; pixels outside the frame repeat its edge."""
    x0, y0, x1, y1 = box
    height, width = frame.shape[:2]
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = max(0, y1 - height), max(0, x1 - width)
    padded = cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_REPLICATE)
    return padded[y0 + top : y1 + top, x0 + left : x1 + left]


def face_input(frame: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the generator's input, (6, 320, 320) float32, and the (328, 328, 3) BGR crop."""
    crop = cv2.resize(cut(frame, box), (328, 328), interpolation=cv2.INTER_CUBIC)
    return generator_input(crop), crop


def generator_input(crop: np.ndarray) -> np.ndarray:
    """Return (6, 320, 320) float32: the inner part of a crop, then the same with a mask."""
    roi = crop[4:324, 4:324].copy()
    masked = cv2.rectangle(roi.copy(), (5, 5), (314, 309), (0, 0, 0), -1)
    planes = np.concatenate([roi.transpose(2, 0, 1), masked.transpose(2, 0, 1)])
    return planes.astype(np.float32) / 255.0


def direct_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize bilinearly at source = target * 320 / size, edges clamped, levels truncated."""
    source = np.arange(size) * (image.shape[0] / size)
    low = np.minimum(source.astype(int), image.shape[0] - 1)
    high = np.minimum(low + 1, image.shape[0] - 1)
    part = (source - low)[:, None]
    image = image.astype(np.float64)
    rows = image[low] * (1 - part[..., None]) + image[high] * part[..., None]
    both = rows[:, low] * (1 - part) + rows[:, high] * part
    return np.floor(both + 1e-6).astype(np.uint8)  # 1e-6: rounding errors must not lose a level


def paste(crop: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Paste a (3, 320, 320) generated ROI into a copy of the (328, 328, 3) crop."""
    levels = np.nan_to_num(generated.astype(np.float32) * 255, nan=0.0)
    face = crop.copy()
    face[4:324, 4:324] = np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return face


def composite(
    frame: np.ndarray,
    box: Box,
    crop: np.ndarray,
    generated: np.ndarray,
    mode: str,
    parsing: np.ndarray | None = None,
) -> np.ndarray:
    """Paste a (3, 320, 320) generated ROI into a copy of the BGR frame.

    Where the BGR image `parsing` is pure red or white, the frame's own pixels stay.
    """
    x0, y0, x1, y1 = box
    face = paste(crop, generated)
    if mode == "crop":
        patch: np.ndarray = cv2.resize(face, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
    else:
        patch = direct_resize(face[4:324, 4:324], x1 - x0)
    height, width = frame.shape[:2]
    finished = frame.copy()
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    patch = patch[top - y0 : bottom - y0, left - x0 : right - x0]
    if parsing is not None:
        part = parsing[top:bottom, left:right]
        kept = (part == [0, 0, 255]).all(axis=2) | (part == [255, 255, 255]).all(axis=2)
        patch[kept] = frame[top:bottom, left:right][kept]
    finished[top:bottom, left:right] = patch
    return finished


def pingpong(frame: int, count: int) -> int:
    """Return the avatar's frame: 1, 2, ..., count - 1, count - 2, ..., 0, 1, ..."""
    if count == 1:
        return 0
    at = (frame + 1) % (2 * (count - 1))
    return min(at, 2 * (count - 1) - at)


def render(
    pcm: np.ndarray,
    read: Callable[[int], np.ndarray],
    boxes: list[Box],
    encoder: torch.nn.Module,
    generator: torch.nn.Module,
    *,
    mode: str = "crop",
) -> Iterator[np.ndarray]:
    """Yield finished frames, (H, W, 3) uint8 BGR; `read(i)` returns the avatar's frame i."""
    padded = encode(log_mel(pcm), encoder)
    for i in range(len(padded)):
        number = pingpong(i, len(boxes))
        frame = read(number)
        picture, crop = face_input(frame, boxes[number])
        audio = torch.from_numpy(feature_window(padded, i))[None]
        with torch.inference_mode():
            generated = generator(torch.from_numpy(picture)[None], audio)[0].numpy()
        yield composite(frame, boxes[number], crop, generated, mode)
