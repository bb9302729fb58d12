"""Text to speech: espeak-ng, or a service with the interface of OpenAI's /v1/audio/speech."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import httpx
import numpy as np

from engine.errors import InputError, one_line, printable, shortened
from engine.media.resampling import Resampler

from .. import config
from . import espeak_process

ESPEAK_VOICE = "en-us+f4"  # unless the configuration names one
ESPEAK_RATE, ESPEAK_PITCH = 160, 46  # words a minute; 0 to 99
SERVICE_VOICE = "alloy"  # the same
SERVICE_RATE = 24000  # Hz, of the format pcm
MAX_SECONDS = 600.0  # of speech for a text
CONNECT_SECONDS, PART_SECONDS = 5.0, 30.0
PART_BYTES = 9600  # about 0.2 s, so that speech is heard as it is made
MAX_SAID = 2000  # bytes of a service's error that are read
# others, such as audio/mpeg or application/json, are no PCM
PCM_TYPES = {"audio/pcm", "audio/x-pcm", "audio/l16", "audio/raw", "application/octet-stream", ""}

_COMMAND = [sys.executable, "-P", "-s", "-S", str(Path(espeak_process.__file__))]
_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}


def open_voice(configured: config.Voice | None) -> "EspeakVoice | SpeechService | None":
    """Return the voice of a configuration.

    Raises:
        InputError: espeak-ng is not installed, or the variable with the key is not set.
    """
    if configured is None:
        return None
    return EspeakVoice(configured) if configured.url is None else SpeechService(configured)


# --- espeak-ng -----------------------------------------------------------------------------------


class EspeakVoice:
    """espeak-ng, with a process for each text.

    Raises:
        InputError: it is not installed.
    """

    def __init__(self, configured: config.Voice):
        self.max_characters = configured.max_characters
        voice = configured.voice or ESPEAK_VOICE
        library, data = _espeak()
        self._voice = voice
        self._arguments = [library, data, voice, str(ESPEAK_RATE), str(ESPEAK_PITCH)]

    async def speak(self, text: str, sample_rate: int) -> AsyncGenerator[np.ndarray, None]:
        """See `serve.web.feed.Voice`. Ending it early kills the process."""
        with open(os.memfd_create("text"), "w+b", buffering=0) as said:
            said.write(_plain(text).encode())
            said.seek(0)
            process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                str(os.getpid()),
                *self._arguments,
                stdin=said,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for the server
            )
        try:
            assert process.stdout is not None
            rate = int.from_bytes(await _read(process.stdout, 4), "little")
            if rate:
                async with aclosing(_spoken(_parts(process.stdout), rate, sample_rate)) as spoken:
                    async for samples in spoken:
                        yield samples
            if code := await process.wait():
                raise InputError(f"espeak-ng: {self._fault(code)}")
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            # Reads to the pipe's end: before that asyncio neither closes it nor says that the
            # process has ended.
            await asyncio.shield(process.communicate())

    async def close(self) -> None:
        """Do nothing: there is a process only while a text is spoken."""

    def _fault(self, code: int) -> str:
        if code == espeak_process.NO_VOICE:
            return f"there is no voice {shortened(self._voice)}; expected one of espeak-ng's"
        if code in (espeak_process.NO_LIBRARY, espeak_process.NO_DATA):
            return "it cannot be loaded; pip install espeakng-loader"
        return f"it ended with {code}"


def _espeak() -> tuple[str, str]:
    """Return the paths of the library and of its data ("" for the library's own)."""
    try:
        import espeakng_loader
    except ImportError:
        for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
            for path in (
                *Path(folder).glob("libespeak-ng.so.1"),
                *Path(folder).glob("*/libespeak-ng.so.1"),
            ):
                return str(path), ""
        raise InputError(
            "web.voice is espeak, but espeak-ng is not installed; pip install espeakng-loader"
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


async def _read(stream: asyncio.StreamReader, count: int) -> bytes:
    """Read so many bytes, or none at the stream's end."""
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await stream.readexactly(count)
    except asyncio.IncompleteReadError:
        return b""
    except TimeoutError:
        raise InputError(f"espeak-ng said nothing for {PART_SECONDS:g} s") from None


async def _parts(stream: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            async with asyncio.timeout(PART_SECONDS):
                part = await stream.read(PART_BYTES)
        except TimeoutError:
            raise InputError(f"espeak-ng said nothing for {PART_SECONDS:g} s") from None
        if not part:
            return
        yield part


# --- a service -----------------------------------------------------------------------------------


class SpeechService:
    """A service with the interface of OpenAI's /v1/audio/speech, which sends PCM as it is made:
    int16, mono, 24 kHz.

    Raises:
        InputError: the variable with the key is not set.
    """

    def __init__(self, configured: config.Voice):
        assert configured.url is not None
        self.max_characters = configured.max_characters
        self._url, self._model = configured.url, configured.model
        self._voice = configured.voice or SERVICE_VOICE
        headers, self._key = {"Accept": "audio/pcm", "Accept-Encoding": "identity"}, ""
        if configured.key_variable is not None:
            key = os.environ.get(configured.key_variable, "")
            if not key or not (key.isascii() and key.isprintable()):
                name = shortened(configured.key_variable)
                raise InputError(f"web.voice: the environment variable {name} has no usable key")
            self._key, headers["Authorization"] = key, f"Bearer {key}"
        # one for all texts: making one takes the event loop's time
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(PART_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=10),
        )

    async def speak(self, text: str, sample_rate: int) -> AsyncGenerator[np.ndarray, None]:
        """See `serve.web.feed.Voice`. Ending it early ends the request."""
        order = {
            "model": self._model,
            "voice": self._voice,
            "input": _plain(text),
            "response_format": "pcm",
            "stream_format": "audio",
        }
        try:
            async with self._client.stream("POST", self._url, json=order) as response:
                await self._check(response)
                parts = response.aiter_raw()  # as they come
                async with aclosing(_spoken(parts, SERVICE_RATE, sample_rate)) as spoken:
                    async for samples in spoken:
                        yield samples
        except httpx.TimeoutException:
            raise InputError("the voice's service does not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = one_line(error) or type(error).__name__
            raise InputError(f"the voice's service cannot be used: {why}") from None

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def _check(self, response: httpx.Response) -> None:
        """Raise an error if this is no speech."""
        if response.status_code != 200:
            said = (await _begin(response)).decode("utf-8", "replace")
            if self._key:  # which some services repeat
                said = said.replace(self._key, "...")
            said = printable(one_line(said)) or response.reason_phrase
            raise InputError(f"the voice's service answers {response.status_code}: {said}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in PCM_TYPES:
            raise InputError(f"the voice's service sends {shortened(kind)}; expected audio/pcm")


async def _begin(response: httpx.Response) -> bytes:
    """Return the first bytes of an answer."""
    said = b""
    async for part in response.aiter_raw():
        said += part
        if len(said) >= MAX_SAID:
            break
    return said[:MAX_SAID]


# --- samples -------------------------------------------------------------------------------------


async def _spoken(
    parts: AsyncIterator[bytes], rate: int, wanted: int
) -> AsyncGenerator[np.ndarray, None]:
    """Convert int16 samples in parts of any length to float32 at another rate.

    Raises:
        InputError: there are too many, or they are a file.
    """
    resample, rest, count = Resampler(rate, wanted), b"", 0
    async for part in parts:
        if not count and part.startswith((b"RIFF", b"ID3", b"OggS", b"fLaC")):
            raise InputError("the voice's service sends a file; expected PCM")
        data = rest + part
        rest = data[len(data) & ~1 :]
        samples = np.frombuffer(data[: len(data) & ~1], "<i2")
        count += len(samples)
        if count > MAX_SECONDS * rate:
            raise InputError(f"the text takes more than {MAX_SECONDS:g} s to speak")
        if len(made := resample(samples.astype(np.float32) / 32768)):
            yield made
    if len(made := resample.flush()):
        yield made


def _plain(text: str) -> str:
    """Return a text without control characters and what UTF-8 cannot encode."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
