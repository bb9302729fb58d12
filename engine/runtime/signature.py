"""What the two networks take and give, whatever runs them."""

from dataclasses import dataclass

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Signature:
    """What goes into a network and what comes out: names and shapes, without the batch."""

    kind: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    cpu_batch: int  # how many at once run fastest on a CPU: as many as its caches hold


AUDIO_ENCODER = Signature(
    "audio_encoder", {"mel_spectrogram": (1, 80, 16)}, {"audio_features": (512,)}, 8
)
GENERATOR = Signature(
    "generator", {"input": (6, 320, 320), "audio": (32, 16, 16)}, {"output": (3, 320, 320)}, 1
)
