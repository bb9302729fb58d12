"""LiveTalking's routes, as a client that was written from their table finds them.

Its front ends take `sessionid` from the answer to the offer, and send it back as a number or as
text. They read `code` and `data`, whatever the status is.
"""

import asyncio
import io
import wave

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from serve.web import bodies, livetalking
from tests.engine.live.stage import voice
from tests.serve.web.site import SECONDS, TOKEN, client, http, run, serving

pytestmark = pytest.mark.usefixtures("left_soon")

OK = {"code": 0, "msg": "ok"}


class Spoken:
    """A voice that says a text's letters as samples."""

    max_characters = 100

    def __init__(self):
        self.texts = []

    async def speak(self, text, sample_rate):
        self.texts.append(text)
        yield np.full(sample_rate // 2, ord(text[0]) / 1000, np.float32)

    async def close(self):
        pass


async def post(asked, path: str, **body) -> dict:
    answer = await asked.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


async def until_speaking(asked, session, wanted: bool) -> None:
    async with asyncio.timeout(SECONDS):
        while (await post(asked, "/is_speaking", sessionid=session))["data"] is not wanted:
            await asyncio.sleep(0.02)


def test_a_front_end(live, tmp_path):
    """Every request of it, in the order of a visit."""
    said = Spoken()

    async def main():
        async with (
            serving(live, voice=said, web={"recordings": tmp_path}) as site,
            http(site) as asked,
        ):
            player = RTCPeerConnection()
            player.addTransceiver("video", direction="recvonly")
            player.addTransceiver("audio", direction="recvonly")
            tracks = {}
            player.on("track", lambda track: tracks.setdefault(track.kind, track))
            await player.setLocalDescription(await player.createOffer())
            local = player.localDescription
            answer = await post(asked, "/offer", sdp=local.sdp, type=local.type)
            assert set(answer) == {"sdp", "type", "sessionid"} and answer["type"] == "answer"
            session = answer["sessionid"]
            assert isinstance(session, int) and 1 <= session < 2**53
            await player.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            async with asyncio.timeout(SECONDS):
                frame = await tracks["video"].recv()
                sound = await tracks["audio"].recv()
            assert (frame.width, frame.height) == (80, 96) and sound.sample_rate == 48000

            text = str(session)  # as the newer ones send it
            assert await post(asked, "/is_speaking", sessionid=session) == OK | {"data": False}
            assert await post(asked, "/human", sessionid=text, text="abc", type="echo") == OK
            assert await post(asked, "/record", sessionid=text, type="start_record") == OK
            await until_speaking(asked, session, True)
            again = {"sessionid": session, "text": "xyz", "type": "echo", "interrupt": True}
            assert await post(asked, "/human", **again) == OK
            assert await post(asked, "/interrupt_talk", sessionid=text) == OK
            await until_speaking(asked, text, False)
            file = {"file": ("speech.wav", wav(8000 * np.ones(8000), 16000), "audio/wav")}
            sent = await asked.post("/humanaudio", files=file, data={"sessionid": text})
            assert sent.status_code == 200 and sent.json() == OK
            await until_speaking(asked, text, True)
            assert await post(asked, "/set_audiotype", sessionid=text, audiotype=2) == OK
            await until_speaking(asked, text, False)
            assert await post(asked, "/record", sessionid=text, type="end_record") == OK
            film = await asked.get(f"/record/{text}")
            assert film.status_code == 200 and film.headers["content-type"] == "video/mp4"
            with av.open(io.BytesIO(film.content)) as container:
                assert sum(1 for _ in container.decode(video=0)) > 12
            await player.close()

    run(main())
    assert said.texts[0] == "abc"


def test_a_text_may_interrupt_the_one_before(live):
    """Without that it waits."""

    class Long(Spoken):
        async def speak(self, text, sample_rate):
            seconds = 0.6 if text == "c" else 20  # it is interrupted before
            yield np.full(int(seconds * sample_rate), ord(text[0]) / 1000, np.float32)

    async def main():
        async with (
            serving(live, voice=Long()) as site,
            http(site) as asked,
            client(site, sample_rate=16000, sample_format="f32", picture="jpeg") as talk,
        ):
            id = talk.opened["session"]
            for text, interrupt in (("a", False), ("b", False), ("c", True)):
                said = {"sessionid": id, "type": "echo", "text": text, "interrupt": interrupt}
                assert await post(asked, "/human", **said) == OK
                if text == "a":
                    await talk.event("speaking")
            return [m for m in await talk.all() if not isinstance(m, dict)]

    levels = [round(1000 * np.frombuffer(p.sound, np.float32)[-1]) for p in run(main())]
    assert 0 < levels.count(ord("a")) < 400 and levels.count(ord("b")) == 0
    assert levels.count(ord("c")) >= 14


def test_a_file_is_heard_as_it_is(live):
    """At the session's rate, in the session's channels, and whichever part of the form is first."""
    samples = np.rint(9000 * voice(1, 24000))

    async def main():
        async with (
            serving(live) as site,
            http(site) as asked,
            client(
                site, sample_rate=48000, channels=2, sample_format="f32", clock="taken",
                picture="jpeg",
            ) as talk,
        ):  # fmt: skip
            file = {"file": ("x", wav(samples, 24000))}
            id = str(talk.opened["session"])
            assert (
                await asked.post("/humanaudio", files=file, data={"sessionid": id})
            ).json() == OK
            first = [m for m in await talk.all() if not isinstance(m, dict) and m.speaking]
            parts = [("file", ("x", wav(samples, 24000))), ("sessionid", (None, id))]
            assert (await asked.post("/humanaudio", files=parts)).json() == OK
            return first, [m for m in await talk.all() if not isinstance(m, dict) and m.speaking]

    resampler = av.AudioResampler("fltp", "mono", 48000)
    frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], "s16", "mono")
    frame.sample_rate = 24000
    made = resampler.resample(frame) + resampler.resample(None)
    expected = np.concatenate([one.to_ndarray()[0] for one in made])
    for got in run(main()):
        sound = np.concatenate(
            [np.frombuffer(p.sound, np.float32).reshape(-1, 2).T for p in got], 1
        )
        left, right = sound[:, : len(expected)]
        assert np.array_equal(left, right) and len(left) == len(expected)
        assert np.abs(left - expected).max() < 2e-4


