"""A disk that is full while a speech is rendered: one line, and nothing is left."""

import shlex
import subprocess
import sys

from tests.engine.test_scarce_resources import namespace  # noqa: F401  # a fixture
from tests.engine.tiny import ENVIRONMENT, write_avatar, write_speech

SERVE = """
import asyncio, logging, os, sys, tempfile
from engine import Avatar
from engine.live import Live
from serve.rpc.protos import viseme_pb2 as pb
from tests.serve.rpc.server import refusal, run, serving

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
avatar, speech = sys.argv[1:]
file, folder = open(speech, "rb").read(), tempfile.gettempdir()

async def main(live):
    async with serving({"tiny": live}) as server:
        async def render(**fields):
            call = server.stub.Render(pb.RenderRequest(avatar="tiny", **fields))
            code, line = await refusal(call)
            print(code.name, line, os.listdir(folder), flush=True)

        await render(pcm=pb.Pcm(samples=bytes(32000)))
        await render(pcm=pb.Pcm(samples=bytes(16000 * 2 * 20)))  # its sound
        await render(file=file, format=pb.RENDER_FORMAT_RGB)  # what is decoded
        await render(pcm=pb.Pcm(samples=file[44 : 44 + 16000 * 2 * 5]))  # the mp4

with Live(Avatar.load(avatar), precision="fp32") as live:
    run(main(live))
"""


def test_a_full_disk(namespace, tmp_path):  # noqa: F811
    avatar = write_avatar(tmp_path / "tiny")
    speech = write_speech(tmp_path / "speech.wav", 12)
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [sys.executable, "-c", SERVE, str(avatar), str(speech)]
    mount = f"mount -t tmpfs -o size=600k tmpfs {shlex.quote(str(disk))}"
    done = subprocess.run(
        [*namespace, f"{mount} && exec {shlex.join(words)}"],
        env=ENVIRONMENT | {"TMPDIR": str(disk)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    full = "No space left on device"
    whole, *failed = done.stdout.splitlines()
    assert whole == "OK  []", done
    assert failed[1::2] == [f"RESOURCE_EXHAUSTED the server failed: {full} []"] * 3, done
    assert all(line.startswith("ERROR a call failed: ") and full in line for line in failed[::2])
    assert len(failed) == 6 and "Traceback" not in done.stderr
