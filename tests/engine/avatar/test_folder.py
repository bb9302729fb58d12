"""Avatar folders from strangers: links, FIFOs and devices, large files, other formats of images,
and contents of files in error lines."""

import json
import os
import random
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import engine.avatar.avatar
import engine.avatar.boxes
import engine.avatar.folder
import engine.avatar.frames
from engine import Avatar, InputError
from engine.avatar.layouts import find_networks
from engine.files import check_output
from tests.engine.files import landmarks, write_video

SIZE = 48
BOX = [5, 5, 15, 15]
COUNT = 3
SECRET = "hunter2"


pytestmark = pytest.mark.usefixtures("limits")


def picture(number: int = 0) -> Image.Image:
    shades = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return Image.fromarray(shades)


def write(path: Path, data: str | bytes | object = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data))


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(COUNT):
        picture(number).save(folder / f"{number}.png")


# The files of networks are empty, because `Avatar.load` does not open them.
RECORD = {
    "name": "native",
    "fps": 25,
    "frames": "frames",
    "boxes": "boxes.json",
    "generator": "generator.onnx",
    "audio_encoder": "audio_encoder.onnx",
}


def native(root: Path) -> Path:
    images(root / "frames")
    write(root / "avatar.json", RECORD)
    write(root / "boxes.json", [BOX] * COUNT)
    for name in ("generator.onnx", "generator.plan", "generator.json", "audio_encoder.onnx"):
        write(root / name)
    return root


def synctalk(root: Path) -> Path:
    images(root / "full_body_img")
    for number in range(COUNT):
        write(root / "landmarks" / f"{number}.lms", landmarks(BOX))
    write(root / "checkpoint" / "5.pth")
    write(root / "models" / "audio_encoder.onnx")
    return root


def package(root: Path) -> Path:
    write(root / "dataset_manifest.json", {"version": "2.0"})
    write_video(root / "full_body_video.mp4", np.stack([np.asarray(picture())] * COUNT))
    rects = {str(number): {"rect": BOX} for number in range(COUNT)}
    write(root / "cache" / "crop_rectangles.json", rects)
    write(root / "models" / "generator.onnx")
    write(root / "models" / "audio_encoder.onnx")
    return root


def cpu_server(root: Path) -> Path:
    images(root / "frames")
    write(root / "crop_rects.json", [BOX] * COUNT)
    write(root / "checkpoint" / "model_best.onnx")
    write(root / "models" / "audio_encoder.onnx")
    return root


# All parts of all layouts that can be links.
PARTS = {
    native: "avatar.json frames frames/2.png boxes.json generator.onnx generator.plan generator.json audio_encoder.onnx",
    synctalk: "full_body_img full_body_img/2.png landmarks landmarks/2.lms checkpoint checkpoint/5.pth models models/audio_encoder.onnx",
    package: "dataset_manifest.json full_body_video.mp4 cache cache/crop_rectangles.json models models/generator.onnx models/audio_encoder.onnx",
    cpu_server: "frames frames/2.png crop_rects.json checkpoint checkpoint/model_best.onnx models models/audio_encoder.onnx",
}  # fmt: skip
CASES = [
    pytest.param(make, part, id=f"{make.__name__}-{part}")
    for make, parts in PARTS.items()
    for part in parts.split()
]
FILES = [case for case in CASES if "." in case.values[1]]


def build(make, root: Path) -> Path:
    if make is package:
        pytest.importorskip("av", reason="GPU hosts have none")
    return make(root)


def refused(root: Path, **options) -> str:
    """Return the error line of loading a folder."""
    with pytest.raises(InputError) as caught:
        Avatar.load(root, **options)
    line = str(caught.value)
    assert len(line) <= 1000 and line.isprintable()
    return line


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "part"), CASES)
def test_a_link_out_of_the_folder(tmp_path, make, part):
    root = build(make, tmp_path / "avatar")
    frames, boxes, _ = Avatar.load(root).batch([2])
    shutil.move(root / part, tmp_path / "elsewhere")
    (root / part).symlink_to(tmp_path / "elsewhere")
    line = refused(root)
    assert "leads out of the avatar folder through a link; expected a file inside it" in line
    assert str(root / part) in line and "elsewhere" not in line
    followed = Avatar.load(root, follow_links=True).batch([2])
    assert torch.equal(followed[0], frames) and torch.equal(followed[1], boxes)


