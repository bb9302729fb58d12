"""A live session of a Viseme server, over gRPC."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from . import viseme_pb2 as pb

LIVE = "/viseme.v1.Viseme/Live"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that is back is found soon; gRPC would wait for up to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
MOST_SECONDS = 30  # of speech in a message; the server takes 60
OPEN_SECONDS = 180.0  # in which a session opens: the server may have to load the avatar
WAITING_SECONDS = 300.0  # of speech that waits to be sent, such as while a session opens
SILENT_SECONDS = 10.0  # in which something comes of an open session: it has frames without end


class Silent(Exception):
    """Nothing comes from the server any more: the network, or its machine, is gone."""


def channel(
    address: str, *, tls: bool = False, certificates: bytes | None = None
) -> grpc.aio.Channel:
    """Return a channel to a server.

    Args:
        address: host and port.
        tls: whether the server speaks TLS.
        certificates: of the authorities that are trusted, in PEM format; the system's unless given.
    """
    if not tls and certificates is None:
        return grpc.aio.insecure_channel(address, OPTIONS)
    credentials = grpc.ssl_channel_credentials(certificates)
    return grpc.aio.secure_channel(address, credentials, OPTIONS)


class Session:
    """A live session: speech in, events and pieces out.

    Args:
        to: channel to the server.
        opening: what to open.
        token: that the server wants; None for none.
    """

    def __init__(self, to: grpc.aio.Channel, opening: pb.OpenSession, token: str | None = None):
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        live = to.stream_stream(
            LIVE,
            request_serializer=pb.LiveRequest.SerializeToString,
            response_deserializer=pb.LiveResponse.FromString,
        )
        self._opening = opening
        self._requests: deque[pb.LiveRequest | None] = deque()  # None: the end
        self._stirred = asyncio.Event()  # by a request
        self._second = 2 * opening.sample_rate  # bytes
        self._waiting = 0  # bytes of speech among the requests
        self._call = live(self._sent(), metadata=metadata)

    @property
    def full(self) -> str | None:
        """Why no more speech is taken; None if it is."""
        if self._waiting < WAITING_SECONDS * self._second:
            return None
        return f"{WAITING_SECONDS:g} s of speech wait to be sent; more is lost"

    def push(self, samples: bytes) -> None:
        """Send speech: int16, little-endian, one channel, at the session's rate."""
        most = MOST_SECONDS * self._second
        for begin in range(0, len(samples), most):
            self._send(pb.LiveRequest(pcm=samples[begin : begin + most]))
        self._waiting += len(samples)

    def flush(self) -> None:
        """End the utterance. Without one, this only keeps the session."""
        self._send(pb.LiveRequest(flush=pb.Flush()))

    def interrupt(self) -> None:
        """Drop all speech that was not shown, and that which was not sent."""
        kept = [one for one in self._requests if one is None or one.HasField("interrupt")]
        self._requests, self._waiting = deque(kept), 0
        self._send(pb.LiveRequest(interrupt=pb.Interrupt()))

    def finish(self) -> None:
        """End the session when all speech is shown."""
        self._send(None)

    def cancel(self) -> None:
        """End the session at once."""
        self._call.cancel()

    async def responses(self) -> AsyncIterator[pb.LiveResponse]:
        """Iterate over what the server sends, until the session ends.

        Raises:
            grpc.aio.AioRpcError: the server ended it, or was not reached.
            Silent: nothing came for too long.
        """
        responses, seconds = aiter(self._call), OPEN_SECONDS
        while True:
            try:
                async with asyncio.timeout(seconds):
                    response = await anext(responses, None)
            except TimeoutError:
                raise Silent(f"nothing came for {seconds:g} s") from None
            if response is None:
                return
            seconds = SILENT_SECONDS
            yield response

    def _send(self, request: pb.LiveRequest | None) -> None:
        self._requests.append(request)
        self._stirred.set()

    async def _sent(self) -> AsyncIterator[pb.LiveRequest]:
        yield pb.LiveRequest(open=self._opening)
        while True:
            while not self._requests:
                self._stirred.clear()
                await self._stirred.wait()
            request = self._requests.popleft()
            if request is None:
                return
            self._waiting -= len(request.pcm)
            yield request


def opening(
    avatar: str, rate: int, picture: str, prebuffer: float | None, pictures: Sequence[str]
) -> Any:
    """Return the message that opens a session.

    Raises:
        ValueError: `picture` is none of `pictures`.
    """
    if picture not in pictures:
        raise ValueError(f"picture is {picture!r}; expected one of: {', '.join(pictures)}")
    kind = pb.PICTURE_RGB if picture == "rgb" else pb.PICTURE_JPEG
    message = pb.OpenSession(avatar=avatar, sample_rate=rate, channels=1, picture=kind)
    if prebuffer is not None:
        message.prebuffer = prebuffer
    return message
