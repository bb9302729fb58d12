"""The generator's layers, and where in one buffer their activations lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..spec import ROI_SIZE
from .weights import Block, Dense, GeneratorWeights, Head

ALIGNMENT = 128  # values
AUDIO_SIDE = 16
OUTSIDE = "inputs", "out"  # activations that are the caller's tensors
# The blocks that run as one kernel: of few channels, so that a program's registers hold them. The
# others run as two, with the expanded channels in memory between them, or as three.
NARROW = (
    "inc", "down1.0", "down1.1", "down2.0", "down2.1", "up2.1", "up3.1", "up4.0", "up4.1", "up5.0",
    "up5.1",
)  # fmt: skip
SEPARATE = 256  # output channels from which on a block runs as three, see `wide`


@dataclass(frozen=True)
class Activation:
    """A square (side, side, channels) tensor of a frame, float16."""

    name: str
    side: int
    channels: int

    @property
    def values(self) -> int:
        return self.side**2 * self.channels

    @property
    def bytes(self) -> int:
        return 2 * self.values


@dataclass(frozen=True)
class Layer:
    """One block or dense convolution, with what it reads and writes."""

    name: str
    weights: Block | Dense
    x: Activation
    out: Activation
    lower: Activation | None = None  # enlarged, before the channels of x
    beside: Activation | None = None  # after the channels of x
    head: Head | None = None  # then `out` is the network's output

    @property
    def planar(self) -> bool:
        """Whether x is the network's input."""
        return self.x.name == "inputs"

    @property
    def narrow(self) -> bool:
        """Whether the block is one kernel."""
        return self.name in NARROW

    @property
    def expanded(self) -> Activation | None:
        """What the first of two kernels writes and the second one reads."""
        if self.narrow or isinstance(self.weights, Dense):
            return None
        return Activation(f"{self.name} expanded", self.x.side, len(self.weights.expand))

    @property
    def convolved(self) -> Activation | None:
        """What the second of three kernels writes and the third one reads."""
        if self.expanded is None or self.out.channels < SEPARATE:
            return None
        return Activation(f"{self.name} convolved", self.out.side, self.expanded.channels)

    @property
    def writes(self) -> list[Activation]:
        return [v for v in (self.out, self.expanded, self.convolved) if v is not None]

    @property
    def reads(self) -> list[Activation]:
        return [value for value in (self.x, self.lower, self.beside) if value is not None]

    @property
    def traffic(self) -> int:
        """Bytes a frame that its kernels read and write, without the weights."""
        # The masked planes of the network's input are not read. The halves that are read twice
        # (a residual block's input, at the end) are in a cache.
        read = sum(value.bytes // (2 if self.planar else 1) for value in self.reads)
        expanded = self.expanded.bytes if self.expanded else 0
        convolved = self.convolved.bytes if self.convolved else 0
        again = self.x.bytes if expanded and _residual(self.weights) else 0
        return read + 2 * (expanded + convolved) + again + self.out.bytes


def _residual(weights: Block | Dense) -> bool:
    return isinstance(weights, Block) and weights.residual


def layers(weights: GeneratorWeights) -> list[Layer]:
    """List the layers in the order in which they run."""
    made: list[Layer] = []

    def add(
        name: str, block: Block | Dense, x: Activation,
        lower: Activation | None = None, beside: Activation | None = None,
        head: Head | None = None,
    ) -> Activation:  # fmt: skip
        if isinstance(block, Dense):
            side = (x.side + 2 * block.padding - 3) // block.stride + 1
            out = Activation(name, side, len(block.bias))
        elif head is not None:
            out = Activation("out", x.side, len(head.bias))
        else:
            out = Activation(name, x.side // block.stride, len(block.project_bias))
        made.append(Layer(name, block, x, out, lower, beside, head))
        return out

    x = add("inc", weights.inc, Activation("inputs", ROI_SIZE, 6))
    skips = [x]
    for number, pair in enumerate(weights.downs, start=1):
        for half, block in enumerate(pair):
            x = add(f"down{number}.{half}", block, x)
        skips.append(x)
    bottom = skips.pop()
    heard = Activation("audio", AUDIO_SIDE, weights.audio[0].expand.shape[1])
    audio: tuple[Block | Dense, ...] = weights.audio
    for number, layer in enumerate(audio, start=1):
        heard = add(f"audio{number}", layer, heard)
    x = add("fuse.0", weights.fuse[0], bottom, beside=heard)
    for number, block in enumerate(weights.fuse[1:], start=1):
        x = add(f"fuse.{number}", block, x)
    for number, (first, second) in enumerate(weights.ups, start=1):
        x = add(f"up{number}.0", first, skips.pop(), lower=x)
        x = add(f"up{number}.1", second, x, head=None if skips else weights.head)
    return made


@dataclass(frozen=True)
class Place:
    """Where an activation lies in the buffer, in values a frame, and for how long."""

    activation: Activation
    first: int  # number of the layer that writes it
    last: int  # number of the last layer that reads it
    begin: int = 0

    @property
    def end(self) -> int:
        return self.begin + -(-self.activation.values // ALIGNMENT) * ALIGNMENT

    def meets(self, other: "Place") -> bool:
        """Whether both are needed at one time."""
        return self.first <= other.last and other.first <= self.last


def places(made: Sequence[Layer]) -> dict[str, Place]:
    """Give each activation a place, so that those needed at one time do not overlap.

    Large ones come first, each to the lowest place that is free. The network's picture input and
    its output are not in the buffer.
    """
    written: dict[str, int] = {}
    read: dict[str, int] = {}
    known: dict[str, Activation] = {}
    for number, layer in enumerate(made):
        for value in layer.reads:
            known[value.name], read[value.name] = value, number
            written.setdefault(value.name, number)  # "audio" is copied before its layer
        for value in layer.writes:
            known[value.name], written[value.name], read[value.name] = value, number, number
    placed: list[Place] = []
    for name in sorted(written, key=lambda name: (-known[name].values, written[name])):
        if name in OUTSIDE:
            continue
        place = Place(known[name], written[name], read[name])
        size, begin = place.end, 0
        for other in sorted((p for p in placed if p.meets(place)), key=lambda p: p.begin):
            if begin + size <= other.begin:
                break
            begin = max(begin, other.end)
        placed.append(Place(place.activation, place.first, place.last, begin))
    return {place.activation.name: place for place in placed}
