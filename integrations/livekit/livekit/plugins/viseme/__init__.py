"""Viseme's avatars for LiveKit Agents: `AvatarSession`, and `VisemeGenerator` beneath it."""

from typing import Any

from livekit.agents import Plugin

from .avatar import AvatarSession
from .version import __version__

__all__ = ["AvatarSession", "VisemeGenerator", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "VisemeGenerator":  # needs the engine, which agents of a server's avatars do not
        from serve.livekit.generator import VisemeGenerator

        return VisemeGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class VisemePlugin(Plugin):
    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__)


Plugin.register_plugin(VisemePlugin())
