"""What aiortc's senders hear and say by RTCP, beyond what they do by themselves.

A sender of aiortc that is given packets ignores requests for keyframes and estimates of the
bitrate, and its reports give the time at which a packet was sent as the time of its content. As
packets are not sent evenly, players that synchronize by these reports would shift the sound against
the picture by as much.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

from aiortc import RTCRtpSender, clock
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpSrPacket,
    unpack_remb_fci,
)

FIR_BYTES = 8  # of each entry: SSRC, number, 3 bytes of nothing


class Timeline:
    """When the moments of a session are, in the time of RTCP's reports: the same for picture and
    sound.

    Args:
        now: the clock, seconds.
    """

    def __init__(self, now: Callable[[], float]):
        self._now = now
        self._begin: float | None = None

    def begin(self, time: float) -> None:
        """Note that a time of the session, in seconds, is now. Only the first call counts."""
        if self._begin is None:
            self._begin = self._now() - time
            self._ntp = clock.current_ntp_time() - round(time * 2**32)

    def time(self) -> float | None:
        """Return the session's time now, seconds; None before its begin."""
        return None if self._begin is None else self._now() - self._begin

    def ntp(self, time: float) -> int:
        """Return a time of the session as 64 bits of NTP."""
        return self._ntp + round(time * 2**32)


class Listener(Protocol):
    """Who is told what a player reports."""

    def heard(self) -> None:
        """Something came from the player."""
        ...

    def keyframe_wanted(self) -> None: ...

    def lost(self, share: float, round_trip: float | None) -> None:
        """A report says which share of the pictures' packets was lost since the one before, and
        how many seconds a round trip takes, if that is known."""
        ...

    def estimated(self, bitrate: int) -> None:
        """The player estimates how many bits a second its network carries."""
        ...


class SenderReports:
    """Takes part in the RTCP of a sender. Made before its connection is there.

    Args:
        sender: an `aiortc.RTCRtpSender`.
        rate: of the sender's time stamps, Hz.
    """

    def __init__(self, sender: Any, rate: int, timeline: Timeline, listener: Listener):
        self._sender = sender
        self._rate, self._timeline, self._listener = rate, timeline, listener
        self._sent: int | None = None  # time stamp of the last frame, from the session's beginning
        self._origin: int | None = None
        self._handle, self._next = sender._handle_rtcp_packet, sender._next_encoded_frame
        self._send = sender._send_rtcp
        # aiortc calls these on the object, so that it finds ours.
        self._sender._handle_rtcp_packet = self.handle
        self._sender._next_encoded_frame = self.next
        self._sender._send_rtcp = self.send

    @property
    def origin(self) -> int | None:
        """RTP time stamp of the session's beginning; None before something was sent."""
        return None if self._origin is None else self._origin & 0xFFFFFFFF

    async def next(self, codec: Any) -> Any:
        """Return the next frame to be sent. All packets of the one before it were sent."""
        if self._sent is not None and self._origin is None:
            last: int = self._sender._RTCRtpSender__rtp_timestamp
            self._origin = last - self._sent
        frame = await self._next(codec)
        if frame is not None:
            self._sent = frame.timestamp
        return frame

    async def send(self, packets: list[Any]) -> None:
        """Send packets, of which reports say what the time of the session is now."""
        for packet in packets:
            if isinstance(packet, RtcpSrPacket):
                time = self._timeline.time()
                if time is None or self._origin is None:
                    return  # nothing was sent yet
                packet.sender_info.ntp_timestamp = self._timeline.ntp(time)
                packet.sender_info.rtp_timestamp = (
                    self._origin + round(time * self._rate)
                ) & 0xFFFFFFFF
        await self._send(packets)

    async def handle(self, packet: Any) -> None:
        """Take a packet that the player has sent."""
        self._listener.heard()
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._sender._ssrc and self._sender.kind == "video":
                    self._listener.lost(report.fraction_lost / 256, self._round_trip(report))
        elif isinstance(packet, RtcpPsfbPacket):
            if packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
                self._listener.keyframe_wanted()
            elif packet.fmt == RTCP_PSFB_APP:
                self._take_estimate(packet)
        await self._handle(packet)

    def _round_trip(self, report: Any) -> float | None:
        """Return the seconds from a report of ours to this answer, without those that the player
        kept it (RFC 3550, 6.4.1)."""
        time = self._timeline.time()
        if time is None or not report.lsr:
            return None
        now = self._timeline.ntp(time) >> 16
        units = (now - report.lsr - report.dlsr) & 0xFFFFFFFF
        return units / 65536 if units < 2**31 else 0.0

    def _take_estimate(self, packet: RtcpPsfbPacket) -> None:
        try:
            bitrate, ssrcs = unpack_remb_fci(packet.fci)
        except (ValueError, struct.error):  # something else, or cut
            return
        if self._sender._ssrc in ssrcs:
            self._listener.estimated(bitrate)


def route_full_intra_requests(sender: RTCRtpSender) -> None:
    """Let requests for a keyframe by FIR reach their sender, which they name in their content only
    (RFC 5104, 4.3.1.2). aiortc looks for it in the header."""
    router: Any = sender.transport._rtp_router
    route = router.route_rtcp

    def routed(packet: Any) -> Any:
        found = route(packet)
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_FIR:
            for place in range(0, len(packet.fci) - FIR_BYTES + 1, FIR_BYTES):
                (ssrc,) = struct.unpack_from("!L", packet.fci, place)
                if ssrc in router.senders:
                    found.add(router.senders[ssrc])
        return found

    router.route_rtcp = routed
