"""Fields that are cut out of a message are those that protobuf reads."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.rpc import wire
from serve.rpc.composite_request import MalformedError, parse
from serve.rpc.protos.monolithic_pb2 import CompositeBatchRequest
from serve.rpc.wire import cut_bytes
from tests.serve.rpc.encoding import content, number, real, varint

NAMES = "visual_frames", "raw_audio", "audio_features"

piece = st.one_of(
    st.builds(number, st.integers(1, 9), st.integers(-(2**63), 2**64 - 1)),
    st.builds(content, st.integers(1, 20), st.binary(max_size=300)),
    st.builds(content, st.just(1), st.text(max_size=20).map(str.encode)),
    st.builds(real, st.integers(1, 9), st.floats(width=32)),
    st.builds(lambda field: varint(field << 3 | 1) + b"8 bytes.", st.integers(1, 9)),
    st.builds(lambda n, inner: varint(n << 3 | 3) + inner + varint(n << 3 | 4), st.integers(1, 9), st.builds(number, st.integers(1, 9), st.integers(0, 9))),
    st.just(b"\x80\x00"),  # field 0
    st.just(varint(2 << 3 | 2) + b"\x83\x80\x00abc"),  # a length that is longer than it has to be
    st.binary(max_size=12),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(piece, max_size=8).map(b"".join), st.integers(0, 5))
def test_cut_messages_are_those_that_protobuf_parses(message, less):
    message = message[: len(message) - less]
    try:
        expected = CompositeBatchRequest.FromString(message)
    except DecodeError:
        with pytest.raises(MalformedError):
            parse(message)
        return
    request, found = parse(message)
    assert [bytes(view) for view in found] == [getattr(expected, name) for name in NAMES]
    for name in NAMES:
        request.ClearField(name)
        expected.ClearField(name)
    request.DiscardUnknownFields()
    expected.DiscardUnknownFields()
    assert request == expected


def test_very_many_fields_are_left_to_the_parser(monkeypatch):
    """They would keep the event loop: 25 million of them are 50 MB."""
    read, numbers = wire._varint, []
    monkeypatch.setattr(wire, "_varint", lambda *place: numbers.append(place) or read(*place))
    _, found = parse(content(3, b"sound") + number(9, 1) * 100_000 + content(2, b"face"))
    assert [bytes(view) for view in found] == [b"face", b"sound", b""]
    assert len(numbers) <= 2 * wire.MOST_FIELDS


def test_large_fields_are_not_copied():
    face = bytes(range(256)) * 1000
    message = content(1, b"anna") + content(2, b"old") + content(2, face) + number(5, 1)
    rest, found = cut_bytes(message, (2, 3))
    assert rest == content(1, b"anna") + number(5, 1)
    assert found.keys() == {2} and found[2].obj is message and found[2] == face


@pytest.mark.parametrize(
    "message",
    [
        content(2, b"abc")[:-1],
        content(2, b"abc") + b"\x0d\0\0\0",
        content(2, b"abc") + b"\x80" * 11 + b"\0",
        content(2, b"abc") + b"\x0b\x0c",
        content(2, b"abc") + b"\x0e",
        content(2, b"abc") + varint(2 << 3 | 2) + varint(2**63),
        content(2, b"abc") + b"\x80",
    ],
)
def test_what_is_damaged_comes_back_whole(message):
    assert cut_bytes(message, (2,)) == (message, {})


def test_numbers_that_look_like_fields_are_numbers():
    """The last four of eight bytes, or all four, would be the field 2."""
    decoy = content(2, b"ab")
    message = varint(9 << 3 | 1) + b"\x08\x01\x08\x01" + decoy + varint(9 << 3 | 5) + decoy
    assert cut_bytes(message + content(2, b"real"), (2,)) == (message, {2: b"real"})
    assert cut_bytes(message, (2,)) == (message, {})
