"""`python -m serve` as it is, with the demo avatar: from its start to its end, under load."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import grpc
import numpy as np

from serve.rpc.protos import monolithic_pb2 as go
from serve.rpc.protos import monolithic_pb2_grpc, viseme_pb2_grpc
from serve.rpc.protos import viseme_pb2 as pb
from tests.conftest import ROOT
from tests.serve.files import EXAMPLE
from tests.serve.test_metrics import samples

SECONDS = 240  # to load the demo on a busy machine


class Load:
    """Clients of a server, each in a thread: a render, a live session, batches without a pause.

    One begins when the one before it gets something: those in real time leave little to others.
    """

    def __init__(self, channel: grpc.Channel):
        self._viseme = viseme_pb2_grpc.VisemeStub(channel)
        self._old = monolithic_pb2_grpc.MonolithicServiceStub(channel)
        self._end = threading.Event()
        self.ends: dict[str, grpc.StatusCode] = {}
        self._threads = []
        for work in (self._render, self._live, self._batches):
            begun = threading.Event()
            self._threads.append(threading.Thread(target=self._until_its_end, args=(work, begun)))
            self._threads[-1].start()
            assert begun.wait(SECONDS) and not self.ends, self.ends

    def _until_its_end(self, work, begun):
        try:
            for _ in work():
                begun.set()
            self.ends[work.__name__] = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.ends[work.__name__] = error.code()
        finally:
            begun.set()

    def _live(self):
        def speak():
            yield pb.LiveRequest(open=pb.OpenSession(avatar="demo"))
            yield pb.LiveRequest(pcm=bytes(16000 * 2 * 50))
            self._end.wait(SECONDS)

        for message in self._viseme.Live(speak(), timeout=SECONDS):
            if message.piece.speaking:
                yield

    def _render(self):
        pcm = pb.Pcm(samples=bytes(16000 * 2 * 300))
        for message in self._viseme.Render(
            pb.RenderRequest(avatar="demo", pcm=pcm), timeout=SECONDS
        ):
            if message.HasField("progress"):
                yield

    def _batches(self):
        speech = np.zeros(40_000, "<f4").tobytes()
        request = go.CompositeBatchRequest(model_id="demo", batch_size=4, raw_audio=speech)
        while True:
            done = self._old.InferBatchComposite(request, timeout=SECONDS)
            assert done.success and len(done.composited_frames) == 4, done.error
            yield

    def join(self):
        self._end.set()
        for thread in self._threads:
            thread.join(SECONDS)


def test_the_demo(tmp_path):
    log, temporary, config = tmp_path / "log", tmp_path / "temporary", tmp_path / "config.yaml"
    temporary.mkdir()
    text = EXAMPLE.read_text().replace("drain_seconds: 10", "drain_seconds: 2")
    config.write_text(text.replace("models_root: ../..", f"models_root: {ROOT}"))
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "serve", str(config), "--port", "0", "--http-port", "0", "--device", "cpu"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            printed = ""
            while "grpcurl" not in printed:
                line = process.stdout.readline()
                assert line, log.read_text()
                printed += line
            address = re.search(r"^gRPC at (\S+)$", printed, re.M)[1]
            page = re.search(r"(http://\S+/metrics)", printed)[1]
            with grpc.insecure_channel(address) as channel:
                viseme = viseme_pb2_grpc.VisemeStub(channel)
                # it waits for the avatar
                request = pb.RenderRequest(
                    avatar="demo",
                    pcm=pb.Pcm(samples=np.zeros(8000, "<i2").tobytes()),
                    format=pb.RENDER_FORMAT_JPEG,
                )
                parts = list(viseme.Render(request, timeout=SECONDS))
                frames = [frame for part in parts for frame in part.frames.frames]
                assert len(frames) == parts[0].opened.frames >= 8
                assert all(frame.startswith(b"\xff\xd8") for frame in frames)
                old = monolithic_pb2_grpc.MonolithicServiceStub(channel)
                done = old.InferBatchComposite(
                    go.CompositeBatchRequest(
                        model_id="demo", batch_size=3, raw_audio=np.zeros(4000, "<f4").tobytes()
                    ),
                    timeout=SECONDS,
                )
                assert done.success and len(done.composited_frames) == 3, done.error
                (model,) = old.ListModels(go.ListModelsRequest()).models
                assert model.model_id == "demo" and model.loaded
            text = urllib.request.urlopen(page, timeout=SECONDS).read().decode()
            counted = samples(text)
            assert counted["viseme_frames_total", "demo", "render"] == len(frames)
            assert counted["viseme_frames_total", "demo", "batch"] == 3
            assert counted["viseme_batch_frames_sum", "demo"] == 3
            assert counted["viseme_loaded_avatars",] == 1
            assert counted["viseme_load_seconds_count",] == 1
            assert counted["viseme_device_bytes", "cpu"] > 1e8
            with grpc.insecure_channel(address) as channel:
                load = Load(channel)
                try:
                    assert list(temporary.iterdir())
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(SECONDS) == 0, log.read_text()
                finally:
                    load.join()
            assert load.ends == dict.fromkeys(
                ("_render", "_live", "_batches"), grpc.StatusCode.UNAVAILABLE
            )
            assert not list(temporary.iterdir())
        finally:
            process.kill()
    said = log.read_text()
    assert "draining for 2 s at most" in said and said.endswith(" serve: ended\n"), said
    assert "Traceback" not in said and " ERROR " not in said, said
    assert all(line.startswith(("20", "exporting")) for line in said.splitlines()), (
        said
    )  # not gRPC's
