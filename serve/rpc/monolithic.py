"""monolithic.MonolithicService and compositing.CompositingService: what the Go server's clients
call."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from engine.errors import InputError, shortened

from ..config import Config
from ..errors import INTERNAL, Ending
from ..registry import Entry, Registry
from .composite import CompositeHandler, Count
from .protos import monolithic_pb2 as messages

MONOLITHIC, COMPOSITING = "monolithic.MonolithicService", "compositing.CompositingService"
REQUESTS = {
    "ListModels": messages.ListModelsRequest,
    "LoadModel": messages.LoadModelRequest,
    "UnloadModel": messages.UnloadModelRequest,
    "GetModelStats": messages.GetModelStatsRequest,
    "Health": messages.HealthRequest,
}
INT32_MAX = 2**31 - 1
Method = Callable[[Any, Any], Awaitable[Any]]
log = logging.getLogger(__name__)


class MonolithicService:
    """The six methods, for grpc.aio. InferBatchComposite takes a serialised request.

    Errors come as from the Go server: an answer with success=false and one line. The call fails
    only where the server ends, with UNAVAILABLE.

    Args:
        registry: the avatars.
        config: limits, output and models.
        handler: that of another service, which shares its limit of requests.
    """

    def __init__(self, registry: Registry, config: Config, handler: CompositeHandler | None = None):
        self._registry, self._config = registry, config
        self.handler = handler or CompositeHandler(registry, config)

    async def InferBatchComposite(self, message: bytes, context: Any) -> Any:
        return await self.handler(message, context)

    async def ListModels(self, request: Any, context: Any) -> Any:
        return messages.ListModelsResponse(
            models=[
                messages.ModelInfo(**_common(entry), avg_inference_ms=_mean_ms(entry))
                for entry in self._registry.entries()
            ]
        )

    async def LoadModel(self, request: Any, context: Any) -> Any:
        begin = time.perf_counter()
        try:
            use = await self._registry.load(request.model_id, gpu=max(request.preferred_gpu, -1))
        except Exception as error:
            text = await _text(error, "LoadModel", request.model_id, context)
            return messages.LoadModelResponse(error=f"Failed to load model: {text}")
        spent = use.load_seconds if use.loaded else time.perf_counter() - begin
        return messages.LoadModelResponse(
            success=True, gpu_id=use.served.gpu, load_time_ms=spent * 1e3
        )

    async def UnloadModel(self, request: Any, context: Any) -> Any:
        try:
            await self._registry.unload(request.model_id)
        except Exception as error:
            text = await _text(error, "UnloadModel", request.model_id, context)
            return messages.UnloadModelResponse(error=f"Failed to unload model: {text}")
        return messages.UnloadModelResponse(success=True)

    async def GetModelStats(self, request: Any, context: Any) -> Any:
        return messages.GetModelStatsResponse(
            models=[
                messages.ModelStats(
                    **_common(entry),
                    total_inference_ms=round(entry.inference_seconds * 1e3),
                    avg_inference_ms=_mean_ms(entry),
                    last_used_timestamp=int(entry.last_used),
                )
                for entry in self._registry.entries()
            ]
        )

    async def Health(self, request: Any, context: Any) -> Any:
        """Answer with the memory that avatars take on each device; the CPU is GPU 0."""
        devices = self._registry.devices()
        return messages.HealthResponse(
            healthy=self._registry.failure is None,
            loaded_models=sum(entry.loaded for entry in self._registry.entries()),
            max_models=min(self._config.capacity.max_models, INT32_MAX),
            gpu_ids=[device.gpu for device in devices],
            gpu_memory_used_gb=[device.bytes / 2**30 for device in devices],
        )


class CompositingService:
    """InferBatchComposite under another name; see `MonolithicService`."""

    def __init__(self, registry: Registry, config: Config, handler: CompositeHandler | None = None):
        self.handler = handler or CompositeHandler(registry, config)

    async def InferBatchComposite(self, message: bytes, context: Any) -> Any:
        return await self.handler(message, context)


def add_to_server(
    registry: Registry, config: Config, server: Any, count: Count | None = None
) -> None:
    """Add both services to a grpc.aio server.

    Args:
        count: is told how many frames were made of which avatar.

    protoc's own functions would have every request parsed in the event loop, which takes 50 ms of
    it where a request brings its faces; and gRPC logs a traceback of what cannot be parsed.
    """
    first = MonolithicService(registry, config, CompositeHandler(registry, config, count))
    second = CompositingService(registry, config, first.handler)
    methods = {name: _parsed(kind, getattr(first, name)) for name, kind in REQUESTS.items()}
    methods["InferBatchComposite"] = first.InferBatchComposite
    _add(server, MONOLITHIC, methods)
    _add(server, COMPOSITING, {"InferBatchComposite": second.InferBatchComposite})


def _add(server: Any, service: str, methods: dict[str, Method]) -> None:
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method, response_serializer=lambda answer: answer.SerializeToString()
        )
        for name, method in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _parsed(kind: Any, method: Method) -> Method:
    """Return a method of bytes that calls one of messages."""

    async def call(message: bytes, context: Any) -> Any:
        try:
            request = kind.FromString(message)
        except DecodeError:
            await context.abort(grpc.StatusCode.INTERNAL, f"the message is not a {kind.__name__}")
        return await method(request, context)

    return call


def _common(entry: Entry) -> dict[str, Any]:
    return {
        "model_id": entry.name,
        "loaded": entry.loaded,
        "gpu_id": entry.gpu,
        "memory_mb": entry.bytes >> 20,
        "request_count": min(entry.requests, INT32_MAX),
    }


def _mean_ms(entry: Entry) -> float:
    return entry.inference_seconds * 1e3 / entry.requests if entry.requests else 0.0


async def _text(error: Exception, method: str, name: str, context: Any) -> str:
    """Return what an answer says of an error; end the call if the server ends."""
    if isinstance(error, Ending):
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    if isinstance(error, InputError):
        return str(error)
    log.error("%s of %s", method, shortened(name), exc_info=error)
    return INTERNAL
