"""`python -m benchmarks.serve_clients`: clients of a server, in a process of their own.

Prints a line of JSON: how many seconds each request took, and all of them together.
"""

import argparse
import json
import threading
import time

import grpc
import numpy as np

from engine.command import program
from serve.rpc.protos.monolithic_pb2 import CompositeBatchRequest, CompositeBatchResponse

METHOD = "/monolithic.MonolithicService/InferBatchComposite"
FACE = (6, 320, 320)
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def request(model: str, count: int, samples: int, faces: bool) -> bytes:
    """Return a message that asks for `count` frames of noise as long as they hear, serialised."""
    random = np.random.default_rng(1)
    sound = random.uniform(-0.3, 0.3, samples).astype("<f4")
    message = CompositeBatchRequest(model_id=model, batch_size=count, raw_audio=sound.tobytes())
    if faces:
        message.visual_frames = random.random((count, *FACE), np.float32).tobytes()
    return message.SerializeToString()


def run(port: int, clients: int, requests: int, message: bytes) -> dict:
    """Let clients ask at the same time, each of them again and again after a first request.

    Raises:
        RuntimeError: the server answers with an error.
    """
    seconds: list[float] = []
    errors: list[str] = []
    # all begin at once, and the time is taken before any of them does
    begins: list[float] = []
    start = threading.Barrier(clients, lambda: begins.append(time.perf_counter()))

    def ask(call: grpc.UnaryUnaryMultiCallable) -> None:
        begin = time.perf_counter()
        answer = CompositeBatchResponse.FromString(call(message, timeout=600))
        seconds.append(time.perf_counter() - begin)
        if not answer.success:
            raise RuntimeError(answer.error)

    def client(number: int) -> None:
        options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]  # its own connection
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = channel.unary_unary(METHOD)
            try:
                ask(call)
                seconds.clear()
                start.wait()
                for _ in range(requests):
                    ask(call)
            except Exception as error:
                errors.append(str(error))
                start.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(errors[0])
    return {"seconds": seconds, "together": time.perf_counter() - begins[0]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_clients")
    parser.add_argument("model")
    for name in ("port", "clients", "requests", "count", "samples"):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="N")
    parser.add_argument("--faces", action="store_true", help="send visual_frames")
    chosen = parser.parse_args()
    message = request(chosen.model, chosen.count, chosen.samples, chosen.faces)
    print(json.dumps(run(chosen.port, chosen.clients, chosen.requests, message)))
    return 0


if __name__ == "__main__":
    program(main)
