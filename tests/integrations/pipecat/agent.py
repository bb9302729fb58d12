"""A pipeline with an avatar, in Pipecat's own environment: agent.py SCENARIO ADDRESS.

Prints what came out of the avatar, as one line of JSON a frame.
"""

import asyncio
import base64
import json
import sys

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner
from pipecat_viseme import VisemeVideoService, viseme_pb2

RATE = 16000
TOKEN = "correct-horse-battery-staple"
STEP = 320  # samples of a TTS service's frame


class Sink(FrameProcessor):
    """Writes down what comes, and lets others wait for it."""

    def __init__(self):
        super().__init__()
        self.seen: list[dict] = []
        self._more = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        note = {"kind": type(frame).__name__}
        if isinstance(frame, SpeechOutputAudioRawFrame):
            note |= {"sound": base64.b64encode(frame.audio).decode(), "rate": frame.sample_rate}
        elif isinstance(frame, OutputImageRawFrame):
            note |= {
                "size": frame.size, "bytes": len(frame.image), "format": frame.format,
                "sync": frame.sync_with_audio,
            }  # fmt: skip
        self.note(note)
        await self.push_frame(frame, direction)

    def note(self, note: dict) -> None:
        self.seen.append(note)
        print(json.dumps(note), flush=True)
        self._more.set()

    async def until(self, kind: str, count: int = 1) -> None:
        """Wait for so many more of a kind."""
        wanted = self.count(kind) + count
        async with asyncio.timeout(60):
            while self.count(kind) < wanted:
                self._more.clear()
                await self._more.wait()

    def count(self, kind: str) -> int:
        return sum(note["kind"] == kind for note in self.seen)


class Errors(FrameProcessor):
    """Stands before the avatar, where errors go."""

    def __init__(self, sink: Sink):
        super().__init__()
        self._sink = sink

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame):
            self._sink.note({"kind": "ErrorFrame", "line": frame.error})
        await self.push_frame(frame, direction)


def tone(seconds: float, step: int) -> bytes:
    """Return a saw tooth, whose samples say where they belong."""
    return b"".join(
        (1 + (step * number) % 20000).to_bytes(2, "little") for number in range(int(seconds * RATE))
    )


async def say(
    worker: PipelineWorker,
    sound: bytes,
    *,
    rate: int = RATE,
    channels: int = 1,
    size: int = 2 * STEP,
) -> None:
    await worker.queue_frame(TTSStartedFrame())
    for begin in range(0, len(sound), size):
        part = sound[begin : begin + size]
        await worker.queue_frame(
            TTSAudioRawFrame(audio=part, sample_rate=rate, num_channels=channels)
        )
    await worker.queue_frame(TTSTextFrame(text="hello", text_type="word"))
    await worker.queue_frame(TTSStoppedFrame())


async def speak(worker: PipelineWorker, sink: Sink) -> None:
    """Say two sentences, one after the other, and end."""
    await sink.until("OutputImageRawFrame", 3)  # it is there before it speaks
    await say(worker, tone(0.6, 1))
    await say(worker, tone(0.5, 3))
    await worker.queue_frame(EndFrame())


async def stereo(worker: PipelineWorker, sink: Sink) -> None:
    """Say something in stereo at 24 kHz, in frames that cut samples, and then in mono."""
    sound = (1000).to_bytes(2, "little") + (3000).to_bytes(2, "little")
    await say(worker, sound * 12000, rate=24000, channels=2, size=2 * STEP + 1)
    await say(worker, tone(0.5, 3), size=2 * STEP + 1)
    await worker.queue_frame(EndFrame())


async def interrupt(worker: PipelineWorker, sink: Sink) -> None:
    """Interrupt a long speech, and say something else."""
    await say(worker, tone(20, 1))
    await sink.until("SpeechOutputAudioRawFrame", 5)
    await worker.queue_frame(InterruptionFrame())
    await sink.until("InterruptionFrame")
    await say(worker, tone(0.5, 3))
    await worker.queue_frame(EndFrame())


async def hundred(worker: PipelineWorker, sink: Sink) -> None:
    """Interrupt a hundred speeches."""
    for _ in range(100):
        await say(worker, tone(0.2, 1))
        await sink.until("TTSTextFrame")  # the avatar has all of it
        await worker.queue_frame(InterruptionFrame())
        await sink.until("InterruptionFrame")
    await say(worker, tone(0.5, 3))
    await worker.queue_frame(EndFrame())


async def cancelled(worker: PipelineWorker, sink: Sink) -> None:
    """Leave in the middle of a speech."""
    await say(worker, tone(20, 1))
    await sink.until("SpeechOutputAudioRawFrame", 2)
    await worker.cancel()


