"""A client of the Go server: its messages come from go_client.proto, and none of ours."""

import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FACE_BYTES = 4 * 6 * 320 * 320
SERVICE, OTHER = "monolithic.MonolithicService", "compositing.CompositingService"
ANSWERS = {
    "InferBatchComposite": "CompositeBatchResponse",
    "ListModels": "ListModelsResponse",
    "LoadModel": "LoadModelResponse",
    "UnloadModel": "UnloadModelResponse",
    "GetModelStats": "GetModelStatsResponse",
    "Health": "HealthResponse",
}
REQUESTS = {
    "InferBatchComposite": "CompositeBatchRequest",
    "LoadModel": "LoadModelRequest",
    "UnloadModel": "UnloadModelRequest",
}


def described(folder: Path, name: str) -> descriptor_pb2.FileDescriptorProto:
    """Return what protoc says of a .proto file."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", name]) == 0
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return file


class Messages:
    """The classes of messages, in a pool of their own: `Messages().CompositeBatchRequest`."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._pool.Add(described(Path(__file__).parent, "go_client.proto"))

    def __getattr__(self, name: str) -> Any:
        found = self._pool.FindMessageTypeByName(f"monolithic.{name}")
        return message_factory.GetMessageClass(found)


class GoClient:
    """Calls a server on this machine. A context manager.

    Attributes:
        raw: calls a method with bytes, and returns bytes.
    """

    def __init__(self, port: int, messages: Messages):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        options.append(("grpc.use_local_subchannel_pool", 1))  # a connection of its own
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
        self.messages = messages

    def raw(self, method: str, request: bytes, service: str = SERVICE) -> bytes:
        return self.channel.unary_unary(f"/{service}/{method}")(request, timeout=60)

    def begin(self, **fields: Any) -> Any:
        """Begin an InferBatchComposite, and return its future."""
        message = self.messages.CompositeBatchRequest(**fields)
        call = self.channel.unary_unary(f"/{SERVICE}/InferBatchComposite")
        return call.future(message.SerializeToString(), timeout=60)

    def infer(self, service: str = SERVICE, **fields: Any) -> Any:
        return self.call("InferBatchComposite", service, **fields)

    def call(self, method: str, service: str = SERVICE, **fields: Any) -> Any:
        request = getattr(self.messages, REQUESTS.get(method, "Nothing"))(**fields)
        answer = self.raw(method, request.SerializeToString(), service)
        return getattr(self.messages, ANSWERS[method]).FromString(answer)

    def __enter__(self) -> "GoClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
