"""What `python -m serve.cluster` refuses before it starts anything, and how signals end it."""

import json
import os
import signal
import socket

import pytest

pytest.importorskip("ray", reason="Ray Serve is not installed")

from ray.exceptions import RayActorError

from engine.errors import InputError
from serve.cluster import __main__ as command

FREE = {"port": 50053, "http_port": 8010}


def serve(folder, **sections):
    """Run the command with a configuration that it has to refuse."""
    (folder / "anna").mkdir()
    config = {"models": {"anna": {"avatar": "anna"}}, **sections}
    (folder / "config.yaml").write_text(json.dumps(config))
    options = command._parse([str(folder / "config.yaml"), "--device", "cpu"])
    command.serve_cluster(options)


@pytest.mark.parametrize(
    "sections, line",
    [
        ({"server": FREE | {"port": 0}}, r"server.port is 0; expected the port of Ray Serve's"),
        ({"server": FREE | {"http_port": 0}}, "server.http_port is 0; expected the port"),
        ({"cluster": {"replicas": 3, "max_replicas": 2}}, "max_replicas is 2; expected at least 3"),
        (
            {"cluster": {"address": "127.0.0.1:1"}},
            "'127.0.0.1:1': Connection refused; expected that",
        ),
        ({"cluster": {"address": "nonsense"}}, "cluster.address is 'nonsense': .*; expected that"),
    ],
)
def test_what_cannot_be(tmp_path, sections, line):
    with pytest.raises(InputError, match=line):
        serve(tmp_path, **sections)


def test_a_ray_cluster_that_cannot_be_used(tmp_path, monkeypatch):
    def other(**_):
        raise RuntimeError("Version mismatch:\n\tRay 2.1")

    monkeypatch.setattr(command.ray, "init", other)
    with pytest.raises(InputError, match="cluster.address is 'auto': Version mismatch: Ray 2.1;"):
        serve(tmp_path, cluster={"address": "auto"})


def test_proxies_that_do_not_start(tmp_path, monkeypatch):
    def killed(**_):
        raise RayActorError(error_msg="The actor was killed\nby ray.kill")

    monkeypatch.setattr(command.ray, "cluster_resources", dict)
    monkeypatch.setattr(command.serve, "start", killed)
    (tmp_path / "anna").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps({"models": {"anna": {"avatar": "anna"}}}))
    with pytest.raises(InputError, match="proxies do not start: .*was killed by ray.kill"):
        command.begin(command.load(tmp_path / "config.yaml"), "cpu")


def test_gpus_are_those_of_the_cluster(tmp_path):
    """This machine may have none of them."""
    (tmp_path / "anna").mkdir()

    def used(there, *options, count=None):
        config = {"gpus": {"count": count}, "models": {"anna": {"avatar": "anna"}}}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        options = command._parse([str(tmp_path / "config.yaml"), *options])
        return command.gpus_of(command._configured(options), options.device, there)

    assert used(8) == 8 and used(0) == 0
    assert used(8, "--device", "cpu") == used(8, count=0) == 0
    assert used(8, count=3) == 3
    with pytest.raises(InputError, match="gpus.count is 3, but the Ray cluster has 2"):
        used(2, count=3)
    with pytest.raises(InputError, match="the Ray cluster has no GPU"):
        used(0, "--device", "cuda")


@pytest.mark.parametrize("key", ["port", "http_port"])
def test_a_port_that_is_in_use(tmp_path, monkeypatch, key):
    """Ray's proxies would share it."""
    monkeypatch.setattr(command.ray, "init", lambda **_: pytest.fail("Ray is started"))
    with socket.socket() as taken, socket.socket() as free:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"port": free.getsockname()[1], "http_port": free.getsockname()[1]}
        free.close()
        ports[key] = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {ports[key]} cannot be listened at"):
            serve(tmp_path, server=ports)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_hangs(number):
    signals = command._Signals()
    before = signal.getsignal(number)
    with pytest.raises(command._End), signals.handled():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(number) is before


def test_several_updates_that_wait_are_one():
    signals = command._Signals()
    with signals.handled():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        signals.wait_for_update()
        assert signals._updates.empty()