MISTAKES = [
    ("/human", {"type": "echo", "text": "x"}, "there is no session None"),
    ("/human", {"sessionid": 5, "type": "echo", "text": "x"}, "there is no session 5"),
    ("/human", {"sessionid": "", "type": "echo", "text": "x"}, "there is no session ''"),
    ("/human", {"sessionid": True, "type": "echo"}, "there is no session True"),
    ("/human", {"sessionid": [1], "type": "echo"}, "there is no session [1]"),
    ("/human", {"sessionid": "9" * 5000, "type": "echo"}, "there is no session '999"),
    ("/human", {"sessionid": "²", "type": "echo"}, "there is no session '²'"),
    ("/human", {"sessionid": 1.5, "type": "echo"}, "there is no session 1.5"),
    ("/human", {"sessionid": "ID", "type": "chat", "text": "x"}, "there is no language model here"),
    ("/human", {"sessionid": "ID", "type": "sing", "text": "x"}, "type is 'sing'; expected 'echo'"),
    ("/human", {"sessionid": "ID", "text": "x"}, "type is None; expected 'echo'"),
    ("/human", {"sessionid": "ID", "type": "echo"}, "text is None; expected text"),
    ("/human", {"sessionid": "ID", "type": "echo", "text": 7}, "text is 7; expected text"),
    ("/human", {"sessionid": "ID", "type": "echo", "text": "x" * 101}, "the text has 101 characters"),
    ("/interrupt_talk", {}, "there is no session None"),
    ("/is_speaking", {"sessionid": 0}, "there is no session 0"),
    ("/set_audiotype", {"sessionid": -1}, "there is no session -1"),
    ("/record", {"sessionid": "ID", "type": "pause"}, "type is 'pause'; expected 'start_record'"),
    ("/record", {"sessionid": "ID", "type": "end_record"}, "the session is not being recorded"),
    ("/record", {"sessionid": "ID", "type": "start_record"}, "this server records nothing"),
    ("/offer", {}, "sdp is None; expected text"),
    ("/offer", {"sdp": "v=0", "type": "answer"}, "type is 'answer'; expected 'offer'"),
    ("/offer", {"sdp": "v=0", "type": "offer", "avatar": "nobody"}, "model 'nobody' not configured"),
    ("/offer", {"sdp": "v=0", "type": "offer", "avatar": 7}, "avatar is 7; expected a name"),
    ("/offer", {"sdp": "v=0", "type": "offer"}, ""),
]  # fmt: skip


