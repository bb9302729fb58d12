"""The contact sheet of the README: python -m examples.sheet -o FILE.jpg

Eight moments of the demo's speech as they are rendered, each with its time and its phoneme.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from engine import Avatar, Pipeline
from engine.command import Parser, program, run
from engine.errors import InputError
from engine.files import write_whole
from engine.media.images import QUALITY

from .make_demo import FPS
from .networks import DEMO
from .person import face_box, idle
from .speech.targets import bare

# phonemes to show, by espeak-ng's names, each the first time it is said after the one before
SHOWN = ("w", "m", "v", "s", "OI", "f", "oU", "w")
SIDE, TEXT = 240, 34  # pixels of a picture, and of the line under it
AROUND = 0.35  # of the face box, shown beyond it on all sides


def moments(phonemes: list[list], shown: tuple[str, ...]) -> list[tuple[str, float]]:
    """Name and middle, in seconds, of the phonemes to show."""
    found, after = [], 0.0
    for wanted in shown:
        name, start, end = next(
            phoneme for phoneme in phonemes if bare(phoneme[0]) == wanted and phoneme[1] >= after
        )
        found.append((name, (start + end) / 2))
        after = end
    return found


def sheet(avatar: Avatar, speech: Path, phonemes: list[list]) -> Image.Image:
    """The moments of a speech, side by side in two rows."""
    chosen = moments(phonemes, SHOWN)
    wanted = {int(time * FPS): None for _, time in chosen}
    number = 0
    for batch in Pipeline(avatar).render(speech):
        for frame in batch.numpy():
            if number in wanted:
                wanted[number] = Image.fromarray(frame)
            number += 1
    columns = len(chosen) // 2
    picture = Image.new("RGB", (columns * SIDE, 2 * (SIDE + TEXT)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
    for place, (name, time) in enumerate(chosen):
        x, y = place % columns * SIDE, place // columns * (SIDE + TEXT)
        frame = int(time * FPS)
        x0, y0, x1, y1 = face_box(idle((frame + 1) / FPS))  # a render begins at frame 1
        more = round(AROUND * (x1 - x0))
        face = wanted[frame].crop((x0 - more, y0 - 2 * more, x1 + more, y1))
        picture.paste(face.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        line = f"{time:.2f} s   {bare(name)}"
        pen.text((x + SIDE / 2, y + SIDE + TEXT / 2), line, "black", font, anchor="mm")
    return picture


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.sheet", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.jpg")
    options = parser.parse_args(arguments)

    def work() -> None:
        output: Path = options.output
        if output.suffix.lower() not in (".jpg", ".png"):
            raise InputError(f"{output} must end in .jpg or .png")
        phonemes = json.loads((DEMO / "phonemes.json").read_text())
        picture = sheet(Avatar.load(DEMO), DEMO / "speech.wav", phonemes)
        write_whole(output, lambda partial: picture.save(partial, quality=QUALITY))

    return run(work, interrupted="nothing was written")


if __name__ == "__main__":
    program(main)
