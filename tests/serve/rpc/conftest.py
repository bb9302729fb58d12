from pathlib import Path

import pytest

from engine import Avatar
from engine.live import Live
from tests.engine.tiny import write_avatar


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Live:
    """Small frames, and networks that show how loud the speech is."""
    folder: Path = write_avatar(tmp_path_factory.mktemp("serve") / "tiny")
    with Live(Avatar.load(folder), precision="fp32") as live:
        yield live
