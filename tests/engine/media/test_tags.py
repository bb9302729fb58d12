"""Tags that are not in UTF-8, as Windows tools write them."""

import numpy as np
import pytest
from scipy.io import wavfile

from engine.media.speech import read_speech
from engine.media.video import Video
from tests.engine.videos import encode, moving


@pytest.mark.parametrize("name", ["Müller".encode("latin-1"), "王小明".encode("gbk")])
def test_a_name_in_another_encoding(tmp_path, name):
    path = tmp_path / "a.wav"
    wavfile.write(path, 16000, np.zeros(8000, np.int16))
    data = path.read_bytes()
    name += b"\0" * (len(name) % 2)
    info = b"INFOIART" + len(name).to_bytes(4, "little") + name
    data += b"LIST" + len(info).to_bytes(4, "little") + info
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    assert len(read_speech(path)) == 8000


def test_a_title_in_another_encoding(tmp_path):
    path = encode(tmp_path / "a.avi", moving(5), "mjpeg", pix_fmt="yuvj420p", metadata={"title": "Mueller"})  # fmt: skip
    data = path.read_bytes()
    assert data.count(b"Mueller") == 1
    path.write_bytes(data.replace(b"Mueller", b"M\xfcller "))
    assert len(Video(path)) == 5
