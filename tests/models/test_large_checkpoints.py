"""Checkpoints made to use up time or memory: each is refused in one line, in seconds."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
import torch

from models import AudioEncoder
from models.checkpoint import MAX_NAME, load, save
from models.safe_pickle import MAX_PICKLE
from tests.conftest import ROOT
from tests.models.test_checkpoint import assert_same, refusal


def test_mappings_that_share_mappings(tmp_path, audio_encoder):
    """Walked as a tree, these few bytes would be 500^3 mappings. The weights are still found."""
    weights = audio_encoder.state_dict()
    inner = {str(i): weights for i in range(500)}
    middle = {str(i): inner for i in range(500)}
    torch.save({str(i): middle for i in range(500)}, tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


def test_weights_reached_twice(tmp_path, audio_encoder):
    """The mapping "deep" is first met so deep that the one inside it is not visited."""
    weights = audio_encoder.state_dict()
    deep = {"ema": weights}
    torch.save({"a": {"b": {"c": deep}}, "z": deep}, tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


def test_a_mapping_that_contains_itself(tmp_path, audio_encoder):
    content = {"state_dict": audio_encoder.state_dict()}
    content["self"] = content
    torch.save(content, tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), content["state_dict"], AudioEncoder)


def test_more_entries_than_any_checkpoint(tmp_path):
    torch.save({"log": dict.fromkeys(range(100_000)), "w": torch.zeros(1)}, tmp_path / "x.pth")
    assert "has more than 100000 entries" in refusal(tmp_path / "x.pth")


def test_many_small_mappings(tmp_path):
    """Each could be a network, and is compared with ours."""
    weight = torch.zeros(1)
    content = {str(i): {"0.conv_block.0.weight": weight} for i in range(40_000)}
    torch.save(content, tmp_path / "x.pth")
    assert "an unknown network" in refusal(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_name_of_many_parts(tmp_path, suffix):
    path, content = tmp_path / f"x.{suffix}", {"a." * 40_000 + "b": torch.zeros(1)}
    torch.save(content, path) if suffix == "pth" else safetensors.torch.save_file(content, path)
    assert f"has a name of 80001 characters; expected at most {MAX_NAME}" in refusal(path)


def test_prefixes_of_many_parts(tmp_path, audio_encoder):
    """The prefix is removed at once, not part by part."""
    weights = audio_encoder.state_dict()
    start = "m." * 130
    save_as = {start + name: tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(save_as, tmp_path / "a.safetensors")
    assert_same(load(tmp_path / "a.safetensors"), weights, AudioEncoder)


def test_safetensors_of_many_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(i): entry for i in range(150_000)}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "more names than expected: at most 100000 in 16 MB" in refusal(
        tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize("head", [b"\2\0\0\0\0\0\0\0{}", b"PK\3\4", b"\x80\2"])
def test_a_sparse_file(tmp_path, head):
    """32 GB of zeros, which take no place."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(head)
    os.truncate(path, 32 << 30)
    assert "has 32.00 GiB; expected at most 2 GiB" in refusal(path)


def test_a_compressed_tensor(tmp_path):
    """An entry says how large it is uncompressed, which PyTorch would allocate first."""
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    size = (4000).to_bytes(4, "little")
    start = content.rindex(b"PK\1\2", 0, content.index(b"x/data/0", content.index(b"PK\1\2")))
    assert content[start + 24 : start + 28] == size
    path.write_bytes(content[: start + 24] + b"\xf0\xff\xff\xff" + content[start + 28 :])
    assert "has 4.00 GiB uncompressed; expected at most 2 GiB" in refusal(path)


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/DATA.PKL"])
def test_a_large_pickle(tmp_path, name):
    """Ten million marks, one byte each, would take 7 s and 1 GB."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"\x80\2" + b"(" * 10_000_000)
        archive.writestr("archive/version", b"3\n")
    message = refusal(tmp_path / "x.pth")
    assert "has 10000002 bytes of names" in message and f"at most {MAX_PICKLE}" in message


def test_an_archive_of_many_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2}.")
    content = (tmp_path / "x.pth").read_bytes()
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    directory = content[start:end] * 300_000
    trailer = bytearray(content[end:])
    trailer[12:16] = len(directory).to_bytes(4, "little")
    (tmp_path / "x.pth").write_bytes(content[:start] + directory + trailer)
    assert f"its archive's directory has {len(directory)} bytes" in refusal(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bytearray_of_any_size(tmp_path, zipped):
    """`bytearray(10**11)` in 60 bytes."""

    class Zeros:
        def __reduce__(self):
            return bytearray, (10**11,)

    torch.save({"w": Zeros()}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert "contains a bytearray, which may have any size" in refusal(tmp_path / "x.pth")


def test_keys_whose_text_is_endless(tmp_path):
    """A tuple of itself twice, 20 times over, is short in a pickle and a million words as text."""
    key: tuple = ()
    for _ in range(20):
        key = (key, key)
    torch.save({key: 1, "epoch" * 100: 2}, tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth")
    assert message.endswith("has no weights: its entries are " + "epoch" * 10)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices(tmp_path, make):
    make(tmp_path / "x.pth")
    assert "is a pipe or a device" in refusal(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_too_little_memory(tmp_path, name):
    path = tmp_path / name
    content = {"w": torch.zeros(100_000_000, dtype=torch.uint8)}
    torch.save(content, path) if name == "x.pth" else safetensors.torch.save_file(content, path)
    # In a process of its own, because this one may have freed as much memory and use it again.
    code = (
        "import resource, sys\n"
        "from models import checkpoint\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20), used + (50 << 20)))\n"
        "try:\n"
        "    checkpoint.load(sys.argv[1])\n"
        "except checkpoint.CheckpointError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{path}: there is too little memory to read it\n", done.stderr


def test_a_checkpoint_without_checksums(tmp_path, audio_encoder):
    """`torch.serialization.set_crc32_options` can leave them out."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(audio_encoder.state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(load(tmp_path / "a.pth"), audio_encoder.state_dict(), AudioEncoder)


def test_a_file_shortened_while_it_is_read(tmp_path, audio_encoder, monkeypatch):
    """A mapped file would end the process with SIGBUS."""
    path = tmp_path / "a.safetensors"
    save(audio_encoder, path)
    loads = safetensors.torch.load

    def shorten(data):
        os.truncate(path, 1000)
        return loads(data)

    monkeypatch.setattr(safetensors.torch, "load", shorten)
    assert_same(load(path), audio_encoder.state_dict(), AudioEncoder)
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"c" + b"m" * 1_000_000 + b"\nn\n.", "a class whose name has 1000002 characters"),
        (
            b"X" + (1_000_000).to_bytes(4, "little") + b"f" * 1_000_000 + b")R.",
            "has a text of 1000000 characters",
        ),
        (b"(" * 1_000_000 + b".", "has more than 500000 values beside the weights"),
    ],
    ids=["class", "function", "marks"],
)
def test_what_takes_pytorch_minutes(tmp_path, pickled, message, zipped):
    """It searches its error messages for words, in a time that grows with the square."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\2" + pickled)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\2" + pickled)
            archive.writestr("x/version", b"3\n")
    assert message in refusal(path)
