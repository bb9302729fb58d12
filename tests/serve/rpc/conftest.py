"""A server of two avatars, and a client of the Go server."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from engine import Avatar
from engine.live import Live
from tests.engine.tiny import write_avatar

# GPU hosts may have none of the server's packages
NEEDED = ("grpc", "grpc_tools", "pydantic")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["*.py"]

if not collect_ignore_glob:
    from serve.config import Config
    from serve.rpc.monolithic import add_to_server
    from tests.serve.rpc.fakes import FakeModel, FakeRegistry, Running
    from tests.serve.rpc.go_client import GoClient, Messages


@pytest.fixture(scope="session")
def messages() -> "Messages":
    return Messages()


@pytest.fixture(scope="module")
def server() -> Iterator["Running"]:
    """A server whose attribute `registry` changes from test to test."""
    registry = FakeRegistry()
    config = Config.model_validate(
        {
            "limits": {"max_requests": 8},
            "output": {"visual_layout": "planar"},
            "models": {"dora": {"model_path": "/dora.onnx"}},
        }
    )
    counted = []

    def count(avatar: str, frames: int) -> None:
        counted.append((avatar, frames))

    with Running(lambda server: add_to_server(registry, config, server, count)) as running:
        running.registry, running.counted = registry, counted
        yield running


@pytest.fixture
def registry(server) -> "FakeRegistry":
    """Two avatars, anna and berta; berta is on GPU 1."""
    server.registry.__init__(FakeModel("anna"), FakeModel("berta", gpu=1, bytes=5 << 20))
    return server.registry


@pytest.fixture
def client(server, registry, messages) -> Iterator["GoClient"]:
    with GoClient(server.port, messages) as client:
        yield client


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Live:
    """Small frames, and networks that show how loud the speech is."""
    folder = write_avatar(tmp_path_factory.mktemp("serve") / "tiny")
    with Live(Avatar.load(folder), precision="fp32") as live:
        yield live
