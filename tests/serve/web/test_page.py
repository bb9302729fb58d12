"""The page in a browser, against a real server: what is seen and heard, and who can use it."""

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve.web import pages
from tests.serve.web import page_checks
from tests.serve.web.browser import (
    CHROMIUM,
    FLAGS,
    INNER,
    SECONDS,
    Running,
    serving,
    until,
    write_avatar,
    write_sound,
)

playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

FOLDER = Path(pages.__file__).parent / "page"
RATE = 48000
PER_FRAME = 3600  # of RTP's clock, at 25 frames a second
VOICE = find_spec("espeakng_loader") is not None
LIVE = "#frame[data-state=live]"
IGNORED = (
    "401",
    "503",
    "ERR_CONNECTION_REFUSED",
)  # answers that tests ask for, which Chromium reports as errors


def noise(seconds: float) -> np.ndarray:
    """Sound as loud as a voice, at 48 kHz."""
    return 0.25 * np.random.default_rng(3).uniform(-1, 1, round(seconds * RATE))


def bursts() -> np.ndarray:
    """4.6 s of noise that comes and goes without a period, as loud as a voice."""
    level = np.repeat([0, 1, 0, 1, 0, 1, 0, 1, 0], [900, 400, 700, 700, 500, 250, 450, 400, 300])
    level = np.repeat(level, RATE // 1000)
    return level * noise(len(level) / RATE)


# --- a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    folder = write_avatar(tmp_path_factory.mktemp("page") / "anna")
    web = {"voice": "espeak" if VOICE else None, "origins": ["http://viseme.test"]}
    with serving(folder, web=web) as running:
        yield running


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "bursts.wav", bursts())


@pytest.fixture(scope="module")
def browser(sound):
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={sound}"]
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page_of(browser, server) -> Iterator[Callable]:
    """Return a function that opens the page; what the console says in the end is a failure."""
    contexts, lines = [], []

    def open_page(*, ready: bool = True, url: str = server.url, script: str = "", **options):
        options = {"viewport": {"width": 1280, "height": 800}} | options
        context = browser.new_context(**{"permissions": ["microphone"]} | options)
        context.set_default_timeout(1000 * SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and lines.append(m.text))
        page.on("pageerror", lambda error: lines.append(str(error)))
        page.add_init_script(page_checks.KEEP_CONNECTION + script)
        page.goto(url)
        if ready:
            page.wait_for_selector("#frame[data-state=idle]")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            page.goto("about:blank")
        context.close()
    until(lambda: server.sessions == 0)
    assert not [line for line in lines if not any(code in line for code in IGNORED)]


def start(page) -> None:
    page.click("#start")
    page.wait_for_selector(LIVE)


def noted(page, count: int, what: str = "frames") -> dict[str, np.ndarray]:
    """Wait until so many frames were noted; return all that was."""
    until(lambda: page.evaluate(f"noted.{what}.length") >= count)
    found = page.evaluate("noted")
    return {key: np.array(found[key], float) for key in ("frames", "sound", "states")}


def numbers(frames: np.ndarray) -> np.ndarray:
    """The frames' numbers, from the first one on."""
    steps = np.diff(frames[:, 0]) % 2**32  # the time stamps may wrap around
    found = np.concatenate([[0], np.cumsum(steps)]) / PER_FRAME
    assert (found == found.round()).all()
    return found.astype(int)


# --- its files -----------------------------------------------------------------------------------


def test_files_are_served_strictly(server):
    with httpx.Client(base_url=server.url) as client:
        index = client.get("/")
        assert index.status_code == 200 and index.content == (FOLDER / "index.html").read_bytes()
        names = {path.name for path in FOLDER.iterdir()} - {"index.html"}
        types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
        for name in names:
            answer = client.get(f"/page/{name}")
            assert answer.content == (FOLDER / name).read_bytes()
            assert answer.headers["content-type"].split(";")[0] == types[Path(name).suffix]
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "unsafe" not in policy and "*" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"
            again = {"If-None-Match": answer.headers["etag"]}
            assert client.get(f"/page/{name}", headers=again).status_code == 304
            assert client.get(f"/page/{name}", headers={"If-None-Match": '"x"'}).status_code == 200
            assert client.head(f"/page/{name}").content == b""
        for path in (
            "/page",
            "/page/",
            "/page/index.html",
            "/page/..%2fpages.py",
            "/page/../pages.py",
            "/page/x.js",
        ):
            assert client.get(path).status_code == 404
        assert client.post("/").status_code == 405


