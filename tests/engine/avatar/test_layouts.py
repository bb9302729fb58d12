"""Which files of a folder count, which checkpoint is the newest, frame rates, and long values."""

import json
import re
import shutil
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from engine import Avatar, InputError
from engine.avatar.layouts import find_networks, newest
from engine.errors import shortened
from tests.engine.files import Folders

MACOS = b"\0\5\x16\7\0\2\0\0Mac OS X        "  # the beginning of AppleDouble files ("._NAME")


def add_what_systems_leave(folder: Path) -> None:
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(MACOS)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".0.png", ".7.lms", "._9999.pth"):
        (folder / name).write_bytes(MACOS)


def test_system_files_are_ignored(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    for folder in (root, root / "full_body_img", root / "landmarks", root / "checkpoint"):
        add_what_systems_leave(folder)
    avatar = Avatar.load(root, audio_encoder=networks["audio_encoder"])
    assert len(avatar) == 4 and avatar.generator.name == "195.pth"
    assert torch.equal(avatar.batch([3])[0][0], torch.from_numpy(own.frames[3]))


def test_a_checkpoint_that_only_macos_left(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    (root / "checkpoint" / "195.pth").rename(root / "checkpoint" / "._195.pth")
    (root / "checkpoint" / "95.pth").unlink()
    with pytest.raises(InputError, match="has no generator"):
        Avatar.load(root, audio_encoder=networks["audio_encoder"])


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["epoch_9_loss_0.0123", "epoch_100_loss_0.0045"], "epoch_100_loss_0.0045"),
        (["195", "95", "9"], "195"),
        (["best"], "best"),
        (["model_best"], "model_best"),
        (["latest"], "latest"),
        (["0.0123"], "0.0123"),
        (["195", "best", "latest", "model_best"], "195"),
        (["5", "epoch_7", "6"], "epoch_7"),
        (["unet_9_0.5", "unet_10_0.25"], "unet_10_0.25"),
        (["0.5_10", "0.75_9"], "0.5_10"),
        (["loss_0.1-Epoch=12", "loss_0.2-Epoch=9"], "loss_0.1-Epoch=12"),
        (["ep9", "ep10"], "ep10"),
        (["step-9000", "step-12000", "iter_500"], "step-12000"),
        (["epoch=9-step=9000", "epoch=10-step=10"], "epoch=10-step=10"),
        (["sleep9_epochs_1", "sleep1_epochs_2"], "sleep1_epochs_2"),
        (["v1.2_iterations 30", "v1.3_iterations 4"], "v1.2_iterations 30"),
        (["9_of_10", "8_of_10"], "9_of_10"),
    ],
)  # fmt: skip
def test_the_newest_checkpoint(names, expected):
    for order in (names, names[::-1]):
        assert newest(tuple(Path(f"{name}.pth") for name in order)).stem == expected


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["best", "latest"], "'best.pth', 'latest.pth'"),
        (["model_best", "generator"], "'generator.pth', 'model_best.pth'"),
        (["195", "optimizer_195", "9"], "'195.pth', 'optimizer_195.pth'"),
        (["0195", "195"], "'0195.pth', '195.pth'"),
        (["epoch_9", "step_8000", "best"], "'epoch_9.pth', 'step_8000.pth'"),
        (["unet_328_1", "unet_328_2"], "'unet_328_1.pth', 'unet_328_2.pth'"),
        (["loss_0.5", "loss_0.25"], "'loss_0.25.pth', 'loss_0.5.pth'"),
        ([f"run_{chr(97 + n)}" for n in range(20)], "'run_a.pth', .*'run_h.pth' and 12 more"),
        (["9" * 200, "8" * 200], "'8{30,80}[.]{3}"),
    ],
)  # fmt: skip
def test_ambiguous_checkpoint_names(names, listed):
    with pytest.raises(InputError, match=rf"checkpoint: .*not tell .*newest: {listed}.*--generator FILE") as caught:  # fmt: skip
        newest(tuple(Path("a/checkpoint") / f"{name}.pth" for name in names))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_checkpoint_names_do_not_matter_if_the_file_is_given(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    for name in ("195", "95"):
        path = root / "checkpoint" / f"{name}.pth"
        path.rename(path.with_stem(f"model_{'best' if name == '195' else 'last'}"))
    encoder = networks["audio_encoder"]
    with pytest.raises(InputError, match="'model_best.pth', 'model_last.pth'"):
        Avatar.load(root, audio_encoder=encoder)
    best = root / "checkpoint" / "model_best.pth"
    assert Avatar.load(root, generator=best, audio_encoder=encoder).generator == best
    assert Avatar.load(root, networks=False).generator is None  # to be trained
    assert find_networks(root, generator=best, audio_encoder=encoder)["generator"] == best


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "expected"),
    [("25", 25), (" 29.97 ", Fraction(30000, 1001)), ("+24", 24), ("24000/1001", Fraction(24000, 1001)), ("23.976023976023978", Fraction(24000, 1001)), ("1", 1), ("240/1", 240)],
)  # fmt: skip
def test_a_rate_as_text(own, fps, expected):
    assert Avatar.load(own.native(fps=fps)).fps == expected


