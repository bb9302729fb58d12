"""The demo avatar, and the programs that draw it, train it and evaluate it."""

from pathlib import Path

DEMO = Path(__file__).parent / "demo"  # the folder of the demo avatar
KINDS = ("generator", "audio_encoder")


def network_files(folder: Path = DEMO) -> dict[str, Path]:
    """Return the files of the avatar's two networks by kind: "generator", "audio_encoder"."""
    return {kind: folder / f"{kind}.safetensors" for kind in KINDS}
