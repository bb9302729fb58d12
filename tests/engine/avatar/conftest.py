"""Fixtures: limits for tests of files that may take all memory, or never end."""

import resource
import signal
from pathlib import Path

import pytest


@pytest.fixture
def limits():
    """End a test that blocks or takes more than 1 GB, instead of the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, hard))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it never ends"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
