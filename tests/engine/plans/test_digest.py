"""Hashes of ONNX files with weights in other files, which must be in the same folder."""

import hashlib
import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engine.errors import InputError
from engine.plans.digest import source_sha256


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for the network, and beside it a file that is none of its business."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "network" / "inner").mkdir(parents=True)
    return tmp_path / "network"


def network(folder: Path, *locations: str) -> Path:
    """Write a graph whose weights are in these files."""
    weights = []
    for number, location in enumerate(locations):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        weights.append(tensor)
    graph = helper.make_graph([], "g", [], [], weights)
    path = folder / "a.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_weights_in_the_folder(folder):
    (folder / "w").write_bytes(b"one")
    (folder / "inner" / "v").write_bytes(b"two")
    (folder / "link").symlink_to("w")
    path = network(folder, "w", "inner/v", "link", "absent")
    expected = hashlib.sha256(path.read_bytes() + b"two" + b"one" + b"one").hexdigest()
    assert source_sha256(path) == expected


@pytest.mark.parametrize("location", ["../secret", "inner/../../secret", "{}/secret", "a\0b", "."])
def test_weights_elsewhere(folder, location):
    with pytest.raises(InputError, match="a.onnx keeps its weights in|is not a regular") as caught:
        source_sha256(network(folder, location.format(folder.parent)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("../secret"), "expected a file in its folder"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a file in its folder"),
        (lambda path: path.symlink_to(path), "expected a file in its folder|cannot|loop"),
        (os.mkfifo, "w is not a regular file"),
        (Path.mkdir, "w is not a regular file"),
    ],
    ids=["link", "device", "loop", "pipe", "folder"],
)
def test_weights_that_are_no_file(folder, make, message):
    make(folder / "w")
    with pytest.raises(InputError, match=message):
        source_sha256(network(folder, "w"))


def test_a_network_that_is_a_pipe(folder):
    os.mkfifo(folder / "a.onnx")
    with pytest.raises(InputError, match="a.onnx is not a regular file"):
        source_sha256(folder / "a.onnx")


def test_a_file_of_many_chunks(folder):
    content = bytes(range(256)) * 10_000
    (folder / "a.pth").write_bytes(content)
    assert source_sha256(folder / "a.pth") == hashlib.sha256(content).hexdigest()


def test_onnx_refuses_the_same(folder):
    """The rules are those of the library that reads the weights."""
    with pytest.raises(onnx.checker.ValidationError):
        onnx.load(network(folder, "../secret"))
