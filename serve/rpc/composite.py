"""InferBatchComposite: a request's frames, from the batches that all clients of an avatar share."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import grpc

from engine.batches import BatchResult, SharedBatches
from engine.errors import InputError, shortened

from ..config import Config
from ..errors import INTERNAL, Ending, LoadFailed
from ..registry import Registry, Use
from .composite_request import CompositeRequest, MalformedError, Refused, check, parse
from .protos import monolithic_pb2

NO_AUDIO_ENCODER = "Raw audio processing not available (audio encoder pool not initialized)"
Count = Callable[[str, int], object]
log = logging.getLogger(__name__)


class Submitted(NamedTuple):
    """A request on its way.

    Attributes:
        future: of its frames.
        audio_seconds: that its speech took to decode.
    """

    future: Future[BatchResult]
    audio_seconds: float


class CompositeHandler:
    """Answers InferBatchComposite of both services, with one limit for both.

    What a client asks wrongly, and what the server cannot do for it, is an answer with
    success=false, as from the Go server, whose clients know nothing else; also where too many
    requests wait. Only where the server ends the call fails, with UNAVAILABLE, which makes a gRPC
    client look for another server.

    Args:
        registry: the avatars.
        config: limits, output and models.
        count: is told how many frames were made of which avatar.
    """

    def __init__(self, registry: Registry, config: Config, count: Count | None = None):
        self._registry, self._config, self._count = registry, config, count
        self._running = 0

    async def __call__(self, message: bytes, context: Any) -> Any:
        """Answer a serialised CompositeBatchRequest with a CompositeBatchResponse."""
        begin = time.perf_counter()
        try:
            request = check(*parse(message))
            response = await self._admitted(request)
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except Ending as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except Refused as error:
            return monolithic_pb2.CompositeBatchResponse(error=str(error))
        response.total_time_ms = (time.perf_counter() - begin) * 1e3
        return response

    async def _admitted(self, request: CompositeRequest) -> Any:
        most = self._config.limits.max_requests
        if self._running >= most:
            raise Refused(
                f"Inference failed: {most} other requests are waiting; expected less than {most} "
                "(limits.max_requests)"
            )
        self._running += 1
        try:
            return await self._with_avatar(request)
        finally:
            self._running -= 1

    async def _with_avatar(self, request: CompositeRequest) -> Any:
        async with AsyncExitStack() as stack:
            try:
                use = await stack.enter_async_context(self._registry.use(request.model_id))
            except Ending:
                raise
            except InputError as error:
                raise self._not_loaded(request, error) from error
            except Exception:
                log.exception("loading %s for InferBatchComposite", shortened(request.model_id))
                raise self._not_loaded(request, INTERNAL) from None
            try:
                return await self._infer(request, use)
            except (Ending, Refused):
                raise
            except InputError as error:
                raise Refused(f"Inference failed: {error}") from error
            except Exception:
                log.exception("InferBatchComposite of %s", shortened(request.model_id))
                raise Refused(f"Inference failed: {INTERNAL}") from None

    def _not_loaded(self, request: CompositeRequest, error: InputError | str) -> Refused:
        needs_encoder = isinstance(error, LoadFailed) and request.content.raw_audio
        if needs_encoder and self._lacks_audio_encoder(request.model_id):
            return Refused(NO_AUDIO_ENCODER)
        return Refused(f"Failed to load model {_quoted(request.model_id)}: {error}")

    def _lacks_audio_encoder(self, name: str) -> bool:
        """Tell whether a model of the Go server's files has no audio encoder."""
        model = self._config.models.get(name)
        encoders = self._config.audio_encoder, model.audio_encoder if model else None
        return model is not None and model.avatar is None and encoders == (None, None)

    async def _infer(self, request: CompositeRequest, use: Use) -> Any:
        served = use.served
        if request.is_large:
            future, decoded = await _in_thread(lambda: self._submit(request, served.batches))
        else:
            future, decoded = self._submit(request, served.batches)
        # If the call is cancelled, because its client went away, so is the future.
        result = await asyncio.wrap_future(future)
        self._registry.count(request.model_id, result.inference_seconds)
        if self._count is not None:
            self._count(request.model_id, len(result.files))
        return monolithic_pb2.CompositeBatchResponse(
            composited_frames=result.files,
            inference_time_ms=result.inference_seconds * 1e3,
            composite_time_ms=result.composite_seconds * 1e3,
            audio_processing_ms=(decoded + result.audio_seconds) * 1e3,
            model_loaded=use.loaded,
            model_load_time_ms=use.load_seconds * 1e3,
            success=True,
            gpu_id=served.gpu,
        )

    def _submit(self, request: CompositeRequest, batches: SharedBatches) -> Submitted:
        begin = time.perf_counter()
        batch = request.decode(self._config.output)
        spent = time.perf_counter() - begin if batch.speech is not None else 0.0
        return Submitted(batches.submit(batch), spent)


async def _in_thread(submit: Callable[[], Submitted]) -> Submitted:
    """Submit a request in a thread. If the call is cancelled meanwhile, so is what is submitted."""
    work = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_cancel)
        raise


def _cancel(work: asyncio.Future[Submitted]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().future.cancel()


def _quoted(name: str) -> str:
    return f"'{name if len(name) <= 200 else name[:200] + '...'}'"
