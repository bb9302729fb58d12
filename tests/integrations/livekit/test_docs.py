"""The Python of docs/integrations.md, as an agent's worker runs it."""

from types import SimpleNamespace

import numpy as np
import pytest
from livekit.agents import APIConnectOptions, cli, tts

from engine.errors import InputError
from engine.live import Live
from tests.conftest import ROOT
from tests.integrations.livekit.rooms import KEY, SECRET, URL, Published, Room, site, until
from tests.integrations.livekit.speech import RATE, flashes
from tests.serve.web.site import run
from tests.serve.web.stage import write_flashing
from tests.test_docs import blocks, code_spans

PAGE = ROOT / "docs" / "integrations.md"
SAID = flashes("xxoxooxx" * 3)


class Voice(tts.TTS):
    """Speaks whatever it is told as the same samples."""

    def __init__(self):
        capabilities = tts.TTSCapabilities(streaming=False)
        super().__init__(capabilities=capabilities, sample_rate=RATE, num_channels=1)
        self.texts = list[str]()

    def synthesize(self, text, *, conn_options=APIConnectOptions()):  # noqa: B008
        self.texts.append(text)
        return Spoken(tts=self, input_text=text, conn_options=conn_options)


class Spoken(tts.ChunkedStream):
    async def _run(self, output):
        output.initialize(request_id="1", sample_rate=RATE, num_channels=1, mime_type="audio/pcm")
        output.push(SAID.tobytes())
        output.flush()


class Job:
    """What a worker gives an entrypoint, with a room in this process."""

    def __init__(self, network=None):
        self.room = Room(network, "agent")

    async def connect(self) -> None:
        self.room.join()


def test_it_has_25_lines():
    (code,) = (code for code in blocks(PAGE, "python") if "livekit" in code)
    assert len(code.splitlines()) <= 25


@pytest.mark.parametrize("where", ["local", "server"])
def test_an_agent_with_an_avatar(live, network, where, tmp_path, monkeypatch):
    """Its voice comes out of the avatar, in its process or on a server."""
    (code,) = (code for code in blocks(PAGE, "python") if "livekit" in code)
    (remote,) = (span for span in code_spans(PAGE) if "url=" in span)
    local = 'viseme.AvatarSession("examples/demo")'
    assert code.count(local) == 1
    published, voice = Published(monkeypatch), Voice()
    monkeypatch.setattr(cli, "run_app", lambda options: made.append(options.entrypoint_fnc))
    for name, value in {"URL": URL, "API_KEY": KEY, "API_SECRET": SECRET}.items():
        monkeypatch.setenv(f"LIVEKIT_{name}", value)
    monkeypatch.chdir(tmp_path)
    made, lives = [], list[Live]()
    load = Live.__init__

    def loading(self, *args, **options):
        lives.append(self)
        load(self, *args, **options)

    monkeypatch.setattr(Live, "__init__", loading)
    removed = list[str]()  # from the room, at the end

    async def remove(who):
        removed.append(who.identity)

    job = SimpleNamespace(
        add_shutdown_callback=lambda _: None,
        api=SimpleNamespace(room=SimpleNamespace(remove_participant=remove)),
    )
    monkeypatch.setattr("livekit.agents.voice.avatar._types.get_job_context", lambda **_: job)

    async def speak(code: str) -> None:
        names = {"__name__": "__main__", "stt": None, "llm": None, "tts": voice}
        exec(compile(code, str(PAGE), "exec"), names)
        job = Job(network)
        avatars, sessions = names["viseme"].AvatarSession, names["AgentSession"]
        started = []
        for kind in (avatars, sessions):
            begin = kind.__init__

            def init(self, *args, _begin=begin, **options):
                started.append(self)
                _begin(self, *args, **options)

            monkeypatch.setattr(kind, "__init__", init)
        await made.pop()(job)
        await until(lambda: len(published.samples) >= len(SAID))
        for one in started[:2]:
            await one.aclose()
        await job.room.disconnect()

    async def main() -> None:
        if where == "local":
            write_flashing(tmp_path / "examples" / "demo")
            await speak(code)
            (loaded,) = lives
            with pytest.raises(InputError, match="live sessions are closed"):
                loaded.open()
        else:
            async with site(live) as server:
                wanted = remote.replace("http://gpu-host:8010", server.url).replace("demo", "tiny")
                await speak(code.replace(local, wanted))

    run(main())
    assert voice.texts == ["Hello, it is nice to see you."]
    assert np.array_equal(published.samples[: len(SAID)], SAID)
    assert not published.samples[len(SAID) :].any()  # which the agent adds
    assert removed == ([] if where == "local" else ["viseme-avatar"])  # and never the agent
