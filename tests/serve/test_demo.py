"""`python -m serve` as it is, with the demo avatar: from its start to its end."""

import os
import re
import signal
import subprocess
import sys
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


def test_the_demo(tmp_path):
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "serve", str(EXAMPLE), "--port", "0", "--http-port", "0", "--device", "cpu"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
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
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
