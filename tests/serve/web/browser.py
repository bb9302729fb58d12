"""A real server with a small avatar, and the browser that opens its page."""

import asyncio
import json
import shutil
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from serve.config import Config
from serve.server import Server
from tests.engine.tiny import NETWORKS

SECONDS = 60  # for whatever should happen soon, on a busy machine
WIDTH, HEIGHT = 360, 640
MOUTH = 100, 320, 260, 480  # the avatar's box
INNER = [140, 360, 80, 80]  # x, y, width, height: only mouth
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP viseme.test 127.0.0.1",
]


def write_avatar(folder: Path) -> Path:
    """Write an avatar of still frames, whose mouth shows how loud the speech is."""
    (folder / "frames").mkdir(parents=True)
    for number in range(3):
        rows = np.linspace(60, 130, HEIGHT).astype(np.uint8)
        pixels = np.broadcast_to(rows[:, None, None], (HEIGHT, WIDTH, 3)).copy()
        Image.fromarray(pixels).save(folder / "frames" / f"{number}.png")
    (folder / "boxes.json").write_text(json.dumps([MOUTH] * 3))
    record = {"name": "anna", "fps": 25, "frames": "frames", "boxes": "boxes.json"}
    for kind, path in NETWORKS.items():
        shutil.copy(path, folder / path.name)
        record[kind] = path.name
    (folder / "avatar.json").write_text(json.dumps(record))
    return folder


def write_sound(path: Path, samples: np.ndarray) -> Path:
    """Write float samples at 48 kHz as a wav."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 48000, 0, "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype(np.int16).tobytes())
    return path


class Running:
    """A server in a thread.

    Attributes:
        url: of its page.
    """

    def __init__(self, config: Config):
        self.server = Server(config)
        self._loop = asyncio.new_event_loop()
        self._stop, self._started = asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._started.wait(SECONDS)
        self.url = f"http://127.0.0.1:{self.server.http_port}/"

    def _serve(self) -> None:
        async def main() -> None:
            await self.server.start()
            self._started.set()
            await self.server.serve_until(self._stop)

        try:
            self._loop.run_until_complete(main())
        finally:
            self._started.set()
            self._loop.close()

    @property
    def sessions(self) -> int:
        """How many live sessions there are."""
        return len(self.server._services.web)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@contextmanager
def serving(folder: Path, **config) -> Iterator[Running]:
    """Run a server of the avatar in a folder. At the end no session may be left."""
    running = Running(
        Config.model_validate(
            {
                "server": {"port": 0, "http_port": 0, "drain_seconds": 0},
                "gpus": {"count": 0},
                "networks": {"precision": "fp32"},
                "models": {"anna": {"avatar": folder, "preload": True}},
            }
            | config
        )
    )
    try:
        until(lambda: httpx.get(f"{running.url}readyz").status_code == 200)
        yield running
        until(lambda: running.sessions == 0)
    finally:
        running.close()


def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
