"""Map the colors of HDR and wide-gamut films to SDR, BT.709."""

import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from ..media.stream import PRIMARIES_WIDE, TRANSFERS_HDR, VideoStream

PQ, HLG = 16, 18  # transfer functions, ITU-T H.273
GRID = 65  # values of each component in the lookup table
WHITE = 100.0  # cd/m2 that become 1.0 before the tone mapping
PEAK = 1000.0  # cd/m2 that become white
KNEE = 0.3  # smaller values stay as they are
Primaries = tuple[tuple[float, float], ...]  # CIE xy of red, green, blue
# The white of all is D65.
PRIMARIES: dict[int, Primaries] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # DCI-P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
D65 = (0.3127, 0.3290)


def needs_mapping(stream: VideoStream) -> bool:
    """Return whether a film is HDR or has a wide gamut."""
    return stream.transfer in TRANSFERS_HDR or stream.primaries in PRIMARIES_WIDE


def to_sdr(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Map coded R'G'B' of a film to that of SDR in BT.709.

    PQ is SMPTE ST 2084, HLG is ARIB STD-B67 on a display of 1000 cd/m2 (ITU-R BT.2100). Light up to
    1000 cd/m2 is compressed by the Möbius curve, on the largest component, so that hues stay.
    Colors outside the gamut are clipped.

    Args:
        rgb: (..., 3) float64, 0 to 1.
        transfer, primaries: code points of ITU-T H.273. Without primaries, HDR is BT.2020, as of
            BT.2100, and SDR is BT.709.

    Returns:
        (..., 3) float64, 0 to 1.
    """
    wide = PRIMARIES.get(primaries, PRIMARIES[9 if transfer in (PQ, HLG) else 1])
    if transfer == PQ:
        light = _pq(rgb) / WHITE
    elif transfer == HLG:
        light = _hlg(rgb, wide) / WHITE
    else:
        light = np.where(rgb < 0.081, rgb / 4.5, ((rgb + 0.099) / 1.099).clip(0) ** (1 / 0.45))
    if transfer in (PQ, HLG):
        largest = light.max(axis=-1, keepdims=True)
        light = light * (_moebius(largest) / np.maximum(largest, 1e-9))
    light = (light @ (np.linalg.inv(_to_xyz(PRIMARIES[1])) @ _to_xyz(wide)).T).clip(0, 1)
    return np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)


class SdrMapper:
    """Maps frames of one film, through a lookup table in FFmpeg's filter `lut3d`."""

    def __init__(self, stream: VideoStream):
        axis = np.linspace(0, 1, GRID)
        blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red changes fastest
        grid = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
        self._table = to_sdr(grid, stream.transfer, stream.primaries)
        self._converter = VideoReformatter()
        self._graph: Any = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the frame as rgb24."""
        deep = self._converter.reformat(frame, format="gbrp16le")
        deep.pts, deep.time_base = None, Fraction(1, 25)  # neither matters
        if self._graph is None:
            self._graph = self._open(deep)
        self._graph.push(deep)
        return self._graph.pull()

    def _open(self, frame: av.VideoFrame) -> Graph:
        graph = Graph()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.cube"
            with path.open("w") as file:
                file.write(f"LUT_3D_SIZE {GRID}\n")
                np.savetxt(file, self._table, fmt="%.6f")
            nodes = [
                graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=frame.time_base,
                ),
                graph.add("lut3d", file=str(path), interp="tetrahedral"),
                graph.add("format", pix_fmts="rgb24"),
                graph.add("buffersink"),
            ]
            for one, next_one in pairwise(nodes):
                one.link_to(next_one)
            graph.configure()  # reads the file
        return graph


def _pq(code: np.ndarray) -> np.ndarray:
    """Return the light of PQ in cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = code ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg(code: np.ndarray, primaries: Primaries) -> np.ndarray:
    """Return the light of HLG in cd/m2, on a display of 1000 cd/m2, whose gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    luminance = scene @ _to_xyz(primaries)[1]
    return PEAK * scene * np.maximum(luminance, 1e-9)[..., None] ** 0.2


def _moebius(light: np.ndarray) -> np.ndarray:
    """Compress light of 0 to PEAK / WHITE to 0 to 1; below KNEE it stays as it is."""
    peak = PEAK / WHITE
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    bent = (b * b + 2 * b * KNEE + KNEE**2) / (b - a) * (light + a) / (light + b)
    return np.where(light <= KNEE, light, bent)


def _to_xyz(primaries: Primaries) -> np.ndarray:
    """Return the (3, 3) matrix from linear RGB to XYZ; its second row are the weights of
    luminance."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    x, y = D65
    white = np.array([x / y, 1, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white)