@pytest.mark.parametrize(
    "text",
    ['"1e999999999"', '"1e-999999999"', "1e999999999", "1e308", "1" * 4300, f'"{"1" * 100000}"', f'"25/{"1" * 5000}"', f'"25.{"0" * 100000}"', '"25/0"', '"-25"', '"1_0"', '"inf"', '"nan"', "true", "null", "[25]", '"25 fps"', "0.99", "240.5"],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["native", "package"])
def test_invalid_rates(own, layout, text):
    """Exponents are not computed, because 10**999999999 would take all day."""
    root = getattr(own, layout)()
    path = root / {"native": "avatar.json", "package": "dataset_manifest.json"}[layout]
    record = json.loads(path.read_text())
    record["fps"] = "RATE"
    path.write_text(json.dumps(record).replace('"RATE"', text))
    with pytest.raises(InputError, match=r"fps is .*; expected a number from 1 to 240") as caught:
        Avatar.load(root)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def rate_warnings(root: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Avatar.load(root, networks=False)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("fps", "said"),
    [
        (25, False),
        ("25/1", False),
        (24.98, False),  # a length that was rounded
        (25.2, False),
        (24, True),
        (30, True),
        (23.976, True),
        (50, True),
    ],
)
def test_a_rate_that_is_not_the_videos(own, fps, said):
    pytest.importorskip("av", reason="GPU hosts have none")
    root = own.native(video=True, fps=fps)
    found = rate_warnings(root)
    assert bool(found) == said
    if said:
        assert re.fullmatch(f"avatar 'native' is given {fps} frames a second, but .*frames.mp4 has 25; {fps} are used", found[0])  # fmt: skip


@pytest.mark.parametrize(("fps", "said"), [(25, False), (24.98, True), (25.01, False)])
def test_a_small_rate_difference_matters_in_a_long_video(tmp_path, networks, small, fps, said):
    """24.98 moves the last of 1500 frames by 1.2 frames, which cannot be a rounded length."""
    pytest.importorskip("av", reason="GPU hosts have none")
    many = small[0][:1, :32, :32].repeat(1500, axis=0)
    boxes = [[0, 0, 9, 9]] * len(many)
    root = Folders(tmp_path, many, boxes, networks).native(video=True, fps=fps)
    assert bool(rate_warnings(root)) == said


def test_the_manifests_rate_is_compared_too(own):
    pytest.importorskip("av", reason="GPU hosts have none")
    root = own.package()
    assert not rate_warnings(root)
    manifest = root / "dataset_manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fps": 30}))
    with pytest.warns(UserWarning, match="is given 30 frames a second"):
        assert Avatar.load(root).fps == 30
    shutil.rmtree(root)
    assert not rate_warnings(own.package(video=False))  # images have no rate of their own


# --- long and invalid values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("boxes", "x" * 10**6), ("frames", ["x" * 10**6]), ("generator", [[["x" * 1000] * 10] * 10] * 10), ("fps", "2" * 10**6), ("frames", "../" + "y" * 10**6), ("boxes", "\ud800"), ("boxes", "a\nb/../../..")],
)  # fmt: skip
def test_error_lines_are_short(own, key, value):
    root = own.native()
    record = json.loads((root / "avatar.json").read_text())
    (root / "avatar.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(InputError) as caught:
        Avatar.load(root)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "box",
    ["1" * 400, "-" + "1" * 400, "1" * 4300, "1e999", "-1e999", "NaN", '"' + "x" * 10**6 + '"', "16777216", "true", "[" * 50 + "]" * 50],
)  # fmt: skip
def test_invalid_coordinates(own, box):
    root = own.native()
    text = json.dumps([[20, 30, 120, 130], [20, 30, 120, "BOX"]] * 2)
    (root / "boxes.json").write_text(text.replace('"BOX"', box))
    with pytest.raises(InputError, match=r"the box of frame 1 is .*; expected 4 numbers") as caught:  # fmt: skip
        Avatar.load(root)
    assert len(str(caught.value)) < 400


def test_circular_links(own):
    root = own.native()
    (root / "boxes.json").unlink()
    (root / "boxes.json").symlink_to("other.json")
    (root / "other.json").symlink_to("boxes.json")
    with pytest.raises(InputError, match="boxes"):
        Avatar.load(root)


def test_a_long_name(own):
    root = own.native()
    record = json.loads((root / "avatar.json").read_text())
    (root / "avatar.json").write_text(json.dumps({**record, "name": "n" * 200}))
    (root / "boxes.json").write_text(json.dumps([[20, 30, 120, 130]] * 3))
    with pytest.warns(UserWarning, match="4 frames and 3 boxes") as caught:
        Avatar.load(root)
    assert all(len(str(warning.message)) < 400 for warning in caught)
    for name in ("n" * 201, ["n"], {}):
        (root / "avatar.json").write_text(json.dumps({**record, "name": name}))
        with pytest.raises(InputError, match=r"name is .*; expected text of at most 200 char"):
            Avatar.load(root)


def test_shortened():
    assert shortened("frames") == "'frames'"
    assert shortened([0, 0.5, "9", None]) == "[0, 0.5, '9', None]"
    assert shortened({"rect": [1, 2]}) == "{'rect': [1, 2]}"
    for value in (
        "x" * 10**6,
        10**4000,
        [list(range(1000))] * 1000,
        dict.fromkeys(range(99), "x" * 99),
    ):
        assert len(shortened(value)) <= 120 and "..." in shortened(value)
    assert len(shortened("x" * 99, limit=20)) == 20
