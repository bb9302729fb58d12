"""The benchmark of players runs, and its verdict is that of its figures."""

import re
import sys

import pytest

pytest.importorskip("grpc")
pytest.importorskip("aiortc")
from benchmarks import web

FOUND = {
    "alone": 0.2,
    "watched": 0.5,
    "players": [
        {"packets": 300, "bytes": 50_000, "pictures": 50, "late": [0.0, 0.001]},
        {"packets": 500, "bytes": 150_000, "pictures": 48, "late": [0.0, -0.001]},
    ],
    "skipped": 3,
    "late": 4,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(web, "SETTLE", 0.3)
    monkeypatch.setattr(web, "PICTURES", 5)


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_players_watch_what_is_said(monkeypatch, capsys):
    arguments = ["web", "--sessions", "2", "--seconds", "1", "--most", "1000"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert web.main() == 0
    head, players = capsys.readouterr().out.splitlines()
    sessions, each, alone, player = figures(head)
    assert sessions == 2 and each > 0 and alone > 0
    assert player == pytest.approx(each - alone, abs=0.11)
    pictures, kilobits, packets, first, last, *_ = figures(players)
    assert 0 < pictures < 60 and kilobits > 0  # 25, or what a busy machine makes or has to make up
    assert packets > pictures and first <= last


@pytest.mark.parametrize(("most", "code"), [(0.26, 0), (0.24, 1)])
def test_the_verdict(monkeypatch, capsys, most, code):
    async def measure(server, count, seconds):
        assert (count, seconds) == (2, 2.0) and server.url.startswith("http://127.0.0.1:")
        return FOUND

    monkeypatch.setattr(web, "measure", measure)
    arguments = ["web", "--sessions", "2", "--seconds", "2", "--most", str(most)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert web.main() == code
    assert capsys.readouterr().out.splitlines() == [
        "2 sessions: 25.0% of a core each (10.0% if nobody watches, 15.0% for the player)",
        "  players: 24.5 pictures a second, 400 kbit/s in 200 packets; "
        "pictures come -1 to 1 ms from the first one's time; 4 late, 3 skipped",
    ]
