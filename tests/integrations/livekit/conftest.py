"""A small avatar for LiveKit rooms."""

from importlib.util import find_spec

import pytest

from tests.engine.live.patience import however_slow  # noqa: F401

NEEDED = ("livekit", "livekit.agents", "livekit.rtc", "aiohttp", "grpc", "uvicorn", "httpx")


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


MISSING = [name for name in NEEDED if not _there(name)]
# said once, by a test of its own
collect_ignore_glob = ["test_[!a]*.py"] if MISSING else []


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """An avatar whose mouth is bright in the frames whose own 40 ms are loud."""
    from engine import Avatar
    from engine.live import Live
    from tests.serve.web.stage import write_flashing

    folder = write_flashing(tmp_path_factory.mktemp("livekit") / "tiny")
    with Live(Avatar.load(folder), precision="fp32") as live:
        yield live


@pytest.fixture
def network(monkeypatch):
    """A room of LiveKit's, in which are the rooms that a server makes."""
    from livekit import rtc

    from tests.integrations.livekit.rooms import Network, Room

    there = Network()
    monkeypatch.setattr(rtc, "Room", lambda: Room(there))
    return there
