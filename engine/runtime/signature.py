"""The inputs and outputs of the two networks."""

from dataclasses import dataclass

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a network.

    Attributes:
        kind: "audio_encoder" or "generator".
        inputs, outputs: shapes by name, without the batch.
        cpu_batch: the fastest batch size on a CPU, as large as its caches allow.
    """

    kind: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    cpu_batch: int

    @property
    def option(self) -> str:
        """The kind as on a command line: "audio-encoder" or "generator"."""
        return self.kind.replace("_", "-")

    @property
    def title(self) -> str:
        """The kind as in a sentence: "audio encoder" or "generator"."""
        return self.kind.replace("_", " ")


AUDIO_ENCODER = Signature(
    "audio_encoder", {"mel_spectrogram": (1, 80, 16)}, {"audio_features": (512,)}, 8
)
GENERATOR = Signature(
    "generator", {"input": (6, 320, 320), "audio": (32, 16, 16)}, {"output": (3, 320, 320)}, 1
)
