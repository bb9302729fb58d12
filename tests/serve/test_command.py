"""`python -m serve`: what it prints, its exit codes, and how signals end it."""

import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from serve import __main__ as command
from serve import log
from serve.config import Config, load
from serve.log import FORMAT, LineFormatter
from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc
from tests.conftest import DEMO, ROOT
from tests.serve.stage import SECONDS, TOKEN

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "VISEME_TOKENS": TOKEN,
}
FREE = ["--port", "0", "--http-port", "0", "--device", "cpu"]


class Command:
    """A server in a process of its own, with fakes; what it prints is read as it comes."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.fake_command", *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out, self.log = list[str](), list[str]()
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def until(self, lines: list[str], pattern: str) -> str:
        """Wait for a line."""

        def found():
            return next((line for line in lines if re.search(pattern, line)), None)

        with self._changed:
            assert self._changed.wait_for(found, 4 * SECONDS), (self.out, self.log)
            return found()

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.until(self.out, "^gRPC at ").split()[-1])

    def end(self, *numbers: int) -> int:
        for number in numbers:
            self.process.send_signal(number)
        return self.process.wait(4 * SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_drains(number):
    with Command("--avatar", f"anna={DEMO}", *FREE) as server, server.channel() as channel:
        server.until(server.log, " ready$")
        live = viseme_pb2_grpc.VisemeStub(channel).Live
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        begun, go_on = threading.Event(), threading.Event()

        def requests():
            yield pb.LiveRequest(pcm=b"a")
            assert begun.wait(SECONDS) and go_on.wait(4 * SECONDS)
            yield pb.LiveRequest(pcm=b"b")

        answers = live(requests(), metadata=metadata)
        assert next(answers).piece.sound == b"a"
        begun.set()
        server.process.send_signal(number)
        server.until(server.log, "draining for 10 s at most")
        go_on.set()
        assert [answer.piece.sound for answer in answers] == [b"b"]
        assert server.end() == 0
        server.until(server.log, " ended$")
    text = "\n".join(server.out + server.log)
    assert "Traceback" not in text and TOKEN not in text
    assert server.out[0] == f"anna: {DEMO}, on the CPU, loaded at the start"
    assert f"{number.name}: draining" in text


def test_a_second_signal_ends_at_once():
    with Command("--avatar", f"anna={DEMO}", *FREE) as server, server.channel() as channel:
        render = viseme_pb2_grpc.VisemeStub(channel).Render
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        answers = render(pb.RenderRequest(avatar="endless"), metadata=metadata)
        assert next(answers)
        server.process.send_signal(signal.SIGTERM)
        server.until(server.log, "draining for 10 s at most")
        assert server.end(signal.SIGINT) == 128 + signal.SIGINT
        with pytest.raises(grpc.RpcError):
            list(answers)
    assert "Traceback" not in "\n".join(server.log)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    """With the command itself: the mistake is found before the services are imported."""
    path = tmp_path / "config.yaml"
    path.write_text("server:\n  prot: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "serve", str(path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (f"error: {path}:2:3: server.prot is not known; did you mean port?\n")


@pytest.mark.parametrize("package", ["grpc", "pydantic", "uvicorn"])
def test_a_package_that_is_not_installed_is_one_line(package):
    code = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module('serve', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=4 * SECONDS,
    )  # fmt: skip
    line = f"error: {package} is not installed: pip install 'viseme[serve]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="other systems have no /proc")
def test_ctrl_c_while_modules_are_imported():
    """PyTorch's library takes most of the time; nothing is printed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "serve", "--help"],
        cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True,
    ) as process:  # fmt: skip
        maps = Path(f"/proc/{process.pid}/maps")
        deadline = time.monotonic() + 4 * SECONDS
        while "libtorch" not in maps.read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=4 * SECONDS)
    assert (process.returncode, out, error) == (-signal.SIGINT, "", "")


# --- what it says --------------------------------------------------------------------------------


def described(*arguments: str, **update) -> list[str]:
    config = load(None, avatars=[f"anna={DEMO}"], device="cpu")
    server = config.server.model_copy(update=update)
    return command.describe(config.model_copy(update={"server": server}), 1, 2)


