"""Write litert.npz: what LiteRT, Google's interpreter of TFLite files, makes of the networks.

    python tests/engine/faces/litert.py FOLDER

FOLDER has the two .tflite files. It needs ai-edge-litert (2.3.0 made the file), numpy, Pillow and
opencv-python-headless, but nothing of this project. The pictures are the drawn person of
examples/demo/still.jpg; they are kept in the file, because JPEG decoders differ by a level.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

HERE = Path(__file__).parent
BEST = 20  # anchors whose outputs are kept


def outputs(path: Path, picture: np.ndarray) -> list[np.ndarray]:
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    interpreter.set_tensor(entry["index"], picture[None])
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"])[0] for one in interpreter.get_output_details()]


def main() -> None:
    folder = Path(sys.argv[1])
    still = cv2.imread(str(HERE.parents[2] / "examples" / "demo" / "still.jpg"))[..., ::-1]
    height, width = still.shape[:2]
    scale = 192 / max(height, width)
    small = cv2.resize(still, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    whole = np.zeros((192, 192, 3), np.uint8)
    top, left = (192 - small.shape[0]) // 2, (192 - small.shape[1]) // 2
    whole[top : top + small.shape[0], left : left + small.shape[1]] = small
    raw, logits = outputs(
        folder / "face_detection_full_range.tflite", whole.astype(np.float32) / 127.5 - 1
    )
    best = np.argsort(-logits[:, 0])[:BEST]
    # the best box, with its middle and sides relative to the anchor and the square
    anchor = (np.array([best[0] % 48, best[0] // 48]) + 0.5) / 48
    middle = ((raw[best[0], :2] / 192 + anchor) * 192 - [left, top]) / scale
    side = 1.5 * raw[best[0], 2:4].max() / scale
    x, y = (middle - side / 2).round().astype(int)
    face = cv2.resize(
        still[y : y + round(side), x : x + round(side)], (192, 192), interpolation=cv2.INTER_AREA
    )
    points, presence = outputs(folder / "face_landmark.tflite", face.astype(np.float32) / 255)
    np.savez_compressed(
        HERE / "litert.npz",
        whole=whole,
        best=best,
        raw=raw[best],
        logits=logits[best, 0],
        face=face,
        points=points.reshape(468, 3),
        presence=presence.reshape(()),
    )


if __name__ == "__main__":
    main()
