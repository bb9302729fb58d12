"""The networks that find faces, opened once."""

import pytest

from engine.faces import Detector, Mesh


@pytest.fixture(scope="session")
def detector(face_nets) -> Detector:
    return Detector(face_nets.detector)


@pytest.fixture(scope="session")
def mesh(face_nets) -> Mesh:
    return Mesh(face_nets.mesh)
