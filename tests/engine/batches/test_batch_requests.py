"""Requests that cannot be used, and how a client's pictures lie."""

import numpy as np
import pytest

from engine.batches import BatchRequest, SharedBatches
from engine.batches.layout import is_planar
from engine.errors import InputError

WAIT = 60
NONE = np.zeros(0, np.float32)
NAN = np.full(7, np.nan, np.float32)


def planar(faces: np.ndarray) -> np.ndarray:
    """All ROIs, then all masked ones, in the same shape."""
    return np.concatenate([faces[:, :3], faces[:, 3:]]).reshape(faces.shape)


@pytest.mark.parametrize(("count", "start"), [(2, 0), (8, 5), (25, -40), (32, 7)])
def test_the_layout_is_found(batches, formulas, count, start):
    faces = formulas.faces(start, count)
    other = planar(faces)
    assert not np.array_equal(faces, other)
    wanted = batches.submit(
        BatchRequest(count, start, NONE, faces=faces, layout="interleaved")
    ).result(WAIT)
    for given, layout in ((faces, "auto"), (other, "auto"), (other, "planar")):
        request = BatchRequest(count, start, NONE, faces=given, layout=layout)
        assert batches.submit(request).result(WAIT).files == wanted.files
    wrong = BatchRequest(count, start, NONE, faces=other, layout="interleaved")
    assert batches.submit(wrong).result(WAIT).files != wanted.files


def test_in_doubt_they_are_interleaved(formulas):
    own, random = formulas._own, np.random.default_rng(1)
    own = np.stack([own[0][0], own[1][0]])
    noise = random.random((4, 6, 320, 320), np.float32)
    for faces in (noise, np.zeros_like(noise), np.ones_like(noise), noise[:1]):
        assert not is_planar(faces, own)
    black = np.zeros_like(own)
    assert not is_planar(np.zeros_like(noise), black)
    one = formulas.faces(0, 1)
    assert not is_planar(planar(one), own)  # which are the same
    # of other frames, as of a client that counts otherwise
    assert is_planar(planar(formulas.faces(3, 4)), own)
    assert not is_planar(formulas.faces(3, 4), own)


FACES = np.zeros((2, 6, 320, 320), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0; expected 1 to 32 frames"),
        ({"count": 33}, "count is 33; expected 1 to 32 frames"),
        ({"count": 2.0}, "count is 2.0; expected an integer"),
        ({"start": None}, "start is None; expected an integer"),
        ({"context": -1}, "context is -1; expected at least 0 frames of speech"),
        ({"layout": "rows"}, "layout is 'rows'; expected one of: auto, interleaved, planar"),
        ({"speech": None}, "neither speech nor audio is given; expected one of them"),
        ({"speech": NONE[None]}, r"speech is \(1, 0\); expected \(S,\)"),
        ({"speech": [0.0]}, r"speech is list; expected \(S,\)"),
        ({"speech": NONE.astype(int)}, "speech is int64; expected float32"),
        ({"speech": NONE.astype(">f4")}, "speech is >f4; expected float32"),
        ({"speech": NAN}, "speech has a value that is not finite"),
        ({"speech": -np.float32([np.inf])}, "speech has a value that is not finite"),
        (
            {"speech": -np.float32([20000])},
            "speech has a sample of 20000; expected -1 to 1; scale integers",
        ),
        (
            {"speech": None, "audio": NONE},
            r"audio is \(0,\); expected \(32, 16, 16\)",
        ),
        (
            {"speech": None, "audio": np.full((32, 16, 16), np.inf, np.float32)},
            "audio has a value that is not finite",
        ),
        ({"faces": FACES[:1]}, r"faces is \(1, 6, 320, 320\); expected \(2, 6, 320, 320\)"),
        ({"faces": FACES.astype(np.float64)}, "faces is float64; expected float32"),
        ({"faces": FACES + np.float32(np.nan)}, "faces has a value that is not finite"),
    ],
)
def test_requests_that_cannot_be_used(batches, options, message):
    request = BatchRequest(**{"count": 2, "speech": NONE} | options)
    with pytest.raises(InputError, match=f"^{message}$"):
        batches.submit(request)


def test_arrays_that_cannot_be_written_or_lie_apart(batches, formulas, recwarn):
    """As numpy.frombuffer makes them of a message, or a slice of a larger one."""
    faces, speech = formulas.faces(1, 2), np.linspace(-0.1, 0.1, 9000, dtype=np.float32)
    audio = np.linspace(-1, 1, 8192, dtype=np.float32).reshape(32, 16, 16)
    for options in ({"speech": speech}, {"audio": audio}):
        wanted = batches.submit(BatchRequest(2, 1, faces=faces, **options)).result(WAIT)
        ((name, array),) = options.items()
        frozen = {name: np.frombuffer(array.tobytes(), np.float32).reshape(array.shape)}
        read = np.frombuffer(faces.tobytes(), np.float32).reshape(faces.shape)
        found = batches.submit(BatchRequest(2, 1, faces=read, **frozen)).result(WAIT)
        assert found.files == wanted.files
        apart = {name: np.stack([array, array], axis=-1)[..., 0]}
        found = batches.submit(
            BatchRequest(np.int32(2), np.int64(1), faces=np.stack([faces] * 2, -1)[..., 1], **apart)
        ).result(WAIT)
        assert found.files == wanted.files
    assert len(recwarn) == 0


@pytest.mark.parametrize("quality", [0, 101])
def test_quality(on_host, quality):
    with pytest.raises(InputError, match=f"quality is {quality}; expected 1 to 100"):
        SharedBatches(on_host, quality=quality)
