"""A player of a session: its WebRTC connection, from its offer to its end."""

import asyncio
import logging
import secrets
from functools import partial
from typing import Any, Literal

from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import OperationError
from aiortc.rtcicetransport import connection_kwargs

from engine.errors import InputError
from engine.live.timing import frame_start

from ..config import Config, Web
from ..refused import Refused
from .congestion import Congestion
from .offer import Offer, without
from .sender import SenderReports, Timeline, route_full_intra_requests
from .session import EncodedPiece, WebSession
from .tracks import (
    AUDIO_RATE,
    MOST_PICTURES,
    MOST_SOUNDS,
    VIDEO_RATE,
    OpusStream,
    PacketTrack,
)

ANSWER_SECONDS = 10.0  # for an answer
GATHER_SECONDS = 2.0  # for what STUN and TURN servers say of this host's addresses
CONNECT_SECONDS = 8.0  # from the answer to the connection
SILENT_SECONDS = 6.0  # without a word of a player
LOOK_SECONDS = 0.5
MIMES = {"video": ("video/h264", "video/rtx"), "audio": ("audio/opus",)}
RATES = {"video": VIDEO_RATE, "audio": AUDIO_RATE}

_log = logging.getLogger(__name__)


def ice_servers(web: Web) -> list[RTCIceServer]:
    """Return the STUN and TURN servers of a configuration.

    Raises:
        InputError: an address cannot be read.
    """
    servers = [
        RTCIceServer(list(server.urls), server.username, server.credential)
        for server in web.ice_servers
    ]
    for server in servers:
        try:
            connection_kwargs([server])
        except ValueError as error:
            raise InputError(
                f"web.ice_servers: {', '.join(server.urls)}: {error}; expected such as "
                "stun:stun.example.org:3478 or turn:turn.example.org:3478?transport=udp"
            ) from None
    return servers


async def connect(session: WebSession, offer: str, config: Config, *, last: bool = False) -> "Peer":
    """Answer a player's offer. The player gets pieces when its connection is there.

    Args:
        offer: SDP with all candidates of the player.
        last: whether the session ends with the player.

    Raises:
        Refused: the session has a player, is not in real time or has ended, or the offer cannot be
            used.
    """
    if session.peer is not None:
        line = "the session has a player; expected it to leave before another one comes"
        raise Refused(409, line)
    if session.clock != "wall":
        line = f"the session's clock is {session.clock!r}; expected 'wall' for a player"
        raise Refused(409, line)
    session.check_open()
    peer = Peer(session, Offer(offer), config, last=last)
    session.peer = peer
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await peer.answer_offer()
        session.check_open()
    except TimeoutError:
        await peer.close()
        line = f"no answer was found in {ANSWER_SECONDS:g} s; try again"
        raise Refused(503, line) from None
    except OperationError:  # no common codec
        await peer.close()
        raise without("codec") from None
    except Refused:
        await peer.close()
        raise
    except Exception as error:  # of many kinds, as aiortc expects an offer that is right
        await peer.close()
        _log.debug("an offer was refused", exc_info=error)
        line = "the offer cannot be used; expected one as browsers make it"
        raise Refused(400, line) from None
    except BaseException:
        await peer.close()
        raise
    return peer


