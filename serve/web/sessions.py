"""The live sessions of HTTP clients: opened, found by their numbers, and ended."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from engine.errors import InputError, shortened
from engine.live.live import PREBUFFER
from engine.media.encode import EncoderPool

from ..config import Config
from ..errors import INTERNAL, Ending
from ..places import Places
from ..refused import Refused, refused
from .feed import Voice
from .recording import Recordings
from .session import WebSession

MOST_ID = 2**53 - 1  # exact in JavaScript
END_SECONDS = 5.0  # for sessions that end; others are cancelled, and after as long left alone

T = TypeVar("T")

_log = logging.getLogger(__name__)


class WebSessions:
    """All sessions that HTTP clients opened. For the event loop.

    Args:
        registry: `serve.registry.Registry`.
        metrics: `serve.metrics.Metrics`.
        places: for live sessions, also others than these.
        voice: speaks texts; None if there is none.

    Attributes:
        recordings: of these sessions.
        ending: whether new sessions are refused.
        number: returns a session's number, 1 to 2**53 - 1, which must not be guessable.
    """

    def __init__(
        self,
        registry: Any,
        config: Config,
        metrics: Any,
        places: Places,
        voice: Voice | None = None,
    ):
        self.registry, self.config, self.metrics, self.places = registry, config, metrics, places
        self.voice, self.ending = voice, False
        self.number: Callable[[], int] = _random_number
        self.pool = EncoderPool()
        self.recordings = Recordings(config.web)
        self._sessions: dict[int, WebSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._none = asyncio.Event()
        self._none.set()

    async def open(
        self,
        avatar: str,
        *,
        sample_rate: int = 48000,
        channels: int = 1,
        prebuffer: float = PREBUFFER,
        clock: str = "wall",
        start_frame: int | None = None,
        loop: str = "pingpong",
    ) -> WebSession:
        """Open a session, when its avatar is loaded. It ends 5 s later unless somebody holds it.

        Args:
            avatar: its name.
            sample_rate, channels, prebuffer, clock, start_frame, loop: as in `engine.live.Live`.

        Raises:
            Refused: an argument is out of range, the avatar is not there, all places are taken, the
                device has no time for another one, or the server ends.
        """
        options = {
            "sample_rate": sample_rate,
            "channels": channels,
            "prebuffer": prebuffer,
            "clock": clock,
            "start_frame": start_frame,
            "loop": loop,
        }
        return await self.run(avatar, partial(self._serve, options))

    async def run(
        self, avatar: str, serve: Callable[[Any, "asyncio.Future[T]"], Awaitable[None]]
    ) -> T:
        """Let a session of another kind run in a task, with a place and an avatar that is loaded.

        Args:
            avatar: its name.
            serve: gets the avatar and a future. It sets its result when the session is there, and
                returns when it has ended. It is cancelled when the server ends.

        Returns:
            The future's result.

        Raises:
            Refused: as `open`, or what `serve` has raised before.
        """
        opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(avatar, serve, opened))
        self._tasks.add(task)
        self._none.clear()
        task.add_done_callback(self._forget)
        try:
            return await opened
        except InputError as error:
            raise refused(error) from error
        except asyncio.CancelledError:  # the client has left
            task.cancel()
            raise

    def find(self, id: int | str) -> WebSession | None:
        """Return a session by its number, which may be text; None if there is none."""
        if isinstance(id, str):
            if not (id.isascii() and id.isdecimal() and len(id) <= len(str(MOST_ID))):
                return None
            id = int(id)
        return self._sessions.get(id)

    def get(self, id: object) -> WebSession:
        """Return the session that a client names, by a number or a text.

        Raises:
            Refused: 404: there is none.
        """
        usable = isinstance(id, int | str) and not isinstance(id, bool)
        session = self.find(id) if usable else None  # type: ignore[arg-type]
        if session is None:
            raise Refused(404, f"there is no session {shortened(id)}; open one before")
        return session

    def __len__(self) -> int:
        return len(self._tasks)

    async def finished(self) -> None:
        """Wait until there is no session."""
        await self._none.wait()

    async def close(self) -> None:
        """End all sessions, and refuse new ones."""
        self.ending = True
        for session in list(self._sessions.values()):
            session.end("the server is ending")
        for task in self._tasks - {session.task for session in self._sessions.values()}:
            task.cancel()  # it waits for an avatar
        for cancel in (False, True):
            for task in self._tasks:
                if cancel:
                    _log.error("a session does not end")
                    task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=END_SECONDS)
        await self.recordings.close()
        await asyncio.to_thread(self.pool.close)
        if self.voice is not None:
            await self.voice.close()

    async def _run(
        self,
        avatar: str,
        serve: Callable[[Any, "asyncio.Future[T]"], Awaitable[None]],
        opened: "asyncio.Future[T]",
    ) -> None:
        """Open a session, and serve it until it ends."""
        try:
            if self.ending:
                raise Ending("the server is ending")
            with self.places.one(avatar):
                async with self.registry.use(avatar, self.config.limits.load_seconds) as use:
                    if self.ending:
                        raise Ending("the server is ending")
                    if not opened.done():  # else the client has left
                        await serve(use.served, opened)
        except asyncio.CancelledError:
            if not opened.done():
                opened.set_exception(Ending("the server is ending"))
            raise
        except (InputError, Refused) as error:
            if not opened.done():
                opened.set_exception(error)
        except Exception as error:
            _log.error("a session failed", exc_info=error)
            if not opened.done():
                opened.set_exception(Refused(500, INTERNAL))

    async def _serve(
        self, options: dict[str, Any], served: Any, opened: "asyncio.Future[WebSession]"
    ) -> None:
        session = WebSession(
            self._number(),
            served.live.open(**options),
            served,
            pool=self.pool,
            metrics=self.metrics,
            voice=self.voice,
            clock=options["clock"],
            most_seconds=self.config.limits.max_session_seconds,
            bitrate=1000 * self.config.web.bitrate_kbps,
        )
        session.task = asyncio.current_task()
        self._sessions[session.id] = session
        opened.set_result(session)
        try:
            await session.run()
        finally:
            del self._sessions[session.id]
            session.ended.set()

    def _number(self) -> int:
        while (number := self.number()) in self._sessions:
            pass
        return number

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._none.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a session failed", exc_info=task.exception())


def _random_number() -> int:
    return secrets.randbelow(MOST_ID) + 1
