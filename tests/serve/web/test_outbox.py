"""What waits for a WebSocket's client: its order, and what is dropped of it."""

import asyncio
import json
import struct
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from engine.live import Counts
from serve.web.delay import Delay
from serve.web.outbox import Outbox, Unread
from serve.web.session import EncodedPiece

FPS = Fraction(25)


def piece(number: int, kind: str = "", *, speaking=False, end=False) -> EncodedPiece:
    """`kind`: "" for no picture, "p", or "key"."""
    sound = np.full((1, 640), number, np.int16)
    return EncodedPiece(
        number, number / FPS, kind.encode(), kind == "key", None, sound, speaking, end
    )


class Socket:
    """Keeps what it is sent: events, and of pieces their numbers and pictures."""

    def __init__(self):
        self.sent, self.open = [], asyncio.Event()

    async def send(self, message) -> None:
        await self.open.wait()
        if "text" in message:
            event = json.loads(message["text"])
            self.sent.append(event["type"])
            return
        size = struct.unpack_from("<I", message["bytes"])[0]
        header = json.loads(message["bytes"][4 : 4 + size])
        picture = message["bytes"][4 + size :][: header["picture"]].decode()
        self.sent.append((header["number"], picture))


def outbox(picture: str = "h264", clock: str = "wall"):
    """An outbox whose socket sends nothing before it is opened."""
    session = SimpleNamespace(
        fps=FPS, clock=clock, counts=Counts(), fault=None, peer=None, keyframes=0
    )

    def wanted():
        session.keyframes += 1

    session.request_keyframe = wanted
    socket = Socket()
    sound = SimpleNamespace(bytes=lambda samples: samples.tobytes())
    return Outbox(socket, session, SimpleNamespace(), picture, sound), socket, session


async def all_sent(box: Outbox, socket: Socket) -> list:
    socket.open.set()
    box.end(None)
    assert await box.run() is None
    return socket.sent


@pytest.mark.parametrize("given", [0, 3, 5])
def test_an_interruption_is_told_between_its_pieces(given):
    """After those that were handed out before it; this client may not have got all of them."""

    async def main():
        box, socket, _ = outbox()
        for number in range(given):
            box.put(piece(number))
        box.interrupted(Fraction(5, 25))
        for number in range(given or 5, 7):
            box.put(piece(number))
        return await all_sent(box, socket)

    sent = asyncio.run(main())
    before, after = [(n, "") for n in range(5)], [(5, ""), (6, "")]
    assert sent == [*(before if given else []), "interrupted", *after]


def test_an_interruption_before_the_first_piece_is_told_at_once():
    async def main():
        box, socket, _ = outbox()
        box.interrupted(Fraction(0))
        return await all_sent(box, socket)

    assert asyncio.run(main()) == ["interrupted"]


def test_a_slow_client_gets_pictures_again_from_a_keyframe_on():
    """Those of H.264 before it could not be decoded. All sound comes."""

    async def main():
        box, socket, session = outbox()
        for number in range(8):
            box.put(piece(number, "p"))
        assert session.keyframes == 0
        box.put(piece(8, "p"))  # too many wait: all are dropped
        assert session.keyframes == 1
        for number, kind in ((9, "p"), (10, ""), (11, "p"), (12, "key"), (13, "p")):
            box.put(piece(number, kind))
        return await all_sent(box, socket), session.keyframes

    sent, keyframes = asyncio.run(main())
    pieces = [one for one in sent if isinstance(one, tuple)]
    assert pieces == [(n, "") for n in range(12)] + [(12, "key"), (13, "p")]
    assert keyframes == 1 and "skipped" in sent


def test_a_client_as_fast_as_it_takes_loses_nothing():
    async def main():
        box, socket, _ = outbox(clock="taken")
        for number in range(20):
            box.put(piece(number, "p"))
        return await all_sent(box, socket)

    assert asyncio.run(main()) == [(n, "p") for n in range(20)]


@pytest.mark.parametrize("what", ["events", "pieces"])
def test_a_client_that_reads_nothing_is_cut_off(what):
    """Before what waits for it takes much memory: 3000 messages, or 10 s of pieces."""

    async def main():
        box, socket, _ = outbox("none" if what == "events" else "h264")
        add = (
            (lambda n: box.tell({"type": "x"})) if what == "events" else lambda n: box.put(piece(n))
        )
        most = 3000 if what == "events" else 250
        for number in range(most):
            add(number)
        assert not box._unread
        for number in range(most, most + 100):
            add(number)
        socket.open.set()
        with pytest.raises(Unread):
            await box.run()
        return len(box._waiting)

    assert asyncio.run(main()) <= 3001


def test_room_is_where_one_piece_waits():
    async def main():
        box, socket, _ = outbox(clock="taken")
        await box.room()
        box.put(piece(0))
        await box.room()
        box.put(piece(1))
        room = asyncio.ensure_future(box.room())
        await asyncio.sleep(0)
        assert not room.done()
        running = asyncio.create_task(box.run())  # sends the first one
        await asyncio.wait_for(room, 30)
        box.put(piece(2))
        room = asyncio.ensure_future(box.room())
        await asyncio.sleep(0)
        assert not room.done()
        box.end(None)  # nobody takes it any more
        await asyncio.wait_for(room, 30)
        socket.open.set()
        await running

    asyncio.run(main())


def test_the_delay_is_that_of_the_speech_after_an_interruption():
    """Ends of utterances that are not heard do not count either."""
    delay = Delay()

    def speak(count: int, begin: float) -> None:
        for number in range(count):
            delay.taken(piece(number, speaking=True, end=number == count - 1), begin + number / 25)

    delay.pushed(6400, 1.0)
    delay.flushed()
    delay.taken(piece(0, speaking=True), 1.5)
    assert delay.milliseconds == 500
    delay.interrupted()
    delay.taken(piece(1, speaking=True), 1.6)  # on its way, with the fade
    assert delay.milliseconds == 500
    for begin, later in ((3.0, 0.2), (5.0, 0.3)):
        delay.pushed(640, begin)
        delay.pushed(640, begin + 0.04)
        delay.flushed()
        speak(2, begin + later)
        assert delay.milliseconds == 1000 * later
