"""Clients' masked ROIs, where the generator's runtime takes for granted what is in them."""

import numpy as np
import pytest

import kernels
from engine.batches import BatchRequest, SharedBatches, maker
from engine.errors import InputError
from tests.engine.batches.conftest import pixels

WAIT, NONE = 60, np.zeros(0, np.float32)
COUNT = 3


@pytest.fixture
def faces(formulas) -> np.ndarray:
    return formulas.faces(2, COUNT).copy()


@pytest.fixture
def strict(on_host, monkeypatch):
    """Batches of a network that assumes the mask."""
    monkeypatch.setattr(on_host.generator, "assumes_mask", True)
    with SharedBatches(on_host, encode=pixels) as batches:
        yield batches


def request(faces: np.ndarray, layout: str = "interleaved") -> BatchRequest:
    return BatchRequest(len(faces), 2, NONE, faces=faces, layout=layout)


def planar(faces: np.ndarray) -> np.ndarray:
    return np.concatenate([faces[:, :3], faces[:, 3:]]).reshape(faces.shape)


def test_the_usual_mask(strict, faces):
    """In any layout, and rounded as by a client's own float16 or 8 bits."""
    wanted = strict.submit(request(faces)).result(WAIT).files
    for given, layout in ((faces, "auto"), (planar(faces), "auto"), (planar(faces), "planar")):
        assert strict.submit(request(given, layout)).result(WAIT).files == wanted
    rounded = faces.copy()
    rounded[:, 3:] = faces[:, 3:].astype(np.float16)
    rounded[:, 3:, 100, 100] = -0.003
    assert len(strict.submit(request(rounded)).result(WAIT).files) == COUNT
    assert len(strict.submit(request(faces[:1], "auto")).result(WAIT).files) == 1


# Inside of the mask, at its corners, and outside of it on each side.
@pytest.mark.parametrize("row, column", [
    (100, 100), (5, 5), (309, 314), (4, 160), (310, 160), (160, 4), (160, 315),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["interleaved", "planar", "auto"])
def test_another_mask_is_refused(strict, faces, row, column, layout):
    inside = 5 <= row < 310 and 5 <= column < 315
    faces[2, 4, row, column] = 0.02 if inside else faces[2, 1, row, column] - 0.02
    given = planar(faces) if layout == "planar" else faces
    message = (
        "the masked ROI of picture 2 is not its ROI with rows 5 to 309 and columns 5 to 314 set "
        r"to 0, as which .* choose another runtime .*\(networks.runtime of the server\)"
    )
    with pytest.raises(InputError, match=message):
        strict.submit(request(given, layout))
    assert strict.frames == 0


def test_negative_values_count(strict, faces):
    faces[0, 5, 200, 200] = -0.02
    with pytest.raises(InputError, match="of picture 0 is not"):
        strict.submit(request(faces))


def test_other_runtimes_read_all_planes(on_host, faces):
    assert on_host.generator.assumes_mask is False
    other = faces.copy()
    other[:, 3:, 5:200] = 0.5
    with SharedBatches(on_host, encode=pixels) as batches:
        first, second = (batches.submit(request(given)).result(WAIT) for given in (faces, other))
    assert first.files != second.files


def test_a_layout_that_turns_out_otherwise(strict, faces, monkeypatch):
    """Those of the layout that is used are checked, not only those of one that it might be."""
    monkeypatch.setattr(maker, "is_planar", lambda faces, own: True)
    with pytest.raises(InputError, match="the masked ROI of picture 0 is not"):
        strict.submit(request(faces, "auto")).result(WAIT)
    assert strict.submit(request(planar(faces), "auto")).result(WAIT).files


def test_what_the_avatar_itself_gives_is_never_refused(strict, on_host):
    inputs, _ = kernels.face_input(*on_host.avatar.batch([2, 3, 4]))
    assert strict.submit(request(inputs.float().numpy())).result(WAIT).files
    assert strict.submit(BatchRequest(COUNT, 2, NONE)).result(WAIT).files
