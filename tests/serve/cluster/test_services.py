"""What clients are told of Ray Serve's own errors, without a cluster."""

from types import SimpleNamespace

import grpc
import pytest

pytest.importorskip("ray", reason="Ray Serve is not installed")

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.grpc_util import get_grpc_response_status, set_grpc_code_and_details
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.cluster.services import FULL, LOST, RETRY_SECONDS, _Status


def told_of(error: Exception) -> dict:
    """Return what a client is told when a call ends with an error."""
    told: dict = {}
    context = SimpleNamespace(
        code=lambda: 0,
        details=lambda: "",
        set_code=lambda code: told.update(code=code),
        set_details=lambda line: told.update(line=line),
        set_trailing_metadata=lambda metadata: told.update(trailing=metadata),
    )
    set_grpc_code_and_details(_Status(context), get_grpc_response_status(error, None, "id"))
    return told


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BackPressureError(64, 64), grpc.StatusCode.RESOURCE_EXHAUSTED, FULL),
        (ActorDiedError(), grpc.StatusCode.UNAVAILABLE, LOST),
        (ActorUnavailableError("no connection", b"0" * 16), grpc.StatusCode.UNAVAILABLE, LOST),
        (DeploymentUnavailableError("viseme"), grpc.StatusCode.UNAVAILABLE, "viseme"),
    ],
)
def test_what_may_be_tried_again(error, code, line):
    told = told_of(error)
    assert told["code"] == code and line in told["line"]
    assert told["trailing"] == (("retry-after", str(RETRY_SECONDS)),)


def test_a_fault_is_no_lost_replica():
    told = told_of(ValueError("an actor of a film"))
    assert told["code"] == grpc.StatusCode.INTERNAL and "an actor of a film" in told["line"]
    assert told["trailing"] == ()
