"""A player's offer: which of its sections are served, and the answer to the others."""

import re
from dataclasses import dataclass
from http import HTTPStatus

from aiortc import sdp

from ..refused import Refused

MOST_BYTES = 64_000
MOST_SECTIONS = 20
MOST_CANDIDATES = 100
CODECS = {"video": ("video/h264", "H.264"), "audio": ("audio/opus", "Opus")}
_LINE = re.compile(r"m=([a-z]+) (\d+) ([A-Z/]+) (.+)")


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
        if sum(line.startswith("a=candidate") for line in lines) > MOST_CANDIDATES:
            raise _bad(f"more than {MOST_CANDIDATES} candidates")
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
            if media.ice is None or not (media.ice.usernameFragment and media.ice.password):
                raise _bad("no ice-ufrag or ice-pwd; expected both")


def without(codecs: str) -> Refused:
    """Return what to tell a player that can play nothing of what there is."""
    return Refused(
        HTTPStatus.NOT_ACCEPTABLE,
        f"the offer has no {codecs} that can be sent; expected video in H.264 (baseline profile, "
        "packetization-mode 1) and audio in Opus",
    )


def _bad(line: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"the offer has {line}")


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
