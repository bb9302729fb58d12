"""Texts that are spoken: by espeak-ng, and by a service like OpenAI's."""

import asyncio
import json
import logging
import os
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from engine.errors import InputError
from serve import config
from serve.web import voice as voice_module
from serve.web.voice import open_voice
from tests.engine.live.stage import voice as noise
from tests.serve.web.site import SECONDS, client, run, serving
from tests.serve.web.stage import until

pytestmark = pytest.mark.usefixtures("left_soon")

FLOAT = {"sample_rate": 48000, "sample_format": "f32"}
KEY = "sk-correct-horse-battery-staple"


def sound_of(messages: list, type=np.float32) -> np.ndarray:
    """Return the samples of the pieces in which something is said."""
    parts = [m.sound for m in messages if not isinstance(m, dict) and m.speaking]
    return np.frombuffer(b"".join(parts), type)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return int16 samples at another rate, as float32."""
    resampler = av.AudioResampler("flt", "mono", wanted)
    floats = (samples / 32768).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(floats, "fltp", "mono")
    frame.sample_rate = rate
    made = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([one.to_ndarray()[0] for one in made])


def open_pipes() -> int:
    """Return how many pipes this process has open."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed by now
            links.append(os.readlink(path))
    return sum(link.startswith("pipe:") for link in links)


def children() -> set[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in tasks for pid in path.read_text().split()}


# --- espeak-ng -----------------------------------------------------------------------------------


def test_texts_are_said_as_espeak_says_them(live):
    """Through a socket, to the last sample, and two texts in order."""
    pytest.importorskip("espeakng_loader")
    from examples.speech import espeak

    texts = ["How are you today?", "Thank you, very well."]

    async def main():
        async with (
            serving(live, voice=open_voice(config.Voice())) as site,
            client(site, **FLOAT, clock="taken", picture="jpeg") as talk,
        ):
            assert talk.opened["voice"] is True
            for text in texts:
                await talk.tell(type="say", text=text)
            return [await talk.all() for _ in texts]

    for text, messages in zip(texts, run(main()), strict=True):
        rate, samples, _ = espeak._synthesise(text, "en-us+f4", 160, 46)
        expected = resampled(samples, rate, 48000)
        sound = sound_of(messages)
        assert len(expected) > 48000 and len(sound) - len(expected) < 1920
        assert np.abs(sound[: len(expected)] - expected).max() < 1e-6


def test_an_interruption_ends_the_process(live, monkeypatch):
    """And its pipe, and the texts that wait; the next one is said."""
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr("serve.speech.WAITING_SECONDS", 0.0)  # so that speaking waits for room
    monkeypatch.setattr("serve.speech.WAITING_BYTES", 0)
    monkeypatch.setattr("serve.speech.MESSAGE_SECONDS", 1.0)
    before, pipes = children(), open_pipes()

    async def main():
        async with (
            serving(live, voice=open_voice(config.Voice())) as site,
            client(site, **FLOAT) as talk,
        ):
            for _ in range(3):
                await talk.tell(type="say", text="one two three four five six seven " * 20)
            await talk.event("speaking")
            assert len(children() - before) == 1
            await talk.tell(type="interrupt")
            await talk.event("interrupted")
            await until(lambda: children() == before and open_pipes() == pipes)
            await talk.tell(type="say", text="Yes.")
            await talk.event("end")

    run(main())


@pytest.mark.parametrize(
    "text", ["", " ", "...", "\0\ud800\n", "🙂", "]]>[[<x/>", "a" * 2000, "é" * 300]
)
def test_any_text_can_be_said(text):
    pytest.importorskip("espeakng_loader")

    async def main():
        said = open_voice(config.Voice())
        return [part async for part in said.speak(text, 16000)]

    for part in run(main()):
        assert part.dtype == np.float32 and part.ndim == 1 and np.isfinite(part).all()


def test_voices_that_espeak_does_not_have(caplog):
    pytest.importorskip("espeakng_loader")

    async def main():
        async for _ in open_voice(config.Voice(voice="klingon-7")).speak("x", 16000):
            pass

    with pytest.raises(InputError, match=r"^espeak-ng: there is no voice 'klingon-7'; expected"):
        run(main())