@pytest.mark.parametrize(("make", "part"), CASES)
def test_a_link_inside_the_folder(tmp_path, make, part):
    root = build(make, tmp_path / "avatar")
    frames, _, _ = Avatar.load(root).batch([2])
    (root / "other").mkdir()
    shutil.move(root / part, root / "other" / "elsewhere")
    (root / part).symlink_to(os.path.relpath(root / "other" / "elsewhere", (root / part).parent))
    assert torch.equal(Avatar.load(root).batch([2])[0], frames)


def test_networks_for_the_build_are_inside_the_folder_too(tmp_path):
    root = native(tmp_path / "avatar")
    assert find_networks(root)["generator"] == root / "generator.onnx"
    shutil.move(root / "generator.onnx", tmp_path / "elsewhere.onnx")
    (root / "generator.onnx").symlink_to("../elsewhere.onnx")
    with pytest.raises(InputError, match="generator.onnx leads out of the avatar folder"):
        find_networks(root)
    given = root / "generator.onnx"  # whoever names a file may link it
    assert find_networks(root, generator=given)["generator"] == given


def test_the_folder_itself_may_be_a_link(tmp_path, monkeypatch):
    native(tmp_path / "avatar")
    (tmp_path / "link").symlink_to("avatar")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "link", Path("link"), Path("link/../link/")):
        assert len(Avatar.load(path).batch([0, 1, 2])[0]) == COUNT


def test_a_folder_whose_name_begins_the_same(tmp_path):
    """/avatar-2 is not inside /avatar."""
    root = native(tmp_path / "avatar")
    shutil.move(root / "boxes.json", native(tmp_path / "avatar-2") / "boxes.json")
    (root / "boxes.json").symlink_to("../avatar-2/boxes.json")
    assert "leads out of the avatar folder" in refused(root)


def test_a_frame_that_becomes_a_link(tmp_path):
    root = native(tmp_path / "avatar")
    avatar = Avatar.load(root)
    picture(9).save(tmp_path / "private.png")
    (root / "frames" / "1.png").unlink()
    (root / "frames" / "1.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(InputError, match="1.png leads out of the avatar folder"):
        avatar.batch([1])
    (root / "frames").rename(tmp_path / "frames")
    (root / "frames").symlink_to(tmp_path / "frames")
    with pytest.raises(InputError, match="2.png leads out of the avatar folder"):
        avatar.batch([2])


def test_paths_of_avatar_json_stay_inside_even_if_links_are_followed(tmp_path):
    root = native(tmp_path / "avatar")
    write(tmp_path / "boxes.json", [BOX] * COUNT)
    for path in ("../boxes.json", "frames/../../boxes.json", str(tmp_path / "boxes.json")):
        write(root / "avatar.json", {**RECORD, "boxes": path})
        assert "expected a path inside the avatar folder" in refused(root, follow_links=True)
    for path in ("frames/../boxes.json", "./boxes.json", str(root / "boxes.json")):
        write(root / "avatar.json", {**RECORD, "boxes": path})
        assert len(Avatar.load(root)) == COUNT


@pytest.mark.parametrize(("make", "part"), CASES)
@pytest.mark.parametrize("follow", [False, True])
def test_circular_links(tmp_path, make, part, follow):
    root = build(make, tmp_path / "avatar")
    shutil.move(root / part, tmp_path / "elsewhere")
    (root / part).symlink_to(Path(part).name)
    if part in ("generator.plan", "generator.json"):  # as if there were none
        Avatar.load(root, follow_links=follow)
    elif part == "dataset_manifest.json":
        assert "is not an avatar folder" in refused(root, follow_links=follow)
    else:
        refused(root, follow_links=follow)


def test_the_folder_is_a_circular_link(tmp_path):
    (tmp_path / "avatar").symlink_to("avatar")
    line = refused(tmp_path / "avatar")
    assert line.endswith("avatar cannot be opened: Too many levels of symbolic links")
    write(tmp_path / "out.mp4")
    check_output(tmp_path / "out.mp4", tmp_path / "speech.wav", tmp_path / "avatar")


# --- what is no file -----------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "part"), FILES)
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a folder"])
def test_what_is_no_file(tmp_path, monkeypatch, make, part, kind):
    root = build(make, tmp_path / "avatar")
    path = root / part
    path.unlink()
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    if kind == "a folder" and ("boxes" in part or "rect" in part or path.suffix == ".mp4"):
        assert "has no numbered files" in refused(root)
    elif path.suffix in (".onnx", ".pth"):
        assert "is not a file" in refused(root, follow_links=True)
    else:
        line = refused(root, follow_links=True)
        assert line == f"{path} is {kind}; expected a file"


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "part", "limit"),
    [
        (native, "avatar.json", 1_000_000),
        (native, "boxes.json", 16_000_000),
        (package, "dataset_manifest.json", 1_000_000),
        (package, "cache/crop_rectangles.json", 16_000_000),
        (cpu_server, "crop_rects.json", 16_000_000),
        (synctalk, "landmarks/1.lms", 16_000),
    ],
)
def test_large_files(tmp_path, make, part, limit):
    root = build(make, tmp_path / "avatar")
    data = (root / part).read_bytes()
    (root / part).write_bytes(data + b" " * (limit - len(data)))
    assert len(Avatar.load(root)) == COUNT
    os.truncate(root / part, 10**12)
    assert f"has {10**12} bytes; expected at most {limit}" in refused(root)