async def goodbye(worker: PipelineWorker, sink: Sink) -> None:
    """Interrupt the last speech, after the end of the pipeline was asked for."""
    await say(worker, tone(150, 1))  # longer than the test waits
    await worker.queue_frame(EndFrame())
    await sink.until("SpeechOutputAudioRawFrame", 5)
    await sink.push_frame(InterruptionFrame(), FrameDirection.UPSTREAM)


async def silent(worker: PipelineWorker, sink: Sink) -> None:
    """Speak to a server that is stopped, until nothing more is taken, and interrupt that. The server
    goes on later."""
    sound = tone(20, 1)
    await say(worker, sound)
    await sink.until("SpeechOutputAudioRawFrame", 2)
    sink.note({"kind": "now"})
    await sink.until("ErrorFrame")
    while sink.count("ErrorFrame") < 2:
        await say(worker, sound, size=len(sound))
        await asyncio.sleep(0.1)
    await worker.queue_frame(InterruptionFrame())
    await sink.until("InterruptionFrame")
    await say(worker, tone(0.5, 3))
    sink.note({"kind": "now"})
    await sink.until("TTSStoppedFrame")
    await worker.queue_frame(EndFrame())


async def unknown(worker: PipelineWorker, sink: Sink) -> None:
    """Ask for an avatar that there is not, and speak all the same."""
    await sink.until("ErrorFrame")
    await say(worker, tone(0.2, 1))
    await worker.queue_frame(EndFrame())


async def restarted(worker: PipelineWorker, sink: Sink) -> None:
    """Wait for a server that is replaced, and speak."""
    await sink.until("OutputImageRawFrame", 3)
    sink.note({"kind": "now"})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await sink.until("OutputImageRawFrame", 3)
    await say(worker, tone(0.5, 3))
    await worker.queue_frame(EndFrame())


async def docs(worker: PipelineWorker, sink: Sink) -> None:
    """Say something; the avatar is that of the documentation's example."""
    await say(worker, tone(0.5, 3))
    await worker.queue_frame(EndFrame())


SCENARIOS = {
    "speak": (speak, {"picture": "rgb"}),
    "stereo": (stereo, {}),
    "interrupt": (interrupt, {}),
    "hundred": (hundred, {}),
    "cancelled": (cancelled, {}),
    "goodbye": (goodbye, {}),
    "silent": (silent, {}),
    "unknown": (unknown, {"avatar": "nobody"}),
    "restarted": (restarted, {}),
    "docs": (docs, {}),
}


class Transport:
    """Stands for one, with nobody at its other end."""

    def __init__(self, sink: Sink):
        self._sink = sink

    def input(self) -> FrameProcessor:
        return Errors(self._sink)

    def output(self) -> FrameProcessor:
        return self._sink


async def main(name: str, address: str) -> None:
    scenario, options = SCENARIOS[name]
    sink, driving = Sink(), []
    options = {"address": address, "avatar": "tiny", "token": TOKEN} | options
    params = PipelineParams(audio_out_sample_rate=RATE)
    begun = PipelineWorker.__init__

    def watched(worker, pipeline, **given):
        """Make a worker that runs the scenario when it has started."""
        begun(
            worker,
            pipeline,
            cancel_on_idle_timeout=False,
            enable_rtvi=False,
            params=params,
            **given,
        )

        @worker.event_handler("on_pipeline_started")
        async def begin(worker, frame):
            driving.append(asyncio.create_task(scenario(worker, sink)))

    PipelineWorker.__init__ = watched
    if name == "docs":
        code = sys.stdin.read()
        assert code.count('"127.0.0.1:50053", avatar="demo"') == 1
        spaces = {}
        exec(
            code.replace(
                '"127.0.0.1:50053", avatar="demo"', f'"{address}", avatar="tiny", token="{TOKEN}"'
            ),
            spaces,
        )
        nothing = [FrameProcessor() for _ in range(3)]
        for one in nothing:
            one.process_frame = passing(one)
        await spaces["talk"](Transport(sink), *nothing)
        messages = base64.b64encode(viseme_pb2.DESCRIPTOR.serialized_pb).decode()
        sink.note({"kind": "messages", "messages": messages})
    else:
        runner = WorkerRunner(handle_sigint=False)
        service = VisemeVideoService(**options)
        await runner.add_workers(PipelineWorker(Pipeline([Errors(sink), service, sink])))
        await runner.run()
    await asyncio.gather(*driving)
    left = [task.get_name() for task in asyncio.all_tasks() if "viseme" in task.get_name()]
    sink.note({"kind": "left", "tasks": left})


def passing(processor: FrameProcessor):
    """Return the method of a processor that pushes on all that comes."""

    async def process_frame(frame, direction):
        await FrameProcessor.process_frame(processor, frame, direction)
        await processor.push_frame(frame, direction)

    return process_frame


if __name__ == "__main__":
    logger.remove()
    asyncio.run(main(*sys.argv[1:]))