def test_without_espeak(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    monkeypatch.setattr(voice_module, "Path", lambda *_: Path("/nowhere"))
    with pytest.raises(InputError, match="web.voice is espeak, but espeak-ng is not installed"):
        open_voice(config.Voice())
    assert open_voice(None) is None


# --- a service -----------------------------------------------------------------------------------


class Service:
    """A service as OpenAI's, whose answers a test chooses.

    Attributes:
        orders: requests, with their headers.
        parts: of the answer's body.
        go: the parts after the first one are sent when it is set.
        left: set when a client has left before the end.
        sent: parts so far.
    """

    def __init__(self, parts=(b"",)):
        self.change(parts)
        self.orders, self.go, self.left = [], asyncio.Event(), asyncio.Event()
        self.sent = 0
        self.go.set()

    def change(self, parts, status="200 OK", kind="audio/pcm"):
        self.parts, self.status, self.kind = parts, status, kind

    async def answer(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self.one(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def one(self, head, reader, writer):
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        self.orders.append((head, json.loads(body)))
        answer = f"HTTP/1.1 {self.status}\r\nContent-Type: {self.kind}\r\n"
        writer.write(f"{answer}Transfer-Encoding: chunked\r\n\r\n".encode())
        for number, part in enumerate(self.parts):
            if number == 1:
                await self.go.wait()
            try:
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n" if part else b"")
                await writer.drain()
            except ConnectionError:
                self.left.set()
                raise
            self.sent += 1
        writer.write(b"0\r\n\r\n")


@asynccontextmanager
async def listening(service: Service):
    """Run it; its address is the value."""
    server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/audio/speech"
    finally:
        server.close()


def test_speech_is_heard_while_the_service_makes_the_rest(live, monkeypatch):
    """Sample for sample. The order is as OpenAI documents it."""
    monkeypatch.setenv("SPEECH_KEY", KEY)
    samples = np.rint(9000 * noise(1, 24000)).astype("<i2")
    data = samples.tobytes()
    cuts = (0, 30_001, 30_002, 40_000, len(data))  # in the middle of samples, too

    async def main():
        service = Service([data[a:b] for a, b in pairwise(cuts)])
        service.go.clear()
        async with listening(service) as url:
            chosen = config.Voice(url=url, model="tts-9", voice="nova", key_variable="SPEECH_KEY")
            async with (
                serving(live, voice=open_voice(chosen)) as site,
                client(site, sample_rate=24000, picture="jpeg") as talk,
            ):
                await talk.tell(type="say", text="What\never")
                messages = []
                while not any(not isinstance(m, dict) and m.speaking for m in messages):
                    messages.append(await talk.next())
                service.go.set()
                messages += await talk.all()
        return service, messages

    service, messages = run(main())
    assert sound_of(messages, np.int16)[: len(samples)].tobytes() == data
    ((head, order),) = service.orders
    assert head.startswith("POST /v1/audio/speech HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n" in head
    assert order == {
        "model": "tts-9", "voice": "nova", "input": "What ever",
        "response_format": "pcm", "stream_format": "audio",
    }  # fmt: skip


def test_an_interruption_ends_the_request(live):
    silence = bytes(48_000)

    async def main():
        service = Service([silence] * 5000)
        async with (
            listening(service) as url,
            serving(live, voice=open_voice(config.Voice(url=url))) as site,
            client(site, sample_rate=24000) as talk,
        ):
            await talk.tell(type="say", text="Wait")
            await talk.event("speaking")
            await talk.tell(type="interrupt")
            await talk.event("interrupted")
            async with asyncio.timeout(SECONDS):
                await service.left.wait()
            assert len(service.orders) == 1 and service.sent < 5000

    run(main())


FAULTS = [
    ({"status": "401 Unauthorized", "kind": "application/json", "parts": [b'{"error":"no key ' + KEY.encode() + b'"}']}, 'the voice\'s service answers 401: {"error":"no key ..."}'),
    ({"status": "500 Oops", "parts": [b"x" * 100_000]}, "the voice's service answers 500: xxx"),
    ({"status": "307 There\r\nLocation: /other", "parts": [b""]}, "the voice's service answers 307: There"),
    ({"kind": "application/json", "parts": [b"{}"]}, "the voice's service sends 'application/json'; expected audio/pcm"),
    ({"kind": "text/html; charset=utf-8", "parts": [b"<p>"]}, "the voice's service sends 'text/html'; expected audio/pcm"),
    ({"kind": "audio/mpeg", "parts": [b"ID3"]}, "the voice's service sends 'audio/mpeg'; expected audio/pcm"),
    ({"parts": [b"RIFF\0\0\0\0WAVE"]}, "the voice's service sends a file; expected PCM"),
    ({"parts": [bytes(24000)] * 30}, "the text takes more than 5 s to speak"),
]  # fmt: skip


def test_faults_of_a_service_in_one_line(live, monkeypatch, caplog):
    """For the client and for the log, without the key. The next text is spoken."""
    monkeypatch.setenv("SPEECH_KEY", KEY)
    monkeypatch.setattr(voice_module, "MAX_SECONDS", 5)
    spoken = {"parts": [np.full(2400, 5000, "<i2").tobytes()]}

    async def main():
        service = Service()
        async with listening(service) as url:
            chosen = config.Voice(url=url, key_variable="SPEECH_KEY")
            async with (
                serving(live, voice=open_voice(chosen)) as site,
                client(site, sample_rate=24000) as talk,
            ):
                for options, line in FAULTS:
                    caplog.clear()
                    service.change(**options)
                    await talk.tell(type="say", text="Hello")
                    told = (await talk.event("unspoken"))["message"]
                    assert told.startswith(line) and len(told) < 400 and KEY not in told
                    records = [r for r in caplog.records if r.name.startswith("serve")]
                    assert len(records) == 1 and told in records[0].getMessage()
                    assert records[0].exc_info is None
                    service.change(**spoken)
                    await talk.tell(type="interrupt")
                    await talk.event("interrupted")
                    await talk.tell(type="say", text="Hello")
                    await talk.event("end")

    with caplog.at_level(logging.WARNING):
        run(main())


@pytest.mark.parametrize("case", ["refused", "silent", "no address", "gone"])
def test_services_that_cannot_be_reached(monkeypatch, case):
    monkeypatch.setattr(voice_module, "PART_SECONDS", 0.3)
    monkeypatch.setattr(voice_module, "CONNECT_SECONDS", 0.3)

    class Silent(Service):
        async def one(self, head, reader, writer):
            if case == "gone":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nContent-Length: 9999\r\n\r\n12"
                )
                await writer.drain()
                raise ConnectionError
            await asyncio.sleep(5)

    async def main():
        async with listening(Silent()) as url:
            url = {"refused": "http://127.0.0.1:9/", "no address": "http://nowhere.invalid/"}.get(
                case, url
            )
            said = open_voice(config.Voice(url=url))
            try:
                async for _ in said.speak("Hello", 16000):
                    pass
            finally:
                await said.close()

    line = {"silent": "does not answer in time"}.get(case, "cannot be used: ")
    with pytest.raises(InputError, match=f"^the voice's service {line}") as error:
        run(main())
    assert error.value.__cause__ is None


def test_a_fault_is_told_without_a_piece(live):
    """Of a session as taken, in which nothing else is said."""

    async def main():
        service = Service()
        service.change([b""], status="500 Oops")
        async with (
            listening(service) as url,
            serving(live, voice=open_voice(config.Voice(url=url))) as site,
            client(site, sample_rate=24000, clock="taken") as talk,
        ):
            await talk.tell(type="say", text="Hello")
            return await talk.event("unspoken")

    assert run(main())["message"] == "the voice's service answers 500: Oops"


def test_keys_that_are_not_there(monkeypatch):
    chosen = config.Voice(url="http://h/", key_variable="SPEECH_KEY")
    for value in (None, "", "two\nlines"):
        monkeypatch.delenv("SPEECH_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("SPEECH_KEY", value)
        with pytest.raises(InputError, match="'SPEECH_KEY' has no usable key"):
            open_voice(chosen)
