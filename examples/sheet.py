"""Make the contact sheet of the README: python -m examples.sheet -o FILE.jpg

Shows eight rendered moments of the demo's speech, each with its time and its phoneme.
"""

import json
from itertools import chain
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from engine import Avatar, Pipeline
from engine.command import Parser, program, run
from engine.errors import InputError
from engine.files import Outputs, write_whole
from engine.media.images import QUALITY

from . import DEMO
from .make_demo import FPS
from .person import face_box, idle
from .speech.targets import bare

# Phonemes to show, in espeak-ng's mnemonics: of each, the first one after the phoneme before it.
SHOWN = ("w", "m", "v", "s", "OI", "f", "oU", "w")
SIDE, TEXT = 240, 34  # size of a picture and height of the line under it, pixels
MARGIN = 0.35  # fraction of the face box's side that is shown around it


def moments(phonemes: list[list], shown: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return name and middle, in seconds, of the phonemes to show."""
    found: list[tuple[str, float]] = []
    after = 0.0
    for wanted in shown:
        name, start, end = next(
            phoneme for phoneme in phonemes if bare(phoneme[0]) == wanted and phoneme[1] >= after
        )
        found.append((name, (start + end) / 2))
        after = end
    return found


def sheet(avatar: Avatar, speech: Path, phonemes: list[list]) -> Image.Image:
    """Render the moments of a speech, side by side in two rows."""
    chosen = moments(phonemes, SHOWN)
    numbers = {int(time * FPS) for _, time in chosen}
    batches = Pipeline(avatar).render(speech)
    pictures = {
        number: Image.fromarray(frame.numpy())
        for number, frame in enumerate(chain.from_iterable(batches))
        if number in numbers
    }
    columns = len(chosen) // 2
    picture = Image.new("RGB", (columns * SIDE, 2 * (SIDE + TEXT)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
    for place, (name, time) in enumerate(chosen):
        x, y = place % columns * SIDE, place // columns * (SIDE + TEXT)
        frame = int(time * FPS)
        x0, y0, x1, y1 = face_box(idle((frame + 1) / FPS))  # a render starts at frame 1
        margin = round(MARGIN * (x1 - x0))
        face = pictures[frame].crop((x0 - margin, y0 - 2 * margin, x1 + margin, y1))
        picture.paste(face.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        line = f"{time:.2f} s   {bare(name)}"
        pen.text((x + SIDE / 2, y + SIDE + TEXT / 2), line, "black", font, anchor="mm")
    return picture


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m examples.sheet", description="Make the contact sheet of the README."
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.jpg")
    options = parser.parse_args(arguments)

    def work() -> None:
        output: Path = options.output
        if output.suffix.lower() not in (".jpg", ".png"):
            raise InputError(f"output is {output}; expected a name that ends in .jpg or .png")
        phonemes = json.loads((DEMO / "phonemes.json").read_text())
        picture = sheet(Avatar.load(DEMO), DEMO / "speech.wav", phonemes)
        write_whole(output, lambda partial: picture.save(partial, quality=QUALITY))

    return run(work, interrupted=Outputs(options.output))


if __name__ == "__main__":
    program(main)
