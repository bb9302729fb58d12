"""The services as Ray Serve's gRPC proxies know them, and how they say that a replica is lost."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import grpc
from ray.serve.exceptions import RequestCancelledError

from ..rpc.monolithic import COMPOSITING, MONOLITHIC
from ..rpc.protos import monolithic_pb2, viseme_pb2
from .call import STATUS

RETRY_SECONDS = 5
LOST = "the replica that served this call is gone; call again, and open another session"
FULL = "all replicas are full, and too many calls wait for them; call again later"
AGAIN = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def add_services(_: Any, server: Any) -> None:
    """Add all services to a proxy's server, with messages as bytes: the proxy takes them on, and
    only replicas parse them.

    Ray Serve imports this by its name, and replaces the handlers by its own. They are given
    statuses that a client can act on: Ray Serve's say INTERNAL with a traceback.
    """
    for name in ("ray.serve", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    inner = server.service_handler_factory
    server.service_handler_factory = lambda *args, **kwargs: _plainer(inner(*args, **kwargs))
    descriptors = {
        "viseme.v1.Viseme": viseme_pb2.DESCRIPTOR.services_by_name["Viseme"],
        MONOLITHIC: monolithic_pb2.DESCRIPTOR.services_by_name["MonolithicService"],
    }
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    for service, descriptor in descriptors.items():
        handlers = {
            method.name: kinds[method.client_streaming, method.server_streaming](_never)
            for method in descriptor.methods
        }
        _add(server, service, handlers)
    _add(server, COMPOSITING, {"InferBatchComposite": grpc.unary_unary_rpc_method_handler(_never)})
    _add(server, "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(_never)})


def _add(server: Any, service: str, handlers: dict[str, Any]) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


async def _never(request: Any, context: Any) -> None:
    raise NotImplementedError("Ray Serve replaces the handlers of its proxies")


def _plainer(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a proxy's handler that ends calls with plainer statuses."""
    if inspect.isasyncgenfunction(handler):

        async def answers(request: Any, context: Any) -> Any:
            async for answer in handler(request, _Status(context)):
                if answer != STATUS:
                    yield answer

        return answers

    async def answer(request: Any, context: Any) -> Any:
        return await handler(request, _Status(context))

    return answer


class _Status:
    """A proxy's context, which makes a lost replica UNAVAILABLE, and says when to try again."""

    def __init__(self, context: Any):
        self._context = context
        self._code: Any = None
        self._trailing: tuple[tuple[str, str], ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: Any) -> None:
        self._code = code
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        if self._code == grpc.StatusCode.INTERNAL and _is_lost(details):
            self.set_code(grpc.StatusCode.UNAVAILABLE)
            details = LOST
        elif self._code == grpc.StatusCode.RESOURCE_EXHAUSTED and "backpressure" in details:
            details = FULL
        self._context.set_details(details)
        self._send_trailing()

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._trailing = tuple(metadata)
        self._send_trailing()

    def _send_trailing(self) -> None:
        again = (("retry-after", str(RETRY_SECONDS)),) if self._code in AGAIN else ()
        self._context.set_trailing_metadata((*self._trailing, *again))


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is worth a traceback: a client that leaves a stream is none, but Ray Serve
    takes it for a fault (up to 2.60 at least)."""
    error = record.exc_info[1] if record.exc_info else None
    return not (
        isinstance(error, GeneratorExit | RequestCancelledError)
        or (isinstance(error, RuntimeError) and "ignored GeneratorExit" in str(error))
    )


def _is_lost(details: str) -> bool:
    return "actor" in details.lower() and any(
        word in details for word in ("died", "unavailable", "ActorDiedError", "dead")
    )
