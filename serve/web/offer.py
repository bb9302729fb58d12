"""A player's offer: which of its sections are served, and the answer to the others."""

import re
from dataclasses import dataclass
from ipaddress import ip_address

from aiortc import sdp

from ..refused import Refused

MOST_BYTES = 64_000
MOST_SECTIONS = 20
MOST_LINES = 2000
# beginnings of lines, how many there may be, and what they are
MOST = (
    ("a=candidate", 100, "candidates"),
    ("a=rtpmap:", 128 * 2, "codecs"),  # payload types have 7 bits
    ("a=rtcp-fb:*", 40, "lines a=rtcp-fb:*"),  # each is for all codecs
)
LEAST_PORT = 1024  # of candidates: below are services, never browsers
CODECS = {"video": ("video/h264", "H.264"), "audio": ("audio/opus", "Opus")}
_LINE = re.compile(r"m=([a-z]+) ([0-9]{1,5}) ([A-Z/]+) (.+)")
# RFC 8839, 5.4; all that a candidate is sent has the first one in it
_UFRAG, _PASSWORD = re.compile(r"[A-Za-z0-9+/]{4,256}"), re.compile(r"[A-Za-z0-9+/]{22,256}")


@dataclass(frozen=True)
class Section:
    """A section of an offer, for one stream.

    Attributes:
        kind: "audio", "video" or something else.
        mid: its name; None if it has none.
        served: whether it is answered with a stream.
        lines: all of it.
    """

    kind: str
    mid: str | None
    served: bool
    lines: list[str]


class Offer:
    """An offer in which a player wants to get picture, sound or both.

    Served are the first section of pictures and the first one of sound that receive something. The
    others, such as data channels, are rejected, as RFC 8829 says: with port 0.

    Attributes:
        kinds: of the served streams.
        text: the offer without its other sections.

    Raises:
        Refused: it is no offer, wants nothing that there is, or has no codec that there is.
    """

    def __init__(self, text: str):
        if len(text) > MOST_BYTES:
            raise _bad(f"{len(text)} characters; expected at most {MOST_BYTES}")
        lines = text.splitlines()
        if not lines or not lines[0].startswith("v=0"):
            raise _bad("no line v=0; expected an offer in SDP")
        if len(lines) > MOST_LINES:
            raise _bad(f"{len(lines)} lines; expected at most {MOST_LINES}")
        for begin, most, what in MOST:  # aiortc's time is the product of the last two
            if sum(line.startswith(begin) for line in lines) > most:
                raise _bad(f"more than {most} {what}")
        lines = [line for line in lines if not line.startswith("a=candidate") or _usable(line)]
        starts = [n for n, line in enumerate(lines) if line.startswith("m=")]
        if not 0 < len(starts) <= MOST_SECTIONS:
            raise _bad(f"{len(starts)} sections; expected 1 to {MOST_SECTIONS}")
        self._sections: list[Section] = []
        self.kinds: list[str] = []
        for first, last in zip(starts, [*starts[1:], len(lines)], strict=True):
            self._add(lines[first:last], lines[: starts[0]])
        if not self.kinds:
            raise _bad("no section that receives video or audio; expected recvonly or sendrecv")
        served = [section for section in self._sections if section.served]
        mids = {section.mid for section in served}
        head = [_only(line, mids) for line in lines[: starts[0]]]
        body = [line for section in served for line in section.lines]
        self.text = "\r\n".join([*head, *body]) + "\r\n"
        self._check_codecs()

    def answer(self, text: str) -> str:
        """Put the rejected sections into the answer to the served ones."""
        parts = re.split(r"(?m)^(?=m=)", text)
        head, made = parts[0], iter(parts[1:])
        return head + "".join(
            next(made) if section.served else _rejected(section) for section in self._sections
        )

    def _add(self, lines: list[str], head: list[str]) -> None:
        match = _LINE.fullmatch(lines[0].strip())
        if match is None:
            raise _bad("a line m= that cannot be read")
        kind, port = match[1], int(match[2])
        attributes = {line.strip() for line in lines} | {line.strip() for line in head}
        mid = next((line[6:].strip() for line in lines if line.startswith("a=mid:")), None)
        receives = not {"a=sendonly", "a=inactive"} & attributes
        there = port != 0 or "a=bundle-only" in attributes
        served = kind in CODECS and kind not in self.kinds and receives and there
        if served:
            self.kinds.append(kind)
        self._sections.append(Section(kind, mid, served, lines))

    def _check_codecs(self) -> None:
        try:
            described = sdp.SessionDescription.parse(self.text)
        except Exception:  # of many kinds, as aiortc expects an offer that is right
            raise _bad("a line that cannot be read") from None
        for media in described.media:
            wanted, name = CODECS[media.kind]
            if not any(codec.mimeType.lower() == wanted for codec in media.rtp.codecs):
                raise without(name)
            if media.dtls is None or not media.dtls.fingerprints:
                raise _bad("no fingerprint; expected one, for DTLS")
            ice = media.ice
            if not (
                ice is not None
                and _UFRAG.fullmatch(ice.usernameFragment or "")
                and _PASSWORD.fullmatch(ice.password or "")
            ):
                raise _bad("no ice-ufrag or ice-pwd as in RFC 8839; expected both")


def without(codecs: str) -> Refused:
    """Return what to tell a player that can play nothing of what there is."""
    return Refused(
        406,
        f"the offer has no {codecs} that can be sent; expected video in H.264 (baseline profile, "
        "packetization-mode 1) and audio in Opus",
    )


def _bad(line: str) -> Refused:
    return Refused(400, f"the offer has {line}")


def _usable(line: str) -> bool:
    """Whether a candidate may be sent to: a browser's own address, or what stands for it.

    An offer names the addresses to which the server sends requests, whoever is there.
    """
    parts = line.strip().removeprefix("a=candidate:").split()
    if len(parts) < 8 or parts[1] != "1" or parts[2].lower() != "udp":
        return False
    host, port = parts[4], parts[5]
    if not (port.isascii() and port.isdecimal() and LEAST_PORT <= int(port[:6]) < 1 << 16):
        return False
    if host.lower().endswith(".local"):  # hidden by the browser
        return True
    try:
        address = ip_address(host)
    except ValueError:  # of names, no other is looked up
        return False
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


def _only(line: str, mids: set[str | None]) -> str:
    """Leave the served sections in the line that bundles sections."""
    if not line.startswith("a=group:BUNDLE"):
        return line
    return " ".join(["a=group:BUNDLE", *(mid for mid in line.split()[1:] if mid in mids)])


def _rejected(section: Section) -> str:
    match = _LINE.fullmatch(section.lines[0].strip())
    assert match is not None
    lines = [f"m={match[1]} 0 {match[3]} {match[4]}", "c=IN IP4 0.0.0.0", "a=inactive"]
    if section.mid is not None:
        lines.append(f"a=mid:{section.mid}")
    return "\r\n".join(lines) + "\r\n"
