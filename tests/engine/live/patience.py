"""Sessions that hold on machines of any speed."""

import math

import pytest


@pytest.fixture(autouse=True)
def however_slow(monkeypatch):
    """However slow or busy this machine is, sessions are admitted, and frames that are late are made
    all the same."""
    monkeypatch.setattr("engine.live.live.Live._admit", lambda self: None)
    patience = property(lambda state: math.inf, lambda state, seconds: None)
    monkeypatch.setattr("engine.live.session.SessionState.patience", patience, raising=False)