def test_it_says_where_it_is_and_who_may_call(tmp_path):
    lines = described()
    assert "gRPC at 127.0.0.1:1" in lines and "page at http://127.0.0.1:2/" in lines
    assert (
        "HTTP at http://127.0.0.1:2/metrics, http://127.0.0.1:2/healthz, http://127.0.0.1:2/readyz"
        in lines
    )
    assert "no token is asked for" in lines
    assert "other machines cannot connect (--host 0.0.0.0 lets them)" in lines
    assert lines[-1] == "grpcurl -plaintext 127.0.0.1:1 viseme.v1.Viseme/ListAvatars"


@pytest.mark.parametrize(
    ("host", "own"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.7", "10.0.0.7")]
)
def test_its_page_is_at_an_address_that_a_browser_can_open(host, own):
    assert f"page at http://{own}:2/" in described(host=host)


def test_it_says_what_is_asked_for_without_secrets(tmp_path):
    tls = Config.model_validate(
        {"server": {"tls": {"certificate": "/a b.pem", "key": "/k.pem"}}}
    ).server.tls
    lines = described(host="::", tls=tls, tokens=(TOKEN,))
    text = "\n".join(lines)
    assert "gRPC at [::]:1 with TLS" in lines and "https://[::1]:2/readyz" in text
    assert 'calls must bring one of 1 tokens, "Bearer TOKEN"' in lines
    assert "other machines" not in text and TOKEN not in text
    assert lines[-1] == (
        "grpcurl -cacert '/a b.pem' -H \"authorization: Bearer $TOKEN\" [::1]:1 "
        "viseme.v1.Viseme/ListAvatars"
    )


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({}, None),
        ({"host": "localhost"}, None),
        ({"host": "0.0.0.0"}, "it has no tokens"),
        ({"host": "0.0.0.0", "tokens": (TOKEN,)}, "there is no TLS"),
    ],
)
def test_it_warns_of_what_is_open(caplog, update, expected):
    config = load(None, device="cpu")
    command.warn(config.model_copy(update={"server": config.server.model_copy(update=update)}))
    assert [expected in record.getMessage() for record in caplog.records] == (
        [] if expected is None else [True]
    )


@pytest.mark.parametrize(("message", "file", "warned"), [(50, 52.4, 0), (50, 53, 1), (10, 32, 1)])
def test_it_warns_of_uploads_that_no_message_can_hold(caplog, message, file, warned):
    config = Config.model_validate(
        {"server": {"max_message_size_mb": message}, "limits": {"max_upload_mb": file}}
    )
    command.warn(config)
    assert len(caplog.records) == warned
    for record in caplog.records:
        assert record.getMessage() == (
            f"limits.max_upload_mb is {file}, but a gRPC message of more than "
            f"{message * 1.048576:.1f} MB is refused; expected a larger server.max_message_size_mb"
        )


def test_a_clients_text_cannot_make_a_line_of_the_log():
    formatter = LineFormatter(FORMAT)
    evil = "a\n2026-01-01 INFO serve: ended\x1b[2J\u2028"
    record = logging.LogRecord("serve", logging.ERROR, "f", 1, "model %s", (evil,), None)
    line = formatter.format(record)
    assert "\n" not in line and line.isprintable() and "a\\n2026" in line
    try:
        raise ValueError(evil)
    except ValueError:
        record.exc_info, record.args = sys.exc_info(), ("b",)
    lines = formatter.format(record).split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[1] == "Traceback (most recent call last):"


def test_libraries_that_log_what_clients_send_are_quiet():
    """At any level: it may be a token, and clients could fill the log."""
    names = [
        "aioice.ice",
        "aiortc",
        "httpcore.http11",
        "httpx",
        "uvicorn.error",
        "websockets.server",
    ]
    loggers = [logging.getLogger(name) for name in ("", *names, *log.QUIET)]
    before = [logger.level for logger in loggers]
    try:
        log.set_level("debug")
        assert logging.getLogger("serve").isEnabledFor(logging.DEBUG)
        assert not [name for name in names if logging.getLogger(name).isEnabledFor(logging.INFO)]
        assert logging.getLogger("uvicorn.error").isEnabledFor(logging.ERROR)
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def test_open_files_are_as_many_as_the_system_lets():
    """Many systems allow 1024 unless asked; 200 players take more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(900, before[1]), before[1]))
        command._allow_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1] and (soft == hard or soft == 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
