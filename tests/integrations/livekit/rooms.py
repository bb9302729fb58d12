"""A LiveKit room in this process: what is published is remembered, bytes and calls reach the others.

Only what goes over the network is replaced. Frames, sources, tracks, streams of bytes and the
runner are LiveKit's own.
"""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
from livekit import rtc

from tests.serve.web.site import serving

URL, KEY, SECRET = "wss://livekit.example.org", "key", "secret" * 6
AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
SECONDS = 30  # for whatever should happen at once


async def until(condition, seconds: float = SECONDS, pause: float = 0.005) -> None:
    """Wait until something holds that is looked at again and again."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(pause)


def site(live, **config):
    """Run a server that may join rooms of this LiveKit server."""
    web = {"livekit_urls": (f"{URL}:443",), **config.pop("web", {})}
    return serving(live, web=web, **config)


class Published:
    """What LiveKit's sources of sound and pictures got, in order."""

    def __init__(self, monkeypatch):
        self.items = list[tuple[float, rtc.VideoFrame | rtc.AudioFrame]]()
        sound, picture = rtc.AudioSource.capture_frame, rtc.VideoSource.capture_frame

        async def capture_sound(source, frame):
            self.items.append((time.monotonic(), frame))
            await sound(source, frame)

        def capture_picture(source, frame, **options):
            self.items.append((time.monotonic(), frame))
            picture(source, frame, **options)

        monkeypatch.setattr(rtc.AudioSource, "capture_frame", capture_sound)
        monkeypatch.setattr(rtc.VideoSource, "capture_frame", capture_picture)

    @property
    def sounds(self) -> list[rtc.AudioFrame]:
        return [item for _, item in self.items if isinstance(item, rtc.AudioFrame)]

    @property
    def pictures(self) -> list[rtc.VideoFrame]:
        return [item for _, item in self.items if isinstance(item, rtc.VideoFrame)]

    @property
    def samples(self) -> np.ndarray:
        return samples_of(self.sounds)


def samples_of(frames) -> np.ndarray:
    parts = [np.frombuffer(frame.data, np.int16) for frame in frames]
    return np.concatenate([np.empty(0, np.int16), *parts])


def bright(frame: rtc.VideoFrame) -> bool:
    """Whether the mouth of a flashing avatar is bright."""
    luma = np.frombuffer(frame.get_plane(0), np.uint8).reshape(frame.height, frame.width)
    return bool(luma[frame.height // 2, frame.width // 2] > 120)


class Publication:
    def __init__(self, track, subscribed: asyncio.Event):
        self.track, self._subscribed = track, subscribed
        self.kind = track.kind

    async def wait_for_subscription(self) -> None:
        await self._subscribed.wait()


class Room(rtc.EventEmitter):
    """A room as one participant sees it. Several with the same network are in the same room."""

    def __init__(self, network: "Network | None" = None, identity: str = "agent", kind=AGENT):
        super().__init__()
        self.network = network or Network()
        self.name, self.subscribed, self.handlers = "lobby", asyncio.Event(), {}
        self.subscribed.set()
        self._connected = False
        self.local_participant = Participant(self, identity, kind)
        self.connected_to = None

    def isconnected(self) -> bool:
        return self._connected

    @property
    def connection_state(self):
        state = rtc.ConnectionState
        return state.CONN_CONNECTED if self._connected else state.CONN_DISCONNECTED

    @property
    def remote_participants(self):
        return {
            room.local_participant.identity: room.local_participant
            for room in self.network.rooms
            if room is not self
        }

    def register_byte_stream_handler(self, topic, handler) -> None:
        self.handlers[topic] = handler

    def unregister_byte_stream_handler(self, topic) -> None:
        self.handlers.pop(topic, None)

    register_text_stream_handler = register_byte_stream_handler
    unregister_text_stream_handler = unregister_byte_stream_handler

    def join(self) -> "Room":
        self._connected = True
        for room in self.network.rooms:
            room.emit("participant_connected", self.local_participant)
            room.emit("participant_active", self.local_participant)
        self.network.rooms.append(self)
        self.emit("connection_state_changed", self.connection_state)
        return self

    async def connect(self, url, token, options=None) -> None:
        self.connected_to, self.options = (url, token), options
        self.network.grant(self, url, token)
        self.join()

    async def disconnect(self, reason="client left") -> None:
        if self._connected:
            self._connected = False
            self.network.rooms.remove(self)
            self.emit("connection_state_changed", self.connection_state)
            self.emit("disconnected", reason)
            for room in list(self.network.rooms):
                room.emit("participant_disconnected", self.local_participant)


class Network:
    """What the participants of a room share."""

    def __init__(self):
        self.rooms = list[Room]()
        self.refuse: str | None = None

    def room_of(self, identity: str) -> Room:
        return next(r for r in self.rooms if r.local_participant.identity == identity)

    def grant(self, room: Room, url: str, token: str) -> None:
        """Give a participant what its token says, as a server does."""
        import jwt

        if self.refuse:
            raise rtc.ConnectError(self.refuse)
        claims = jwt.decode(token, SECRET, algorithms=["HS256"])
        room.name = claims["video"]["room"]
        me = room.local_participant
        me.identity, me.attributes = claims["sub"], dict(claims.get("attributes", {}))


class Participant:
    """A participant, for itself and for others."""

    def __init__(self, room: Room, identity: str, kind):
        self._room, self.identity, self.kind, self.sid = room, identity, kind, identity
        self.attributes, self.track_publications = dict[str, str](), dict[str, Publication]()
        self._rpc_handlers = {}
        self.calls = list[tuple[str, str]]()
        self.state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE

    async def publish_track(self, track, options):
        publication = Publication(track, self._room.subscribed)
        self.track_publications[track.name] = publication
        for room in self._room.network.rooms:
            if room is not self._room:
                room.emit("track_published", publication, self)
        return publication

    async def send_bytes(self, *_, **__) -> None:
        """What an agent's session tells about itself is of no interest."""

    publish_transcription = send_bytes

    async def stream_text(self, **_) -> "Writer":
        return Writer(Reader({}, "text"))

    async def set_attributes(self, attributes) -> None:
        self.attributes |= attributes

    def register_rpc_method(self, name, handler) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity, method, payload) -> str:
        self.calls.append((method, payload))
        await asyncio.sleep(0)
        other = self._room.network.room_of(destination_identity).local_participant
        if method not in other._rpc_handlers:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, method)
        return other._rpc_handlers[method](
            SimpleNamespace(caller_identity=self.identity, payload=payload)
        )

    async def stream_bytes(self, name, *, topic, destination_identities, attributes):
        (destination,) = destination_identities
        room = self._room.network.room_of(destination)
        reader = Reader(attributes, name)
        room.handlers[topic](reader, self.identity)
        return Writer(reader)


class Reader:
    """A stream of bytes that comes in. LiveKit's own reads from its library's connection."""

    def __init__(self, attributes: dict[str, str], stream_id: str):
        self.info = SimpleNamespace(attributes=attributes, stream_id=stream_id)
        self.chunks = asyncio.Queue[bytes | None]()

    def __aiter__(self):
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class Writer:
    def __init__(self, reader: Reader):
        self._reader = reader

    async def write(self, data: bytes | str) -> None:
        await asyncio.sleep(0)
        for first in range(0, len(data), 15_000):
            self._reader.chunks.put_nowait(data[first : first + 15_000])

    async def aclose(self, **_) -> None:
        self._reader.chunks.put_nowait(None)
