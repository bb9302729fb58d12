"""Whether the tests beside this one can run here."""

import pytest

from tests.integrations.livekit.conftest import MISSING


def test_packages():
    if MISSING:
        pytest.skip(f"these packages are not installed: {', '.join(MISSING)}")
