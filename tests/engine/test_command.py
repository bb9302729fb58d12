"""What the commands share."""

import pytest

from engine.files import write_whole


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("before")

    def fail(partial):
        partial.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda partial: partial.write_text(f"as {partial.suffix}"))
    assert path.read_text() == "as .json"
    assert list(tmp_path.iterdir()) == [path]
