"""Whether the tests beside this one can run here."""

import tomllib

import pytest

from tests.conftest import ROOT
from tests.integrations.livekit.conftest import MISSING


def test_the_plugin_is_registered():
    """LiveKit says in its logs which plug-ins there are, in which versions."""
    if MISSING:
        pytest.skip(f"these packages are not installed: {', '.join(MISSING)}")
    from livekit.agents import Plugin
    from livekit.plugins import viseme

    with (ROOT / "integrations/livekit/pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    (found,) = [p for p in Plugin.registered_plugins if p.package == "livekit.plugins.viseme"]
    assert found.version == viseme.__version__ == version
