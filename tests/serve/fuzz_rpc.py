"""`python -m tests.serve.fuzz_rpc`: send requests that nobody means to a server, and bytes that are
no requests to its port, and report its memory.

Exit code: 0 if every answer was an error or valid and memory stayed flat, 1 otherwise.
"""

import argparse
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError

from serve.config import Config
from serve.rpc import restarting
from serve.rpc.composite import INTERNAL
from serve.rpc.monolithic import add_to_server
from tests.serve.rpc import hostile
from tests.serve.rpc.fakes import FakeModel, FakeRegistry, Running
from tests.serve.rpc.go_client import ANSWERS, SERVICE, GoClient, Messages

STATUSES = {"INTERNAL", "UNIMPLEMENTED"}
GROWTH = 64 << 20  # bytes that a process may grow by after its first requests


@dataclass
class Report:
    """What happened.

    Attributes:
        answers: how often "success", "error" or a status was the answer.
        findings: answers that were wrong.
        memory: of the process, bytes, from time to time.
    """

    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Errors(logging.Handler):
    """Keeps what is logged as an error: nothing should be, but that gRPC is started anew.

    Attributes:
        texts: of errors.
        restarts: of errors that gRPC is started anew.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self.restarts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)[-2000:]
        if record.name == restarting.__name__:
            self.restarts.append(text)
        elif "codec can't decode byte" not in text:  # grpc.aio's own words before that
            self.texts.append(text)


class Server(Running):
    """A server of two avatars that answer at once, and one that cannot be loaded."""

    def __init__(self) -> None:
        self.errors = Errors()
        self.restarts = self.errors.restarts
        registry = FakeRegistry(FakeModel("anna"), FakeModel("berta", gpu=1))
        for model in registry.models.values():
            model.served.batches.keep = False
        config = Config.model_validate({"models": {"dora": {"model_path": "/dora.onnx"}}})
        super().__init__(lambda server: add_to_server(registry, config, server))

    def __enter__(self) -> "Server":
        logging.getLogger().addHandler(self.errors)
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        logging.getLogger().removeHandler(self.errors)
        assert not self.errors.texts, self.errors.texts[0]

    def settle(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


def check_answer(messages: Messages, method: str, request: bytes, answer: bytes) -> str:
    """Return "success" or "error".

    Raises:
        AssertionError: it is neither.
    """
    decoded = getattr(messages, ANSWERS[method]).FromString(answer)
    if method in ("ListModels", "GetModelStats", "Health"):
        assert len(answer) > 10
        return "success"
    if decoded.success:
        assert decoded.error == ""
        if method == "InferBatchComposite":
            asked = messages.CompositeBatchRequest.FromString(request)
            assert len(decoded.composited_frames) == asked.batch_size
            assert math.isfinite(decoded.total_time_ms)
        return "success"
    assert 0 < len(decoded.error) <= 1000 and decoded.error.isprintable()
    assert INTERNAL not in decoded.error
    assert decoded.ListFields()[0][0].name == "error" and len(decoded.ListFields()) == 1
    return "error"


def fuzz(server: Server, messages: Messages, *, seed: int, count: int) -> Report:
    """Send requests one after another."""
    report = Report()
    with GoClient(server.port, messages) as client:
        for number, (service, method, message) in enumerate(hostile.requests(seed, count)):
            if number % 200 == 0:
                report.memory.append(hostile.resident())
            try:
                answer = client.raw(method, message, service)
                report.answers[check_answer(messages, method, message, answer)] += 1
            except grpc.RpcError as error:
                report.answers[error.code().name] += 1
                if error.code().name not in STATUSES:
                    report.findings.append(f"{method} {message[:200]!r}: {error.details()}")
            except (AssertionError, DecodeError) as error:
                report.findings.append(f"{method} {message[:200]!r}: {error!r}")
        if not client.call("Health").healthy:
            report.findings.append("the server is not healthy")
    report.memory.append(hostile.resident())
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.fuzz_rpc")
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="requests (10000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of random numbers (1)")
    options = parser.parse_args(arguments)
    messages = Messages()
    with Server() as server:
        report = fuzz(server, messages, seed=options.seed, count=options.count)
        connections = max(options.count // 20, 30)
        for data in hostile.connections(options.seed, connections):
            hostile.send(server.port, data)
        with GoClient(server.port, messages) as client:
            call = client.channel.unary_unary(f"/{SERVICE}/Health")
            assert call(b"", timeout=30, wait_for_ready=True)
        report.memory.append(hostile.resident())
    warm = report.memory[min(5, len(report.memory) - 1)]
    if report.memory[-1] - warm > GROWTH:
        report.findings.append(f"memory grew by {(report.memory[-1] - warm) >> 20} MiB")
    print(f"{options.count} requests: {dict(report.answers.most_common())}")
    print(
        f"{connections} connections, {len(server.restarts)} restarts; memory, MiB: {[size >> 20 for size in report.memory]}"
    )
    for finding in report.findings:
        print(finding)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
