"""A small avatar for the routes of `serve.web`."""

from importlib.util import find_spec

import pytest

from tests.engine.live.patience import however_slow  # noqa: F401

# GPU hosts may have none of the server's packages
NEEDED = ("grpc", "pydantic", "uvicorn", "websockets", "httpx", "aiortc")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["*.py"]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Small frames, and networks that show how loud the speech is."""
    from engine import Avatar
    from engine.live import Live
    from tests.engine.tiny import write_avatar

    folder = write_avatar(tmp_path_factory.mktemp("web") / "tiny")
    with Live(Avatar.load(folder), precision="fp32") as live:
        yield live


@pytest.fixture
def left_late(monkeypatch):
    """Sessions that nobody holds go on for longer than a test takes on a busy machine."""
    monkeypatch.setattr("serve.web.session.LEFT_SECONDS", 1000.0)


@pytest.fixture
def left_soon(monkeypatch):
    """Sessions end soon after their clients have left."""
    monkeypatch.setattr("serve.web.session.LEFT_SECONDS", 0.1)