def test_the_page_uses_its_own_files_only():
    names = {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?<!`)(https?:)?//[a-z0-9-]+\.", text), path
        assert not re.search(r"\son\w+=|style=|innerHTML|eval\(", text), path
        for used in re.findall(r'(?:from "\./|"page/|new URL\(")([\w.]+)"', text):
            assert used in names, used
    main = (FOLDER / "main.js").read_text()
    used = set(re.search(r"const ids = \[(.*?)\]", main, re.S)[1].replace('"', "").split())
    ids = re.findall(r' id="([\w-]+)"', (FOLDER / "index.html").read_text())
    assert len(ids) == len(set(ids)) and {name.strip(",") for name in used} <= set(ids)


# --- what is seen and heard ----------------------------------------------------------------------


@needs_browser
def test_a_session_plays_every_frame(page_of, server):
    page = page_of()
    before = players_left(server)
    assert page.text_content("#fps") == page.text_content("#delay") == "–"
    start(page)
    page.evaluate(page_checks.NOTE, INNER)
    noted_ones = noted(page, 15, "states")
    states, found = noted_ones["states"], numbers(noted_ones["frames"])
    received = states[-1][3] - states[0][3]
    sent = 25 * (states[-1][2] - states[0][2]) / 1000  # by the time stamps of what was received
    assert received >= 24 / 25 * sent - 2
    assert len(found) > 10 and (np.diff(found) > 0).all()
    page.wait_for_selector("#fps:text-matches('of 25')")
    page.wait_for_selector("#bitrate:text-matches('bit/s')")
    page.wait_for_selector("#late:text-matches('[0-9]')")
    assert page.text_content("#size") == "360 × 640"
    assert re.fullmatch("1 of [0-9]+", page.text_content("#sessions"))
    assert "ONNX Runtime" in page.text_content("#runtime")
    assert page.text_content("#delay") == "–"  # nothing was said
    assert page.evaluate("document.getElementById('video').videoWidth") == 360
    assert players_left(server) == before
    page.goto("about:blank")  # which is told to the server
    until(lambda: server.sessions == 0 and players_left(server) == before + 1)


def players_left(server: Running) -> int:
    """How many pages have told that they leave."""
    text = httpx.get(f"{server.url}metrics").text
    found = re.findall(r"requests_total{[^}]*/whep/{session}/{peer}.*} ([0-9.]+)", text)
    return round(sum(map(float, found)))


@needs_browser
def test_the_mouth_moves_with_the_sound_of_the_microphone(page_of):
    page = page_of()
    start(page)
    page.click("#microphone")
    page.wait_for_selector("#microphone[aria-pressed=true]")
    page.evaluate(page_checks.NOTE, INNER)
    page.wait_for_selector("#delay:text-matches('s')")
    assert page.text_content("#delay-of") == "(microphone)"
    assert 0.4 < float(page.text_content("#delay").split()[0]) < 5
    for _ in range(6):  # a machine that is too busy lets the browser stretch the sound
        page.evaluate("Object.assign(noted, {frames: [], sound: [], states: []})")
        lag, likeness = lag_of(noted(page, 36, "states"))
        if likeness > 0.9:
            break
    assert likeness > 0.9
    assert abs(lag) <= 40, f"{lag} ms"
    page.click("#microphone")
    page.wait_for_selector("#microphone[aria-pressed=false]")


def lag_of(found: dict[str, np.ndarray]) -> tuple[float, float]:
    """How much later the mouth is seen than its sound is heard, in ms, and how alike they are.

    Both are put on the sender's clock: the browser says which time of it is heard and seen. What
    is left is the lag in the stream itself, without what a busy browser is behind.
    """
    states = found["states"]
    known = states[0, 0], states[-1, 0]  # when the browser says which time it is
    frames = found["frames"][within(found["frames"][:, 1], known)]
    sound = found["sound"][within(found["sound"][:, 0], known)]
    seen = np.interp(frames[:, 1], states[:, 0], states[:, 2])
    stamps = numbers(frames) * 40.0
    seen = stamps + np.median(seen - stamps)
    heard = np.interp(sound[:, 0], states[:, 0], states[:, 1])
    # The mouth of a frame shows the 0.2 s that begin with the frame before it.
    loudness = np.convolve(10 * np.log10(sound[:, 1] + 1e-6), np.ones(20) / 20, "valid")
    begins = heard[: len(loudness)] + 40
    times = np.arange(max(seen[0], heard[0]) + 500, min(seen[-1], heard[-1]) - 500, 5.0)
    expected = np.interp(times, begins, loudness)
    best = (0.0, 0.0)
    for lag in range(-300, 301, 5):
        mouth = np.interp(times + lag, seen, frames[:, 2])
        best = max(best, (float(np.corrcoef(mouth, expected)[0, 1]), lag))
    return best[1], best[0]


def within(times: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return (times > ends[0]) & (times < ends[1])


@needs_browser
def test_an_interruption_closes_the_mouth_within_six_frames(page_of, sound):
    """Counted from the frame with which the server says that it begins."""
    page = page_of(script=page_checks.KEEP_MESSAGES)
    start(page)
    page.evaluate(page_checks.NOTE, INNER)
    page.wait_for_selector("#late:text-matches('[0-9]')")
    loud = write_sound(sound.parent / "loud.wav", noise(20))
    for act in (lambda: page.click("#interrupt"), lambda: page.keyboard.press("Escape")):
        page.evaluate("messages.length = noted.frames.length = 0")
        page.set_input_files("#file", loud)
        until(lambda: opened(page) > 30)
        assert "Sending: 20.0 s" in page.text_content("#file-line")
        page.wait_for_selector("#badge:text-is('Saying the file')")
        page.wait_for_selector("#delay-of:text-is('(file)')")
        act()
        until(lambda: opened(page) < 5)
        assert page.evaluate("told") == "interrupt"  # without a wait
        until(lambda: message(page, "interrupted"))
        until(lambda: message(page, "stats"))
        begin = round(25 * message(page, "interrupted")["position"])
        frames = noted(page, 1)["frames"]
        shown = (frames[:, 0] - message(page, "stats")["rtp"]) % 2**32 / PER_FRAME
        first = np.flatnonzero(frames[:, 2] > 30)[0]
        closed = shown[first:][frames[first:, 2] < 5][0]
        assert 0 <= closed - begin <= 6
        page.wait_for_selector("#badge", state="hidden")
        assert page.evaluate("document.getElementById('file-progress').value") == 0


def message(page, kind: str) -> dict | None:
    """The first message of a kind that came from the server."""
    return next((m for m in page.evaluate("messages") if m["type"] == kind), None)


def opened(page) -> float:
    """How open the mouth of the last frame is."""
    return page.evaluate("noted.frames.at(-1)?.[2] ?? 0")


@needs_browser
def test_a_voice_interrupts_a_file_unless_it_is_told_not_to(page_of, sound):
    page = page_of()
    start(page)
    loud = write_sound(sound.parent / "long.wav", noise(20))
    page.click("#interrupts")
    page.set_input_files("#file", loud)
    page.wait_for_selector("#badge:text-is('Saying the file')")
    page.click("#microphone")
    page.wait_for_selector("#level[data-voice=true]", state="attached")
    page.wait_for_selector("#level[data-voice=false]", state="attached")
    assert page.text_content("#badge") == "Saying the file"  # a voice was heard, and not sent
    page.click("#interrupts")
    page.wait_for_selector("#badge:text-is('You are heard')")
    assert page.text_content("#file-line").startswith("Any format")
    page.wait_for_selector("#delay-of:text-is('(microphone)')")
    page.wait_for_selector("#badge:text-is('Listening')")


@needs_browser
@pytest.mark.skipif(not VOICE, reason="there is no espeak-ng to speak a text")
def test_a_text_is_said_and_may_be_interrupted(page_of):
    page = page_of()
    assert page.is_disabled("#text")
    start(page)
    page.evaluate(page_checks.NOTE, INNER)
    page.fill("#text", "Good morning.")
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#text") == "Good morning.\n"
    page.keyboard.press("Enter")
    assert page.input_value("#text") == ""
    page.wait_for_selector("#badge:text-is('Saying the text')")
    until(lambda: opened(page) > 50)
    page.wait_for_selector("#delay-of:text-is('(text)')")
    page.wait_for_selector("#badge", state="hidden")  # it was said
    page.fill("#text", "a" * 3000)  # more than the server takes
    page.keyboard.press("Enter")
    page.wait_for_selector("#note:text-matches('3000')")
    assert page.input_value("#text") == "a" * 3000
    page.fill("#text", "One. Two. Three. " * 20)
    page.click("#say")
    until(lambda: opened(page) > 50)
    page.keyboard.press("Escape")
    page.wait_for_selector("#badge", state="hidden")
    until(lambda: opened(page) < 5)
    page.evaluate("noted.frames.length = 0")
    assert noted(page, 25)["frames"][:, 2].max() < 5


@needs_browser
def test_a_gate_opens_for_a_voice_and_not_for_a_knock(page_of):
    page = page_of()
    states = page.evaluate(
        """async () => {
          const { Gate } = await import(new URL("page/gate.js", document.baseURI));
          const gate = new Gate({ threshold: -40, attack: 40, release: 100 });
          const hear = (...levels) => levels.map((level) => Number(gate.hear(level, 20))).join("");
          const states = [hear(-30, -90, -90, -30, -90),      // knocks
            hear(-35, -35, -44, -44, -35),                    // a voice that falls a little
            hear(-50, -50, -44, -50, -50, -50, -50, -50)];    // and ends
          gate.close(60);
          states.push(hear(-30, -30, -50, -50, -50, -30, -30));
          states.push(String(gate.hear(-30, 20, 1000)), (gate.close(), hear(-30)));
          return states;
        }"""
    )
    assert states == ["00000", "01111", "11111110", "0000001", "true", "0"]


@needs_browser
def test_the_number_of_a_frame_on_the_screen_is_known(page_of, sound):
    """The mouth opens with the frame of which the server says that speech begins with it."""
    page = page_of(script=page_checks.KEEP_MESSAGES)
    start(page)
    page.evaluate(page_checks.NOTE, INNER)
    page.wait_for_selector("#late:text-matches('[0-9]')")
    page.set_input_files("#file", write_sound(sound.parent / "short.wav", noise(2)))
    until(lambda: opened(page) > 30)
    page.wait_for_selector("#delay-of:text-is('(file)')")
    frames = noted(page, 1)["frames"]
    messages = page.evaluate("window.messages")
    origin = next(m["rtp"] for m in messages if m["type"] == "stats" and m["rtp"] is not None)
    number = next(m["number"] for m in messages if m["type"] == "speaking")
    shown = page.evaluate(
        """async ([stamps, origin]) => {
          const { frameNumber } = await import(new URL("page/numbers.js", document.baseURI));
          return [...stamps.map((stamp) => frameNumber(stamp, origin, 25)),
            frameNumber(5, 2 ** 32 - 3595, 25)];  // it wraps around
        }""",
        [[int(stamp) for stamp in frames[:, 0]], origin],
    )
    assert shown.pop() == 1
    first = np.flatnonzero(frames[:, 2] > 30)[0]
    assert shown[first - 1] < number <= shown[first]
    assert shown == [round((int(t) - origin) % 2**32 / PER_FRAME) for t in frames[:, 0]]


@needs_browser
def test_who_uses_the_keyboard_only_gets_all(page_of):
    page = page_of()
    seen = []

    def tab_to(wanted: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            name, outline = page.evaluate(page_checks.FOCUSED)
            if name != "body":
                assert outline >= 2, name
                seen.append(name)
            if name == wanted:
                return
        raise AssertionError(f"{wanted} is not reached, but {seen}")

    tab_to("start")
    page.keyboard.press("Enter")
    page.wait_for_selector(LIVE)
    until(lambda: page.evaluate(page_checks.FOCUSED)[0] == "microphone")
    page.keyboard.press("Space")
    page.wait_for_selector("#microphone[aria-pressed=true]")
    page.wait_for_selector("#badge:text-is('You are heard')")
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    page.wait_for_selector("#microphone[aria-pressed=false]")
    for name in ("interrupt", "mute", "end", "file", "sensitivity", "interrupts", "summary"):
        tab_to(name)
        if name == "sensitivity":
            page.keyboard.press("ArrowRight")
            assert page.get_attribute("#sensitivity", "aria-valuetext") == "from −46 dB"
        if name == "mute":
            page.keyboard.press("Enter")
            assert page.get_attribute("#mute", "aria-pressed") == "true"
            assert page.evaluate("document.getElementById('video').muted")
    page.focus("#end")
    page.keyboard.press("Enter")
    page.wait_for_selector("#frame[data-state=ended]")
    assert page.evaluate(page_checks.FOCUSED)[0] == "start"
    page.keyboard.press("Enter")  # again
    page.wait_for_selector(LIVE)


# --- who can use it ------------------------------------------------------------------------------


@needs_browser
def test_everything_has_a_name_and_can_be_read(page_of, server):
    """Names as Chromium computes them for screen readers; contrast as WCAG 2.2 AA wants it."""
    for scheme in ("light", "dark"):
        page = page_of(color_scheme=scheme)
        for state in ("idle", "live", "problem"):
            if state == "live":
                start(page)
            if state == "problem":
                page.click("#end")
                page.evaluate("() => { window.fetch = async () => { throw new TypeError() } }")
                page.evaluate(
                    "window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
                )
                page.wait_for_selector("#frame[data-state=problem]")
            found = page.evaluate(page_checks.LOW_CONTRAST)
            assert found["faults"] == [] and found["texts"] > 25, (scheme, state)
        until(lambda: server.sessions == 0)
    page = page_of()
    start(page)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "slider", "checkbox", "combobox", "progressbar", "video"}
    names = {}
    for node in tree:
        role = node.get("role", {}).get("value", "")
        if not node.get("ignored") and role.lower() in roles:
            names.setdefault(role.lower(), []).append(node.get("name", {}).get("value", ""))
    assert all(name for found in names.values() for name in found), names
    assert set(names) >= {"button", "textbox", "slider", "checkbox", "combobox"}
    assert any(name.startswith("Microphone") for name in names["button"])
    assert page.get_attribute("html", "lang") == "en"


@needs_browser
def test_nothing_moves_and_nothing_sticks_out(page_of, server):
    for width, height in ((1280, 800), (900, 700), (360, 740)):
        page = page_of(viewport={"width": width, "height": height})
        places = page.evaluate(page_checks.PLACES)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        frame = places["#frame"]
        assert frame[0] >= 0 and frame[1] + frame[3] <= height
        if width == 900:
            continue  # it takes long, and nothing is different
        start(page)
        page.wait_for_selector("#late:text-matches('[0-9]')")
        assert page.evaluate(page_checks.PLACES) == places, width
        page.click("#microphone")
        page.wait_for_selector("#badge:text-is('You are heard')")
        assert page.evaluate(page_checks.PLACES) == places, width
        page.click("#end")
        assert page.evaluate(page_checks.PLACES) == places, width
        assert page.evaluate("document.documentElement.scrollWidth") == width
        until(lambda: server.sessions == 0)


# --- lines ---------------------------------------------------------------------------------------

NO_ICE = "RTCPeerConnection.prototype.setRemoteDescription = async function () {};"


@needs_browser
@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("RTCRtpReceiver.getCapabilities = () => ({codecs: [{mimeType: 'video/VP8'}]})", "H.264"),
        ("delete window.RTCPeerConnection", "WebRTC"),
        ("window.fetch = async () => { throw new TypeError('x') }", "does not answer"),
        ("window.fetch = async () => Response.json({avatars: []})", "--avatar NAME=DIR"),
        ("window.fetch = async () => new Response('over\\n', {status: 503})", "over"),
    ],
)
def test_a_line_says_why_there_is_nothing_to_start(page_of, script, line):
    page = page_of(ready=False, script=script)
    page.wait_for_selector("#frame[data-state=problem]")
    assert line in page.text_content("#message")


@needs_browser
def test_a_line_says_why_a_session_ended(page_of, server):
    failing = (
        "RTCPeerConnection.prototype.setRemoteDescription = async function () {"
        "  Object.defineProperty(this, 'connectionState', {get: () => 'failed'}); };"
    )
    page = page_of(script=failing)
    page.click("#start")
    page.wait_for_selector("#frame[data-state=problem]")
    line = page.text_content("#message")
    assert re.search(r"Tried: [1-9]\d* host, 0 srflx, 0 relay here; [1-9]\d* host", line)
    assert "web.ice_servers" in line and "TURN" in line and "UDP ports" in line
    assert page.text_content("#start") == "Try again"
    until(lambda: server.sessions == 0)


@needs_browser
def test_a_line_says_why_there_is_no_microphone(page_of, server):
    unasked = page_of(url=server.url.replace("127.0.0.1", "viseme.test"))
    assert not unasked.evaluate("window.isSecureContext")
    gone = (
        "if (navigator.mediaDevices) navigator.mediaDevices.getUserMedia = "
        "async () => { throw new DOMException('', '%s') }"
    )
    blocked = page_of(script=gone % "NotAllowedError")
    absent = page_of(script=gone % "NotFoundError")
    for page, words in (
        (unasked, "https:// pages and localhost"),
        (blocked, "blocked"),
        (absent, "No microphone"),
    ):
        start(page)
        page.click("#microphone")
        page.wait_for_selector(f"#note:text-matches('{words}')")
        assert page.get_attribute("#microphone", "aria-pressed") == "false"
        page.click("#end")
        until(lambda: server.sessions == 0)


@needs_browser
def test_a_play_button_is_there_when_the_browser_plays_nothing_by_itself(page_of):
    script = (
        "const play = HTMLMediaElement.prototype.play; let times = 0;"
        "HTMLMediaElement.prototype.play = async function () {"
        "  if (!times++) throw new DOMException('', 'NotAllowedError'); return play.call(this); }"
    )
    page = page_of(script=script)
    start(page)
    page.wait_for_selector("#note:text-matches('before it plays sound')")
    page.click("#play")
    page.evaluate(page_checks.NOTE, INNER)
    noted(page, 3)
    assert page.is_hidden("#play") and page.text_content("#note") == ""


@needs_browser
def test_tokens_limits_and_a_server_that_ends(browser, page_of, tmp_path):
    folder = write_avatar(tmp_path / "anna")
    settings = {"port": 0, "http_port": 0, "drain_seconds": 0, "tokens": ["correct-horse-battery"]}
    with serving(folder, server=settings, limits={"max_sessions": 1}) as other:
        page = page_of(url=other.url, ready=False)
        page.wait_for_selector("#frame[data-state=token]")
        for token, title in (("wrong", "Token"), ("correct-horse-battery", "anna")):
            page.fill("#token", token)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#title:text-is('{title}')")
        start(page)
        assert page.is_disabled("#text") and "web.voice" in page.text_content("#text-hint")
        second = page.context.new_page()  # has a sessionStorage of its own
        second.goto(other.url)
        second.fill("#token", "correct-horse-battery")
        second.keyboard.press("Enter")
        second.wait_for_selector("#frame[data-state=idle]")
        second.click("#start")
        second.wait_for_selector("#frame[data-state=problem]")
        assert "1" in second.text_content("#message")
        until(lambda: other.sessions == 1)
        httpx.get(other.url)
        other.close()
        page.wait_for_selector("#frame[data-state=problem]")
        assert page.text_content("#message") == "the server is ending"
        page.click("#start")
        page.wait_for_selector("#message:text-matches('does not answer')")
