"""Five minutes of film take no more memory than half a one. At 10 frames a second, to be quick."""

import subprocess
import sys

import av

from tests.conftest import ROOT
from tests.engine.preparing.films import head, write_film

SECONDS = 30


def small(t):
    return head(t, size=72, center=(48, 48), shape=(96, 96))


def repeat(source, target, times):
    """Write a film's packets several times, one after another."""
    with av.open(str(target), "w") as output:
        streams, ends = {}, {}
        for round_ in range(times):
            with av.open(str(source)) as film:
                for stream in film.streams:
                    if round_ == 0:
                        streams[stream.index] = output.add_stream_from_template(stream)
                packets = [packet for packet in film.demux() if packet.size]
                for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
                    shift = round(round_ * SECONDS / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    if packet.dts <= ends.get(packet.stream_index, packet.dts - 1):
                        continue  # the encoder's padding
                    ends[packet.stream_index] = packet.dts
                    packet.stream = streams[packet.stream_index]
                    output.mux(packet)
    return target


def test_memory_does_not_grow_with_the_film(tmp_path):
    once = write_film(tmp_path / "1.mp4", seconds=SECONDS, rate=10, scene=small)
    ten = repeat(once, tmp_path / "10.mp4", 10)
    code = r"""
import re, sys
from pathlib import Path
import engine.prepare
from tests.engine.preparing.films import HeadTracker
engine.prepare.open_tracker = lambda *_: (HeadTracker, {})
for film in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    assert engine.prepare.main([film, "-o", film + ".avatar", "--no-progress", "--fps", "source"]) == 0
    print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(once), str(ten)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, more = (float(line) for line in done.stdout.split("\n") if line and ":" not in line)
    assert more - one < 10
    assert "3000 frames" in done.stdout