def test_large_images(tmp_path):
    root = native(tmp_path / "avatar")
    os.truncate(root / "frames" / "1.png", 10**10)
    assert "1.png has 10000000000 bytes; expected at most 256000000" in refused(root)


def test_a_file_that_is_larger_than_it_says(tmp_path):
    root = synctalk(tmp_path / "avatar")
    (root / "landmarks" / "1.lms").unlink()
    (root / "landmarks" / "1.lms").symlink_to("/proc/self/smaps")  # of 0 bytes
    line = refused(root, follow_links=True)
    assert "1.lms has 16001 bytes; expected at most 16000" in line


def test_the_number_of_frames_and_boxes_is_limited(tmp_path, monkeypatch):
    root = cpu_server(tmp_path / "images")
    monkeypatch.setattr(engine.avatar.folder, "MAX_FILES", COUNT)
    assert len(Avatar.load(root)) == COUNT
    write(root / "frames" / "notes.txt")
    assert f"frames has more than {COUNT} files; expected at most" in refused(root)
    (root / "frames" / "notes.txt").unlink()
    monkeypatch.setattr(engine.avatar.boxes, "MAX_FILES", COUNT)
    assert len(Avatar.load(root)) == COUNT
    write(root / "crop_rects.json", [BOX] * (COUNT + 1))
    assert f"crop_rects.json has {COUNT + 1} boxes; expected at most {COUNT}" in refused(root)


def test_the_length_of_a_video_is_limited(tmp_path, monkeypatch):
    root = build(package, tmp_path / "video")
    monkeypatch.setattr(engine.avatar.avatar, "MAX_FILES", COUNT)
    assert len(Avatar.load(root)) == COUNT
    monkeypatch.setattr(engine.avatar.avatar, "MAX_FILES", COUNT - 1)
    assert f"has {COUNT} frames; expected at most {COUNT - 1}" in refused(root)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"0":' * 10**6, "[" + "9" * 15_000_000 + "]", "[1." + "0" * 15_000_000 + "1]", "[" + "[]," * 2_000_000 + "[]]", '["' + "x" * 15_000_000 + '"]', '{"' + "1" * 15_000_000 + '":[0,0,9,9]}'],
    ids=["lists", "objects", "digits", "decimals", "empty lists", "text", "a key"],
)  # fmt: skip
def test_invalid_json_of_up_to_16_mb(tmp_path, text):
    root = cpu_server(tmp_path / "avatar")
    write(root / "crop_rects.json", text)
    assert "crop_rects.json" in refused(root)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.png", "0.jpg"])
@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "AVIF", "JPEG2000", "DDS", "TGA", "PCX", "ICO", "SGI", "IM", "PPM", "BMP", "EPS"])  # fmt: skip
def test_other_formats_are_refused(tmp_path, format, name):
    root = native(tmp_path / "avatar")
    (root / "frames" / "0.png").unlink()
    try:
        picture().save(root / "frames" / name, format)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow has no {format}")
    with Image.open(root / "frames" / name) as image:
        assert image.size == (SIZE, SIZE)  # Pillow would read it
    assert f"{name} cannot be read as an image (JPEG or PNG)" in refused(root)


def test_frames_of_too_many_pixels(tmp_path):
    for size in ((8192, 8192), (4096, 4097), (8192, 2049), (8193, 10)):
        root = native(tmp_path / f"{size}")
        for path in (root / "frames").iterdir():
            Image.new("1", size).save(path)
        line = refused(root)
        assert f"frames of {size[0]} x {size[1]}; expected at most 8192 pixels a side" in line
        assert "16777216 in all (4096 x 4096)" in line
    for size in ((4096, 4096), (8192, 2048)):
        root = native(tmp_path / f"{size}")
        for path in (root / "frames").iterdir():
            Image.new("1", size).save(path)
        assert Avatar.load(root).width == size[0]


