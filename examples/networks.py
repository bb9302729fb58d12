"""Networks for the demo avatar: python -m examples.networks [CKPT.pth]

CKPT.pth is what `python -m models.train --drawn` made. Without it, and until trained ones ship:
weights drawn from a fixed seed, but for one path through the generator's outermost skip connection
that hands the ROI through: an untrained mouth should not be a grey square. Speech only tints it.
"""

import sys
import tempfile
from pathlib import Path

import torch

from engine.command import Parser, program, run
from engine.errors import InputError
from models import AudioEncoder, Generator, checkpoint

DEMO = Path(__file__).parent / "demo"
SEED = 2026
KNOTS = 16  # of the piecewise linear inverse of the last sigmoid


def untrained() -> dict[str, torch.nn.Module]:
    """The two networks: the same weights on every machine."""
    torch.manual_seed(SEED)
    generator, encoder = Generator().eval(), AudioEncoder().eval()
    _hand_the_roi_through(generator)
    return {"generator": generator, "audio_encoder": encoder}


@torch.no_grad()
def _hand_the_roi_through(generator: Generator) -> None:
    """Make the output the input's first three channels, nearly.

    The values have to pass a sigmoid at the end: hinges ReLU(x - knot), one hidden channel each,
    add up to its inverse.
    """
    first = generator.inc.inconv[0].conv
    expand, depthwise, project = first[0], first[3], first[6]
    for channel in range(3):  # B, G, R; not negative, so that the ReLUs let them through
        expand.weight[channel] = 0
        expand.weight[channel, channel] = 1
        _only_the_centre(depthwise, channel)
        project.weight[channel] = 0
        project.weight[channel, channel] = 1

    knots = torch.linspace(0.01, 0.99, KNOTS)
    heights = torch.logit(knots)
    slopes = heights.diff() / knots.diff()
    hinges = torch.cat([slopes[:1], slopes.diff()])  # each adds to the slope before it
    last, refine = (block.conv for block in generator.up5.conv.double_conv)
    below = last[0].in_channels - 32  # channels that come from below, before the skip's 32
    for channel in range(3):
        last[6].weight[channel] = 0
        for knot, hinge in enumerate(hinges):
            hidden = channel * KNOTS + knot
            last[0].weight[hidden] = 0
            last[0].weight[hidden, below + channel] = 1
            last[1].bias[hidden] = -knots[knot] + (knots[0] if knot == 0 else 0)
            _only_the_centre(last[3], hidden)
            last[6].weight[channel, hidden] = hinge
        last[7].bias[channel] = heights[0] - slopes[0] * knots[0]
        refine[6].weight[channel] *= 0.02
        generator.outc.conv.weight[channel] *= 0.02
        generator.outc.conv.weight[channel, channel] = 1
        generator.outc.conv.bias[channel] = 0


def _only_the_centre(depthwise: torch.nn.Conv2d, channel: int) -> None:
    depthwise.weight[channel] = 0
    depthwise.weight[channel, 0, 1, 1] = 1


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.networks", description="Networks for the demo avatar.")
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CKPT.pth",
        help="trained ones; untrained ones by default, where there are none",
    )
    parser.add_argument("-o", "--output", type=Path, default=DEMO, metavar="DIR")
    options = parser.parse_args(arguments)
    return run(
        lambda: _make(options.checkpoint, options.output), interrupted="nothing half-written"
    )


def _make(trained: Path | None, folder: Path) -> None:
    """Export both networks into a folder."""
    from export import ExportError, export  # here: the networks alone need no ONNX

    if trained is not None:
        try:
            for kind in ("generator", "audio_encoder"):
                export(kind, trained, folder / f"{kind}.onnx", precision="fp32")
        except (ValueError, ExportError) as error:
            raise InputError(str(error)) from error
        return
    for kind, network in untrained().items():
        target = folder / f"{kind}.onnx"
        if target.exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            weights = Path(temporary) / f"{kind}.safetensors"
            checkpoint.save(network, weights)
            export(kind, weights, target, precision="fp32")
    print(
        f"The demo's networks, unless you have trained your own, are untrained (seed {SEED}): "
        "the mouth does not follow the speech yet.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    program(main)
