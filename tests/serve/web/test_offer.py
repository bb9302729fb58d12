"""Offers that are no offers, and how the bitrate follows reports."""

import asyncio

import pytest
from aiortc import RTCPeerConnection, sdp
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.refused import Refused
from serve.web.congestion import LEAST, UNPROVEN, Congestion
from serve.web.offer import Offer


def of_a_player(*kinds: str) -> str:
    async def made():
        connection = RTCPeerConnection()
        for kind in kinds:
            connection.addTransceiver(kind, "recvonly")
        offer = await connection.createOffer()
        await connection.close()
        return offer.sdp

    return asyncio.run(made())


OFFER = of_a_player("audio", "video", "audio")


def test_an_offer_and_its_answer():
    offer = Offer(OFFER)
    assert offer.kinds == ["audio", "video"]
    assert [media.kind for media in sdp.SessionDescription.parse(offer.text).media] == offer.kinds
    answer = offer.answer("v=0\r\ns=-\r\nm=audio 5 A b\r\na=x\r\nm=video 6 A b\r\na=y\r\n")
    parts = answer.split("m=")
    assert parts[0] == "v=0\r\ns=-\r\n" and parts[1:3] == [
        "audio 5 A b\r\na=x\r\n",
        "video 6 A b\r\na=y\r\n",
    ]
    assert parts[3].startswith("audio 0 UDP/TLS/RTP/SAVPF ") and "a=mid:2\r\n" in parts[3]


lines = OFFER.splitlines()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(lines) - 1),
            st.sampled_from(["drop", "double", "cut", "swap", "junk"]),
            st.text(max_size=20),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_spoilt_offers_are_refused_in_a_line_or_taken(changes):
    """Never another error, and what is taken can be parsed."""
    spoilt = list(lines)
    for place, how, text in changes:
        place = min(place, len(spoilt) - 1)
        line = spoilt[place]
        match how:
            case "drop":
                del spoilt[place]
            case "double":
                spoilt.insert(place, line)
            case "cut":
                spoilt[place] = line[: len(line) // 2]
            case "swap":
                spoilt[place], spoilt[0] = spoilt[0], line
            case "junk":
                spoilt[place] = line[:2] + text
    try:
        offer = Offer("\r\n".join(spoilt) + "\r\n")
    except Refused as refused:
        assert refused.status in (400, 406) and "\n" not in refused.line
    else:
        assert sdp.SessionDescription.parse(offer.text).media


@pytest.mark.parametrize(
    "text", ["", "x", "v=0", "v=0\r\nm=", "\0" * 70_000, "v=0\n" + "m=audio 9 A 0\n" * 50]
)
def test_junk(text):
    with pytest.raises(Refused) as caught:
        Offer(text)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("a=candidate:1 1 udp 1 10.0.0.1 5000 typ host\r\n" * 101, "more than 100 candidates"),
        ("a=rtpmap:99 H264/90000\r\n" * 300, "more than 256 codecs"),
        ("a=rtcp-fb:* nack\r\n" * 41, "more than 40 lines a=rtcp-fb:*"),
        ("a=x\r\n" * 2000, "lines; expected at most 2000"),
        ("a=ice-ufrag:" + "x" * 257 + "\r\n", "no ice-ufrag or ice-pwd"),
        ("a=ice-ufrag:<x><y>\r\n", "no ice-ufrag or ice-pwd"),
        ("a=ice-pwd:short\r\n", "no ice-ufrag or ice-pwd"),
        ("m=video " + "9" * 5000 + " UDP/TLS/RTP/SAVPF 96\r\n", "a line m= that cannot be read"),
    ],
)
def test_too_much(more, why):
    """What would take the event loop's time, or be sent to others."""
    with pytest.raises(Refused) as caught:
        Offer(of_a_player("video") + more)
    assert caught.value.status == 400 and why in caught.value.line


def test_candidates_that_are_no_browsers_are_left_out():
    """The server would send requests to services of its own machine and network."""
    line = "a=candidate:1 {} {} 1 {} {} typ host\r\n"
    good = [("1", "udp", "10.0.0.1", 1024), ("1", "UDP", "fd00::2", 65535)]
    good += [("1", "udp", "8a6f.local", 5000), ("1", "udp", "198.51.100.7", 5000)]
    hosts = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "fe80::1"]
    hosts += ["224.0.0.251", "255.255.255.255", "ff02::fb", "localhost", "example.org", "10.1"]
    bad = [("1", "udp", host, 5000) for host in hosts]
    bad += [("1", "udp", "10.0.0.1", port) for port in (0, 53, 1023, 65536, "9" * 5000, "x")]
    bad += [("1", "tcp", "10.0.0.1", 5000), ("2", "udp", "10.0.0.1", 5000)]
    offer = of_a_player("video") + "".join(line.format(*one) for one in [*bad, *good])
    (media,) = sdp.SessionDescription.parse(Offer(offer).text).media
    assert [(c.ip, c.port) for c in media.ice_candidates] == [(ip, port) for _, _, ip, port in good]


# --- congestion ----------------------------------------------------------------------------------


def test_congestion_within_its_bounds():
    congestion = Congestion(2_000_000)
    assert congestion.bitrate == 1_500_000
    for _ in range(100):
        congestion.report(1.0)
    assert congestion.bitrate == LEAST
    rises = [congestion.bitrate for _ in range(60) if congestion.report(0.0)]
    assert rises == sorted(rises) and rises[-1] == 2_000_000
    assert not congestion.report(0.05)  # in between nothing changes


def test_estimates_count_when_they_are_confirmed():
    """Alone they do not go far, and clean reports make up for them; with losses or a delay they
    do."""
    for confirm in ({"loss": 0.05}, {"loss": 0.0, "round_trip": 0.4}):
        congestion = Congestion(2_000_000)
        congestion.report(0.0, 0.02)
        assert congestion.estimate(100_000) and congestion.bitrate == UNPROVEN
        assert not congestion.estimate(105_000)
        for _ in range(5):
            congestion.report(0.0, 0.03)
        assert UNPROVEN < congestion.bitrate < 1_000_000
        congestion.report(**confirm)
        assert congestion.bitrate == LEAST
        assert congestion.estimate(10**12) and congestion.bitrate > 1_400_000
        assert congestion.estimate(764_000) and congestion.bitrate == 700_000


@given(st.lists(st.one_of(st.floats(0, 1), st.integers(0, 2**80))))
def test_congestion_of_anything(reports):
    congestion = Congestion(900_000)
    for report in reports:
        if isinstance(report, float):
            congestion.report(report)
        else:
            congestion.estimate(report)
        assert LEAST <= congestion.bitrate <= 900_000
