"""Which replica serves a request."""

import io
import pickle
import random
import re
from collections import Counter
from typing import Any

from ray.serve._private.common import StreamingHTTPRequest
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

TAG_BITS = 20  # of a session's number, which say where it is
NUMBER = re.compile(r"/(?:whep|record)/([0-9]{1,16})(?:/|$)")


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray has no types
    """Sends what belongs to a session to the replica that has it, and all else to the one with the
    fewest sessions.

    A session's number, in the header x-session-id or in the path of WHEP and of a recording, says
    which replica opened it, see `session_number`. Another text in that header always reaches the
    same replica while the replicas stay the same. Requests for an avatar (multiplexed_model_id) go
    to replicas that have it loaded, unless all of those are full.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # Requests of this proxy that are on their way or running: their replica, and the future of
        # their choice. Ray Serve's own counts of a replica lag behind what comes at once.
        self._running = dict[str, tuple[Any, Any]]()

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        if not candidate_replicas or pending_request is None:
            return [candidate_replicas] if candidate_replicas else []
        session = pending_request.metadata.session_id or _number_in_path(pending_request)
        if session:
            tag = tag_of(session)
            owner = [one for one in candidate_replicas if tag is not None and _tag_of(one) == tag]
            if owner:
                return [owner]
            return list(await super().choose_replicas(candidate_replicas, pending_request))
        pending_request.routing_context.should_backoff = True
        model = pending_request.metadata.multiplexed_model_id
        loads = self._loads()

        def rank(one: Any) -> tuple[bool, bool, int, int, float]:
            load = loads[one.replica_id] + int(one.routing_stats.get("apart", 0))
            missing = bool(model) and model not in one.multiplexed_model_ids
            everywhere = int(one.routing_stats.get("running", 0))
            full = load >= one.max_ongoing_requests
            return (full, missing, load, everywhere, random.random())

        ranked = sorted(candidate_replicas, key=rank)
        self._note(pending_request, ranked[0].replica_id)
        return [[one] for one in ranked]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        if pending_request.metadata.internal_request_id in self._running:  # else it has ended
            self._note(pending_request, replica_id)
        super().on_request_routed(pending_request, replica_id, result)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        noted = self._running.get(internal_request_id)
        # Not if that replica was full, and another one is asked meanwhile.
        if noted is not None and _chosen(*noted) == replica_id:
            del self._running[internal_request_id]
        super().on_request_completed(replica_id, internal_request_id)

    def _note(self, pending_request: Any, replica_id: Any) -> None:
        id = pending_request.metadata.internal_request_id
        self._running[id] = replica_id, pending_request.future

    def _loads(self) -> Counter[Any]:
        """Count the requests of this proxy, by replica."""
        left = [id for id, (_, choice) in self._running.items() if choice.cancelled()]
        for id in left:  # whose clients have left before they were sent
            del self._running[id]
        return Counter(replica for replica, _ in self._running.values())


def new_tag() -> int:
    """Return a tag for a replica."""
    return random.SystemRandom().getrandbits(TAG_BITS)


def tag_of(session: str) -> int | None:
    """Return the tag in a session's number; None if the text is none."""
    if not (session.isascii() and session.isdecimal() and len(session) <= 16):
        return None
    return int(session) % 2**TAG_BITS


def session_number(tag: int) -> int:
    """Return a number for a session of a replica: random, at most 2**53 - 1, exact in JavaScript.

    33 bits of it cannot be guessed.
    """
    return (random.SystemRandom().randrange(1, 2 ** (53 - TAG_BITS)) << TAG_BITS) | tag


def _chosen(replica_id: Any, choice: Any) -> Any:
    """Return the replica that a request was sent to, or None if it waits for another one.

    Args:
        replica_id: the one that it was meant for.
        choice: the future of the replica that Ray Serve gives it, which may be another one.
    """
    if not choice.done():
        return None
    if choice.cancelled() or choice.exception() is not None:
        return replica_id
    return choice.result().replica_id


def _tag_of(replica: Any) -> int | None:
    tag = replica.replica_metadata.get("tag")
    return None if tag is None else int(tag)


class _Scopes(pickle.Unpickler):
    """Reads a request as a proxy's HTTP server hands it on: texts, numbers, and lists of them.
    Anything else is refused, so that reading it never runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (StreamingHTTPRequest.__module__, StreamingHTTPRequest.__qualname__):
            return StreamingHTTPRequest
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a request over HTTP")


def _number_in_path(pending_request: Any) -> str:
    """Return the session's number in the path of a request over HTTP; empty if there is none.

    Those of gRPC, whose messages are a client's, are not read at all.
    """
    if not pending_request.metadata.is_http_request:
        return ""
    request = _Scopes(io.BytesIO(pending_request.args[0])).load()
    found = NUMBER.match(request.asgi_scope.get("path", ""))
    return found[1] if found else ""