def test_a_frame_that_becomes_large(tmp_path, monkeypatch):
    """It is not decoded, which could take any amount of memory."""
    root = native(tmp_path / "avatar")
    avatar = Avatar.load(root)
    monkeypatch.setattr(engine.avatar.frames, "_rgb", lambda _: pytest.fail("it is decoded"))
    for size in ((2000, 2000), (SIZE, SIZE + 1)):
        Image.new("1", size).save(root / "frames" / "1.png")
        with pytest.raises(InputError, match="1.png changed its size while it was in use"):
            avatar.batch([1])


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_images(tmp_path, format):
    """Whatever Pillow raises is one line."""
    root = native(tmp_path / "avatar")
    path = root / "frames" / "0.png"
    picture().save(
        path, format, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    )
    right, chance, refusals = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        data = bytearray(right)
        for _ in range(chance.choice([1, 1, 2, 5])):
            data[chance.randrange(min(len(data), 700))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
        try:
            Avatar.load(root).batch([0])
        except InputError as error:
            refusals += 1
            assert "0.png" in str(error) or "the size of frame 0" in str(error)
    assert refusals > 50


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, AttributeError, KeyError, MemoryError])  # fmt: skip
def test_exceptions_of_decoders(tmp_path, monkeypatch, error):
    root = native(tmp_path / "avatar")
    avatar = Avatar.load(root)

    def damaged(*_, **__):
        raise error("a\nb")

    monkeypatch.setattr(Image.Image, "convert", damaged)
    with pytest.raises(InputError, match="1.png cannot be read as an image"):
        avatar.batch([1])
    monkeypatch.setattr(Image, "open", damaged)
    assert "0.png cannot be read as an image" in refused(root)


# --- error lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"db_password": SECRET, "user": [1, 2, 3, 4, SECRET]}),
        json.dumps({SECRET: {"rect": SECRET}}),
        json.dumps({"0": SECRET}),
        json.dumps([SECRET] * 4),
        json.dumps([[SECRET] * 4] * 4),
        json.dumps(SECRET),
        json.dumps([BOX, SECRET]),
        json.dumps([BOX, [0, 0, 9, SECRET]]),
        json.dumps([BOX, {"rect": [[[SECRET]]]}]),
        json.dumps([BOX, {"rect": {SECRET: 1}}]),
        f"db_password = {SECRET}",
        f'"{SECRET}',
        f"{{{SECRET}: 1}}",
    ],
)
def test_errors_do_not_show_contents(tmp_path, text):
    root = cpu_server(tmp_path / "avatar")
    write(root / "crop_rects.json", text)
    line = refused(root)
    assert "crop_rects.json" in line and SECRET not in line and "db_password" not in line
    root = synctalk(tmp_path / "landmarks")
    write(root / "landmarks" / "1.lms", text)
    assert "1.lms does not have 110 lines" in refused(root)
    assert SECRET not in refused(root)
    root = native(tmp_path / "native")
    write(root / "avatar.json", text)
    assert SECRET not in refused(root)


def test_long_names_with_control_characters(tmp_path):
    root = tmp_path
    for letter in "abc":
        root = root / f"\n\x1b[31m\u202e{letter * 200}"
    native(root)
    (root / "boxes.json").unlink()
    line = refused(root)
    assert line.endswith("boxes.json does not exist")
    assert "\\n\\x1b[31m\\u202eaaaa" in line


@pytest.mark.parametrize("key", ["frames", "boxes", "generator", "audio_encoder"])
@pytest.mark.parametrize("value", ["\ud800", "a\0b", "x" * 300, "x/" * 3000, "a\n\x1b[2J/b", "", 5, None, [], {}])  # fmt: skip
def test_paths_that_are_no_names_of_files(tmp_path, key, value):
    root = native(tmp_path / "avatar")
    write(root / "avatar.json", {**RECORD, key: value})
    assert str(root / "avatar.json") in (line := refused(root)) or "does not exist" in line


@pytest.mark.parametrize("path", ["\ud800", "a\0b", "x" * 300, "x/" * 3000, "a\n\x1b[2J"])
def test_folders_that_are_no_names_of_files(tmp_path, path):
    line = refused(tmp_path / path)
    assert "does not exist" in line or "cannot be opened: File name too long" in line