class Peer:
    """A player of a session; a sink of its pieces. Made by `connect`.

    Attributes:
        id: cannot be guessed.
        answer: SDP.
        connected: whether the player gets pieces.
    """

    wants: Literal["h264", "none"]

    def __init__(self, session: WebSession, offer: Offer, config: Config, *, last: bool):
        self.id, self.answer, self.connected = secrets.token_urlsafe(12), "", False
        self.wants = "h264" if "video" in offer.kinds else "none"
        self._session, self._offer, self._last = session, offer, last
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._heard = self._now()
        self._timeline = Timeline(self._now)
        self._congestion = Congestion(1000 * config.web.bitrate_kbps)
        self._opus = OpusStream(session.sample_rate, session.channels)
        self._tracks = {kind: PacketTrack(kind, RATES[kind]) for kind in offer.kinds}
        # Without a list aiortc would ask a server of Google.
        self._connection = RTCPeerConnection(RTCConfiguration(ice_servers(config.web)))
        self._release = session.held()
        self._reports: dict[str, SenderReports] = {}
        self._cut = False  # whether pictures are left out up to the next keyframe
        self._closing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def bitrate(self) -> int:
        """Of the pictures at most, bits a second."""
        return self._congestion.bitrate

    @property
    def origin(self) -> int | None:
        """RTP time stamp of the pictures at the session's beginning; None before there is one."""
        return self._reports["video"].origin if "video" in self._reports else None

    async def answer_offer(self) -> None:
        """Take the offer, and find the answer."""
        for kind, track in self._tracks.items():
            # Codecs are chosen when the offer is taken: later it would be VP8, without an error.
            transceiver = self._connection.addTransceiver(track, "sendonly")
            codecs = RTCRtpSender.getCapabilities(kind).codecs
            transceiver.setCodecPreferences(
                [c for c in codecs if c.mimeType.lower() in MIMES[kind]]
            )
        offer = RTCSessionDescription(self._offer.text, "offer")
        await self._connection.setRemoteDescription(offer)
        self._listen()
        await self._connection.setLocalDescription(await self._connection.createAnswer())
        self.answer = self._offer.answer(self._connection.localDescription.sdp)
        self._heard = self._now()
        self._connection.on("connectionstatechange", self._changed)
        self._changed()  # it may be connected by now
        self._watching = asyncio.create_task(self._watch())

    def _listen(self) -> None:
        senders = self._connection.getSenders()
        for sender in senders:
            self._reports[sender.kind] = SenderReports(
                sender, RATES[sender.kind], self._timeline, self
            )
        for transport in {sender.transport for sender in senders}:
            sender = next(s for s in senders if s.transport is transport)
            route_full_intra_requests(sender)
            ice: Any = transport.transport._connection
            check = ice.check_incoming

            def checked(*what: Any, check: Any = check) -> None:
                self.heard()  # by a request with the right password
                check(*what)

            ice.check_incoming = checked
            # Each answer would wait 5 s for a server that is silent.
            ice.get_component_candidates = partial(
                ice.get_component_candidates, timeout=GATHER_SECONDS
            )

    # --- a sink of pieces ------------------------------------------------------------------------

    def put(self, piece: EncodedPiece) -> None:
        self._timeline.begin(float(piece.time))
        video, audio = self._tracks.get("video"), self._tracks.get("audio")
        if video is not None and piece.picture:
            if video.waiting >= MOST_PICTURES:
                video.clear()
                self._session.request_keyframe()
                self._cut = True
            if not self._cut or piece.keyframe:
                self._cut = False
                video.put(piece.picture, round(piece.time * VIDEO_RATE))
        if audio is not None:
            first = frame_start(piece.number, self._session.sample_rate, self._session.fps)
            for timestamp, packet in self._opus.encode(piece.sound, first):
                if audio.waiting >= MOST_SOUNDS:
                    audio.drop_first()
                audio.put(packet, timestamp)

    async def room(self) -> None:
        """Return at once: only sessions in real time have players."""

    def end(self, reason: str | None) -> None:
        self._close_soon(reason)

    # --- what the player reports -----------------------------------------------------------------

    def heard(self) -> None:
        self._heard = self._now()

    def keyframe_wanted(self) -> None:
        self._session.request_keyframe()

    def lost(self, share: float, round_trip: float | None) -> None:
        if self._congestion.report(share, round_trip):
            self._session.set_bitrate(self._congestion.bitrate)

    def estimated(self, bitrate: int) -> None:
        if self._congestion.estimate(bitrate):
            self._session.set_bitrate(self._congestion.bitrate)

    # --- its end ---------------------------------------------------------------------------------

    async def close(self, reason: str | None = None) -> None:
        """End the connection. Returns when everything is freed."""
        self._close_soon(reason)
        assert self._closing is not None
        await asyncio.shield(self._closing)

    def _changed(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and not self.connected and self._closing is None:
            self.connected = True
            self._session.set_bitrate(self._congestion.bitrate)
            self._session.attach(self)
        elif state == "failed":
            self._close_soon("the player's connection failed")
        elif state == "closed":
            self._close_soon(None)

    async def _watch(self) -> None:
        begin = self._now()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self._now()
            if not self.connected:
                if now - begin > CONNECT_SECONDS:
                    self._close_soon(f"the player did not connect in {CONNECT_SECONDS:g} s")
            elif now - self._heard > SILENT_SECONDS:
                self._close_soon(f"the player said nothing for {SILENT_SECONDS:g} s")

    def _close_soon(self, reason: str | None) -> None:
        """End the connection. The first reason counts."""
        if self._closing is None:
            self._session.detach(self)
            if reason is not None:
                _log.info("a player has left: %s", reason)
                self._session.lost = reason
            self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        for track in self._tracks.values():
            track.stop()
        try:
            await self._connection.close()
        except Exception:
            _log.exception("a player's connection was not closed")
        finally:
            self._session.former_peers.append(self.id)
            if self._session.peer is self:
                self._session.peer = None
            self._release(self._now() - self._heard)
            if self._last:
                self._session.end(None)
