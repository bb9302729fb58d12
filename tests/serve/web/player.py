"""A player: aiortc's own client, of which the packets are kept as they come."""

import asyncio
from typing import Any

import av
import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs import depayload
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import (
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpSrPacket,
    pack_remb_fci,
)

from tests.serve.web.stage import until


class Player:
    """Watches a session.

    Attributes:
        packets: kind -> RTP packets.
        reports: kind -> sender reports.
    """

    def __init__(self, *kinds: str):
        self.kinds = kinds or ("video", "audio")
        self.connection = RTCPeerConnection(RTCConfiguration([]))
        self.packets: dict[str, list] = {"video": [], "audio": []}
        self.reports: dict[str, list] = {"video": [], "audio": []}
        self.location = ""
        for kind in self.kinds:
            receiver: Any = self.connection.addTransceiver(kind, "recvonly").receiver
            self._keep(receiver, kind)
        self._tasks = set()
        self.connection.on("track", self._read)

    def _keep(self, receiver: Any, kind: str) -> None:
        take, hear = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

        async def rtp(packet, arrival_time_ms):
            self.packets[kind].append(packet)
            await take(packet, arrival_time_ms)

        async def rtcp(packet):
            if isinstance(packet, RtcpSrPacket):
                self.reports[kind].append(packet.sender_info)
            await hear(packet)

        receiver._handle_rtp_packet, receiver._handle_rtcp_packet = rtp, rtcp

    def _read(self, track) -> None:
        async def read():
            try:
                while True:
                    await track.recv()
            except MediaStreamError:
                pass

        task = asyncio.ensure_future(read())
        self._tasks.add(task)

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def watch(self, http: httpx.AsyncClient, path: str, **options) -> httpx.Response:
        """Offer at an address; if that is taken, wait for the connection."""
        headers = {"Content-Type": "application/sdp"} | options.pop("headers", {})
        answer = await http.post(path, content=await self.offer(), headers=headers, **options)
        if answer.status_code == 201:
            self.location = answer.headers["Location"]
            await self.take(answer.text)
        return answer

    async def take(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await until(lambda: self.connection.connectionState == "connected")

    async def until(self, kind: str, count: int) -> None:
        """Wait for so many pictures, or packets of sound."""
        await until(lambda: len(self.timestamps(kind)) >= count)

    def timestamps(self, kind: str) -> list[int]:
        """Return the RTP time stamps of all whole pictures, or of all sound."""
        return [
            packet.timestamp for packet in self.packets[kind] if packet.marker or kind == "audio"
        ]

    def access_units(self) -> list[tuple[int, bytes]]:
        """Return the pictures, each with its time stamp."""
        units: dict[int, bytes] = {}
        for packet in self.packets["video"]:
            codec = self.receiver("video")._RTCRtpReceiver__codecs[packet.payload_type]
            units[packet.timestamp] = units.get(packet.timestamp, b"") + depayload(
                codec, packet.payload
            )
        return list(units.items())

    def pictures(self) -> list[tuple[int, np.ndarray]]:
        """Return the decoded pictures, each with its time stamp."""
        codec = av.CodecContext.create("h264", "r")
        found = []
        for timestamp, data in self.access_units():
            for frame in codec.decode(av.Packet(data)):
                found.append((timestamp, frame.to_ndarray(format="rgb24")))
        return found

    def sound(self) -> tuple[int, np.ndarray]:
        """Return the time stamp of the first sample at 48 kHz, and (S,) samples of the first
        channel."""
        codec = av.CodecContext.create("libopus", "r")
        parts = []
        for packet in self.packets["audio"]:
            parts += [f.to_ndarray()[0] for f in codec.decode(av.Packet(packet.payload))]
        samples = np.concatenate(parts)
        channels = codec.layout.nb_channels
        if samples.dtype == np.int16:
            samples = samples.astype(np.float32) / 32768
        return self.packets["audio"][0].timestamp, samples.reshape(-1, channels)[:, 0]

    def keyframes(self) -> list[int]:
        """Return which of the pictures are keyframes."""
        return [n for n, (_, data) in enumerate(self.access_units()) if b"\0\0\0\1\x67" in data]

    # --- reports ---------------------------------------------------------------------------------

    def receiver(self, kind: str) -> Any:
        return next(t.receiver for t in self.connection.getTransceivers() if t.kind == kind)

    async def say(self, *packets: Any) -> None:
        """Send RTCP."""
        transport = self.receiver(self.kinds[0]).transport
        await transport._send_rtp(b"".join(map(bytes, packets)))

    def ssrc(self, kind: str = "video") -> int:
        return self.packets[kind][0].ssrc

    async def ask_for_keyframe(self, *, fir: bool = False) -> None:
        """Send a PLI, or a FIR, which names the sender in its content only."""
        if fir:
            fci = self.ssrc().to_bytes(4, "big") + bytes([1, 0, 0, 0])
            await self.say(RtcpPsfbPacket(fmt=RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=fci))
        else:
            packet = RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=1, media_ssrc=self.ssrc())
            await self.say(packet)

    async def estimate(self, bitrate: int) -> None:
        """Send a REMB."""
        fci = pack_remb_fci(bitrate, [self.ssrc()])
        await self.say(RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=fci))

    async def report_loss(self, share: float) -> None:
        info = RtcpReceiverInfo(
            ssrc=self.ssrc(),
            fraction_lost=round(share * 256),
            packets_lost=0,
            highest_sequence=self.packets["video"][-1].sequence_number,
            jitter=0,
            lsr=0,
            dlsr=0,
        )
        await self.say(RtcpRrPacket(ssrc=1, reports=[info]))

    def say_nothing_more(self) -> None:
        """Be gone, as if the power had failed: nothing is sent or received any more."""
        for transceiver in self.connection.getTransceivers():
            ice = transceiver.receiver.transport.transport._connection
            for protocol in ice._protocols:
                protocol.transport.sendto = lambda *_: None
                protocol.datagram_received = lambda *_: None

    def say_no_reports(self) -> None:
        """Leave only the reports that tests send."""
        for transceiver in self.connection.getTransceivers():

            async def nothing(*_):
                pass

            receiver = transceiver.receiver
            receiver._send_rtcp = receiver._send_rtcp_nack = receiver._send_rtcp_pli = nothing

    async def close(self) -> None:
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