def test_every_failure_has_status_200_and_code_minus_1(live):
    async def main():
        async with (
            serving(live, voice=Spoken(), limits={"max_upload_mb": 0.1}) as site,
            http(site) as asked,
            client(site) as talk,
        ):
            id = str(talk.opened["session"])

            def check(answer, line):
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "application/json"
                assert set(answer.json()) == {"code", "msg"} and answer.json()["code"] == -1
                assert answer.json()["msg"].startswith(line), (answer.json(), line)

            for path, body, line in MISTAKES:
                body = body | ({"sessionid": id} if body.get("sessionid") == "ID" else {})
                check(await asked.post(path, json=body), line)
            for path in ("/offer", "/human", "/interrupt_talk", "/is_speaking", "/record"):
                for content in (b"", b"no JSON", b"[" * 90_000, b"\xff\xfe{}", b'{"a":1e999}x'):
                    check(await asked.post(path, content=content), "the body is no JSON")
                check(
                    await asked.post(path, content=b"[1, 2]"), "the body is [1, 2]; expected a JSON"
                )
                check(
                    await asked.post(path, content=bytes(100_001)), "the body is larger than 100000"
                )
                check(await asked.post(path, content=parts(3)), "the body is larger than 100000")
            multipart = "multipart/form-data; boundary=x"
            for content, kind, line in [
                (b"{}", "application/json", "Content-Type is 'application/json'; expected multipart"),
                (b"", "multipart/form-data", "the form cannot be read"),
                (b"no form", multipart, "the form cannot be read"),
                (b"--x\r\n\r\n\r\n--x--", multipart, "the form cannot be read"),
                (form("sessionid", b"7"), multipart, "there is no session '7'"),
                (form("sessionid", id.encode()), multipart, "the form has no file"),
                (form("sessionid", bytes(20_000)), multipart, "the form cannot be read"),
                (b"".join(form(str(n), b"7")[:-7] for n in range(30)) + b"--x--", multipart, "the form cannot be"),
                (bytes(200_000), multipart, "the body is larger than 100000 bytes"),
            ]:  # fmt: skip
                headers = {"Content-Type": kind}
                check(await asked.post("/humanaudio", content=content, headers=headers), line)
            for file in (b"", b"no sound", wav(np.zeros(0), 16000)):
                answer = await asked.post(
                    "/humanaudio", files={"file": ("../../x", file)}, data={"sessionid": id}
                )
                check(answer, "file")
            assert (await asked.get("/human")).status_code == 405
            for path in (f"/record/{id}", "/record/x", "/record/" + "9" * 30):
                assert (await asked.get(path)).status_code == 404

    run(main())


def test_a_file_for_which_a_session_has_no_room_is_not_converted(live, monkeypatch):
    """At the session's rate it may be hundreds of times as large as it is."""
    monkeypatch.setattr(livetalking, "_samples", None)
    file = {"file": ("x", wav(np.full(61 * 8000, 900), 8000))}

    async def main():
        async with (
            serving(live) as site,
            http(site) as asked,
            client(site, sample_rate=192000, channels=2) as talk,
        ):
            id = str(talk.opened["session"])
            answer = await asked.post("/humanaudio", files=file, data={"sessionid": id})
            assert "longer than" in answer.json()["msg"] and " 60 s" in answer.json()["msg"], (
                answer.json()
            )

    run(main())


