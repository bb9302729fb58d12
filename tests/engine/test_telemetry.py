"""A render asks nobody for anything: no name is looked up, and ONNX Runtime keeps no device ID."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import tiny

# A resolver that prints the names that are asked for, and then a render, in a network of its own.
WATCH = """
import os, socket, subprocess, sys, threading
resolv, *command = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", resolv, os.path.realpath("/etc/resolv.conf")], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
asked = []
def answer():
    while True:
        packet, sender = server.recvfrom(4096)
        asked.append(packet[12:].split(b"\\0")[0])
        server.sendto(packet[:2] + b"\\x81\\x83" + packet[4:], sender)  # there is no such name
threading.Thread(target=answer, daemon=True).start()
if command == ["ask"]:
    try:
        socket.getaddrinfo("visited.example", 80)
    except OSError:
        pass
else:
    subprocess.run(command, check=True)
print(asked)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A command in whose network every name that a program looks up is printed at the end."""
    resolv = tmp_path_factory.mktemp("etc") / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\n")
    own = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    command = [*own, sys.executable, "-c", WATCH, str(resolv)]
    try:
        done = subprocess.run([*command, "ask"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode != 0:
        pytest.skip(f"no network of its own: {done.stderr.strip().splitlines()[-1]}")
    assert r"visited\x07example" in done.stdout, done.stdout  # the resolver sees what is asked
    return command


def test_a_render_looks_up_no_name(watched, tmp_path):
    avatar = tiny.write_avatar(tmp_path / "tiny")
    audio = tiny.write_speech(tmp_path / "speech.wav", 4)
    cache = tmp_path / "cache"
    environment = {**tiny.ENVIRONMENT, "XDG_CACHE_HOME": str(cache), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # the command sets it
    done = subprocess.run(
        [*watched, *tiny.command(avatar, audio, tmp_path / "o.mp4")],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert not list(Path(cache).rglob("*onnxruntime*")) and not (tmp_path / ".cache").exists()
