"""The stubs are those of the .proto files, which say what the Go server's clients know."""

import importlib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from serve.rpc.protos import build
from tests.serve.rpc.go_client import described

FOLDER = Path(build.__file__).parent
NAMES = ("compositing", "monolithic", "viseme")


def stub(name: str, root: Path | None = None) -> descriptor_pb2.FileDescriptorProto:
    """Return the descriptor in a stub, of this repository or built into a folder."""
    if root is None:
        module = importlib.import_module(f"serve.rpc.protos.{name}_pb2")
        serialized = module.DESCRIPTOR.serialized_pb
    else:
        # A process cannot have two files of the same name: read the literal.
        import ast

        tree = ast.parse((root / "serve/rpc/protos" / f"{name}_pb2.py").read_text())
        (serialized,) = (
            node.args[0].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile"
        )
    return descriptor_pb2.FileDescriptorProto.FromString(serialized)


@pytest.mark.parametrize("name", NAMES)
def test_the_stubs_are_current(name, tmp_path):
    build.build(tmp_path)
    built = stub(name, tmp_path)
    assert len(built.message_type) >= 2 and len(built.service) == 1
    assert stub(name) == built
    written = Path(f"serve/rpc/protos/{name}_pb2_grpc.py")
    for method in built.service[0].method:
        path = f"/{built.package}.{built.service[0].name}/{method.name}"
        assert path in (tmp_path / written).read_text()
        assert path in (FOLDER / written.name).read_text()


def fields(file: descriptor_pb2.FileDescriptorProto, message: str) -> list[tuple]:
    (found,) = (m for m in file.message_type if m.name == message)
    return [(f.number, f.name, f.type, f.label, f.proto3_optional) for f in found.field]


def test_the_messages_are_the_go_servers():
    known = described(Path(__file__).parent, "go_client.proto")
    ours, other = stub("monolithic"), stub("compositing")
    assert (ours.package, other.package) == ("monolithic", "compositing")
    assert (ours.syntax, other.syntax) == ("proto3", "proto3")
    compared = [message.name for message in known.message_type if message.name != "Nothing"]
    assert len(compared) == 11
    for name in compared:
        assert fields(ours, name) == fields(known, name)
    for name in ("CompositeBatchRequest", "CompositeBatchResponse"):
        assert fields(other, name) == fields(known, name)
    for name in ("ListModelsRequest", "GetModelStatsRequest", "HealthRequest"):
        assert fields(ours, name) == []
    methods = [
        (m.name, m.input_type, m.output_type, m.client_streaming or m.server_streaming)
        for m in ours.service[0].method
    ]
    assert methods == [
        (name, f".monolithic.{short}Request", f".monolithic.{short}Response", False)
        for name, short in (
            ("InferBatchComposite", "CompositeBatch"), ("ListModels", "ListModels"),
            ("LoadModel", "LoadModel"), ("UnloadModel", "UnloadModel"),
            ("GetModelStats", "GetModelStats"), ("Health", "Health"),
        )
    ]  # fmt: skip
    assert [m.name for m in other.service[0].method] == ["InferBatchComposite"]
