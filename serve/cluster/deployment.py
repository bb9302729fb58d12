"""The deployment: how Ray Serve makes replicas, scales and updates them."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.generated.serve_pb2 import ApplicationArgs, DeploymentArgs, DeploymentRoute
from ray.serve.schema import ApplicationStatus, LoggingConfig

from engine.errors import InputError

from ..config import Config
from ..server import OTHER_CALLS
from . import replica
from .call import STATUS, Message
from .services import RETRY_SECONDS

NAME = "viseme"
ROUTER = "serve.cluster.router:SessionRouter"
STATS_SECONDS = 1.0
HEALTH_SECONDS = 2.0
LEAVE_SECONDS = 15.0  # for a replica to end, after its sessions


def deployment(config: Config, replicas: int, *, gpus: bool, update: int) -> Any:
    """Return the application to run: one deployment, whose replicas have one GPU each, or a share
    of the CPU.

    Args:
        config: the cluster's.
        replicas: at least.
        update: any number. Another one than before replaces all replicas, also if nothing else is
            different.
    """
    limits, cluster = config.limits, config.cluster
    each = config.model_copy(
        update={"gpus": config.gpus.model_copy(update={"count": 1 if gpus else 0})}
    )
    most = limits.max_sessions + limits.max_renders + limits.max_requests + OTHER_CALLS
    scaled = cluster.max_replicas is not None and cluster.max_replicas > replicas
    options: dict[str, Any] = {"num_replicas": replicas}
    if scaled:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas,
                max_replicas=cluster.max_replicas,
                target_ongoing_requests=cluster.target_sessions,
                upscale_delay_s=5,
                downscale_delay_s=300,
            )
        }
    return (
        _viseme(config.capacity.max_models)
        .options(
            name=NAME,
            ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": 1 if gpus else 0},
            max_ongoing_requests=most,
            max_queued_requests=cluster.max_queued,
            backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_SECONDS),
            graceful_shutdown_timeout_s=config.server.drain_seconds + LEAVE_SECONDS,
            graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=HEALTH_SECONDS,
            max_surge_percent=cluster.surge_percent,
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            request_router_config=RequestRouterConfig(
                request_router_class=ROUTER, request_routing_stats_period_s=STATS_SECONDS
            ),
            **options,
        )
        .bind(each, update)
    )


def deployed() -> DeploymentArgs | None:
    """Return the deployment that there is, for `deploy_again`; None if there is none, or if its own
    replicas did not start."""
    application = serve.status().applications.get(NAME)
    if application is None or application.status == ApplicationStatus.DEPLOY_FAILED:
        return None
    controller = _get_global_client()._controller
    route = ray.get(controller.get_deployment_info.remote(NAME, NAME))
    info = DeploymentRoute.FromString(route).deployment_info
    return DeploymentArgs(
        deployment_name=NAME,
        deployment_config=info.deployment_config.SerializeToString(),
        replica_config=info.replica_config.SerializeToString(),
        deployer_job_id=ray.get_runtime_context().get_job_id(),
        route_prefix="/",
        ingress=True,
        uses_multiplexing=True,
    )


def deploy_again(before: DeploymentArgs) -> None:
    """Go back to a deployment, in the version that it had: replicas of it that still run go on, and
    those that are missing are started. Does not wait for them."""
    ray.get(
        _get_global_client()._controller.deploy_applications.remote(
            {NAME: [before.SerializeToString()]}, {NAME: ApplicationArgs().SerializeToString()}
        )
    )


class Loaded:
    """An avatar that Ray Serve knows to be on a replica. Ray Serve awaits `__del__`."""

    def __init__(self, here: replica.Replica, name: str):
        self._here, self._name = here, name

    async def __del__(self) -> None:
        with suppress(InputError):
            await self._here.avatars.unload(self._name)


def _viseme(max_models: int) -> Any:
    """Return the deployment's class, with a method for each gRPC method, as Ray Serve calls it."""

    class Viseme:
        async def __init__(self, config: Config, update: int):  # type: ignore[misc]
            self._here = replica.Replica()
            await self._here.start(config)

        async def __del__(self) -> None:
            await self._here.close()

        @serve.multiplexed(max_num_models_per_replica=max_models)  # type: ignore[untyped-decorator]
        async def _avatar(self, name: str) -> Any:
            await self._here.avatars.load(name)
            return Loaded(self._here, name)

        async def _unary(self, method: str, request: bytes, context: Any) -> Any:
            if not await self._wanted(context):
                return Message(b"")
            return await self._here.unary(method, request, context)

        async def _stream(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
            if not await self._wanted(context):
                yield Message(STATUS)
                return
            async for answer in self._here.stream(method, request, context):
                yield answer

        async def _wanted(self, context: Any) -> bool:
            """Load the avatar that a call names in its metadata. If it cannot be loaded, the call
            has its status."""
            name = serve.get_multiplexed_model_id()
            if name and self._here.takes(context):
                try:
                    await self._avatar(name)
                except InputError as error:
                    replica.refuse(context, error)
                    return False
            return True

        def record_replica_metadata(self) -> dict[str, Any]:
            return self._here.metadata()

        def record_routing_stats(self) -> dict[str, int]:
            return self._here.routing_stats()

        def check_health(self) -> None:
            self._here.check_health()

        async def Check(self, request: bytes, grpc_context: Any) -> Any:
            return self._here.health()

    for name in replica.UNARY:
        setattr(Viseme, name, _unary_method(name))
    for name in replica.STREAMS:
        setattr(Viseme, name, _stream_method(name))
    return serve.deployment(serve.ingress(replica.build)(Viseme))


def _unary_method(name: str) -> Any:
    async def method(self: Any, request: bytes, grpc_context: Any) -> Any:
        return await self._unary(name, request, grpc_context)

    method.__name__ = name
    return method


def _stream_method(name: str) -> Any:
    async def method(self: Any, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        async for answer in self._stream(name, request, grpc_context):
            yield answer

    method.__name__ = name
    return method
