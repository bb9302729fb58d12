"""The networks that find faces, on a GPU and on a CPU."""

import numpy as np
import pytest

from engine.faces import Detector, Mesh
from engine.faces.mesh import region_of_face


@pytest.mark.gpu
def test_on_a_gpu(face_nets, detector, mesh, person):
    on_gpu = Detector(face_nets.detector, "cuda"), Mesh(face_nets.mesh, "cuda")
    for frame in person[:4].numpy():
        (face,), (same,) = (one.detect(frame) for one in (detector, on_gpu[0]))
        np.testing.assert_allclose(same.box, face.box, atol=0.05)
        region = region_of_face(face)
        expected = mesh.fit(frame, region)
        found = on_gpu[1].fit(frame, region)
        np.testing.assert_allclose(found.points, expected.points, atol=0.1)
