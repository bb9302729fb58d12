"""The demo's networks in live sessions: their frames are those of a render, bit for bit."""

import asyncio

import numpy as np
import pytest
import torch

from engine import Avatar, Pipeline
from engine.live import Live
from tests.engine.files import Folders

TAIL = 4  # silent frames after the speech


@pytest.fixture(scope="module")
def avatar(small, demo_networks, tmp_path_factory) -> Avatar:
    """12 frames of the demo, with its networks in ONNX files."""
    folders = Folders(tmp_path_factory.mktemp("avatars"), *small, demo_networks)
    return Avatar.load(folders.native(), device="cpu")


def test_frames_of_two_sessions_are_those_of_a_render(avatar, speech):
    """Fed in random cuttings, taken together; one ends before the other."""
    random = np.random.default_rng(5)
    spoken = [speech[16000:25000].numpy(), speech[41000:48300].numpy()]
    options = [{"loop": "pingpong"}, {"loop": "wrap", "start_frame": 9}]
    with Live(avatar, batch_size=4, precision="fp32") as live:
        batches = count_batches(live.pipeline)

        async def talk(pcm: np.ndarray, cuts: list[int], **how) -> list:
            with live.open(clock="taken", **how) as session:
                first, *rest = np.split(pcm, cuts)
                session.push(first)  # from now on no frame is silent
                taker = asyncio.ensure_future(take(session))
                for part in rest:
                    await asyncio.sleep(0.01)
                    session.push(part)
                session.flush()
                return await taker

        async def both() -> list[list]:
            talks = []
            for pcm, how in zip(spoken, options, strict=True):
                cuts = sorted(random.choice(len(pcm), 12, replace=False).tolist())
                talks.append(talk(pcm, cuts, **how))
            return await asyncio.gather(*talks)

        taken = asyncio.run(both())
    assert max(batches) > 1
    pipeline = Pipeline(avatar)
    assert pipeline.generator.description.startswith("ONNX Runtime ")
    for pieces, pcm, how in zip(taken, spoken, options, strict=True):
        sound = np.concatenate([piece.sound[0] for piece in pieces])
        assert np.array_equal(sound[: len(pcm)], pcm) and not sound[len(pcm) :].any()
        stream = torch.from_numpy(np.concatenate([sound, np.zeros(8000, np.float32)]))
        expected = (frame for batch in pipeline.render(stream, **how) for frame in batch)
        assert len(pieces) >= len(pcm) / 640 + TAIL
        for number, (piece, frame) in enumerate(zip(pieces, expected, strict=False)):
            assert piece.number == number and torch.equal(piece.frames[0], frame), number


async def take(session) -> list:
    """Take all pieces up to some silent ones after the speech."""
    pieces = []
    async for piece in session:
        pieces.append(piece)
        if any(piece.end for piece in pieces[:-TAIL]):
            return pieces
    raise AssertionError("the session was closed")


def count_batches(pipeline: Pipeline) -> list[int]:
    """A list to which the size of every batch of the generator is added."""
    generator, sizes = pipeline.generator, []

    class Counting:
        def __getattr__(self, name):
            return getattr(generator, name)

        def __call__(self, *inputs, out):
            sizes.append(len(out))
            return generator(*inputs, out=out)

    pipeline.generator = Counting()
    return sizes