async def parts(count: int):
    for _ in range(count):
        yield bytes(50_000)


def form(name: str, value: bytes) -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return head + value + b"\r\n--x--\r\n"


def test_tokens_and_origins(live):
    async def main():
        async with (
            serving(live, server={"tokens": (TOKEN,)}, web={"origins": ("https://page.example",)}) as site,
            http(site) as asked,
        ):  # fmt: skip
            answer = await asked.post("/is_speaking", json={"sessionid": 1})
            assert (answer.status_code, answer.json()["code"]) == (200, -1)
            assert answer.json()["msg"].startswith("the request has no token")
            known = {"Authorization": f"Bearer {TOKEN}"}
            answer = await asked.post("/is_speaking", json={"sessionid": 1}, headers=known)
            assert answer.json()["msg"] == "there is no session 1; open one before"
            other = known | {"Origin": "https://other.example"}
            answer = await asked.post("/is_speaking", json={"sessionid": 1}, headers=other)
            assert "is not one of web.origins" in answer.json()["msg"]
            assert "access-control-allow-origin" not in answer.headers
            page = known | {"Origin": "https://page.example"}
            answer = await asked.post("/is_speaking", json={"sessionid": 1}, headers=page)
            assert answer.json()["msg"] == "there is no session 1; open one before"
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
            preflight = {
                "Origin": "https://page.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            }
            answer = await asked.options("/human", headers=preflight)
            assert (
                answer.status_code == 200
                and "POST" in answer.headers["access-control-allow-methods"]
            )
            answer = await asked.options(
                "/human", headers=preflight | {"Origin": "https://o.example"}
            )
            assert answer.status_code == 400
            for path in ("/record/1", "/v1/avatars"):
                assert (await asked.get(path)).status_code == 401

    run(main())


def test_avatars(live, tmp_path):
    async def main():
        ice = {"urls": ("turn:turn.example.org",), "username": "anna", "credential": "x"}
        web = {"recordings": tmp_path, "ice_servers": (ice, {"urls": ("stun:h",)})}
        async with serving(live, voice=Spoken(), web=web) as site, http(site) as asked:
            site.registry.others = ("ben",)
            async with client(site):
                return (await asked.get("/v1/avatars")).json()

    from engine import __version__

    answer = run(main())
    assert answer["avatars"][0].pop("capacity") > 0
    assert answer == {
        "avatars": [
            {"name": "tiny", "loaded": True, "width": 80, "height": 96, "fps": 25.0, "sessions": 1},
            {
                "name": "ben", "loaded": False, "width": None, "height": None, "fps": None,
                "capacity": None, "sessions": 0,
            },
        ],
        "voice": True,
        "recording": True,
        "ice_servers": [
            {"urls": ["turn:turn.example.org"], "username": "anna", "credential": "x"},
            {"urls": ["stun:h"]},
        ],
        "version": __version__,
    }  # fmt: skip


def test_slow_bodies_are_cut_off(live, monkeypatch):
    """Also one that goes on and on, and one of a form."""
    monkeypatch.setattr(bodies, "PART_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "TEXT_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "UPLOAD_SECONDS", 0.6)

    async def slow(site, path: str, kind: str, pause: float) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 5000\r\n\r\n"
        writer.write(head.encode() + (b"--x\r\nA: " if path == "/humanaudio" else b"{"))
        reading = asyncio.create_task(reader.readuntil(b"slowly"))
        while not reading.done():
            writer.write(b" ")
            await asyncio.wait([reading], timeout=pause)
        writer.transport.abort()
        return await reading

    async def main():
        async with serving(live) as site:
            form = "multipart/form-data; boundary=x"
            answers = await asyncio.gather(
                slow(site, "/human", "application/json", 0.05),
                slow(site, "/human", "application/json", 9),
                slow(site, "/humanaudio", form, 0.05),
                slow(site, "/humanaudio", form, 9),
            )
            for answer in answers:
                assert b"the body came too slowly" in answer

    run(main())
