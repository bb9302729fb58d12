"""The avatars of the configuration: loaded when they are wanted, never evicted while in use."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple

from engine.errors import InputError

from .avatar import ServedAvatar, load_avatar
from .config import Config
from .devices import Device, find_devices, numbers_of
from .errors import Busy, Ending, NotConfigured, NotLoaded
from .instances import Instance, Instances, Load, Record

LEAVE_SECONDS = 5.0  # how long `close` waits for calls that still use an avatar


class Use(NamedTuple):
    """An avatar in use.

    Attributes:
        loaded: whether this call has loaded it.
        load_seconds: how long this call waited for it.
    """

    served: ServedAvatar
    loaded: bool
    load_seconds: float


class Entry(NamedTuple):
    """An avatar of the configuration, and what clients did with it.

    Attributes:
        loaded: whether a call can use it at once.
        gpu: number of its device; -1 if it is not loaded.
        bytes: of the device; 0 if it is not loaded.
        requests, inference_seconds: as they were given to `Registry.count`.
        last_used: Unix time in seconds; 0 if it never was.
        in_use: calls that use it or wait for it.
    """

    name: str
    loaded: bool
    gpu: int
    bytes: int
    requests: int
    inference_seconds: float
    last_used: float
    in_use: int


class DeviceUse(NamedTuple):
    """What avatars take of a device's memory.

    Attributes:
        gpu: number of the GPU; 0 for the CPU.
        name: "cuda:0", ... or "cpu".
        bytes: taken, with avatars that are being ended.
        limit: that may be taken; None if that is not known.
    """

    gpu: int
    name: str
    bytes: int
    limit: int | None


class Registry:
    """Avatars in memory, for calls on one event loop. None of its methods may be called elsewhere.

    An avatar is loaded in a thread when a call wants it; calls that want the same one wait for that
    load, and all others go on. A load is never cancelled: if all who wait for it leave, the avatar
    is kept. If it fails, all who wait are told why, and the next call tries again.

    When `max_models` are in memory, or the memory is too little, an avatar goes that nobody uses:
    the one with the fewest uses since the server began (lfu), or whose last use is longest ago
    (lru).

    Args:
        config: the configuration.
        load: loads an avatar, in a thread.
        now: the clock, seconds.
        devices: those of the configuration, unless given.

    Raises:
        InputError: the configuration wants more GPUs than there are, or more avatars to be
            preloaded than may be in memory.
    """

    def __init__(
        self,
        config: Config,
        load: Load = load_avatar,
        now: Callable[[], float] = time.monotonic,
        devices: Sequence[Device] | None = None,
    ):
        self._config, self._now = config, now
        self._records = {name: Record(name, model) for name, model in config.models.items()}
        self._preloaded = [name for name, model in config.models.items() if model.preload]
        if len(self._preloaded) > config.capacity.max_models:
            raise InputError(
                f"{len(self._preloaded)} models are to be preloaded; expected at most "
                f"{config.capacity.max_models} (max_models)"
            )
        self._instances = Instances(config, load, devices or find_devices(config))
        self._ended = asyncio.Event()
        self._closing = asyncio.Lock()

    @asynccontextmanager
    async def use(self, name: str, timeout: float | None = None) -> AsyncIterator[Use]:
        """Use an avatar: it stays in memory until the block ends, even if it is unloaded.

        Args:
            timeout: seconds to wait for its load; unless given, `load_seconds` of the
                configuration's limits.

        Raises:
            NotConfigured, LoadFailed, Ending: see there.
            Busy: there is no room, or the load takes longer.
        """
        record = self._configured(name)
        async with self._hold(record, -1, timeout) as use:
            record.uses += 1
            yield use

    async def load(self, name: str, gpu: int = -1) -> Use:
        """Load an avatar if it is not loaded. It may be evicted as soon as this returns.

        Args:
            gpu: number of the device; -1 for the configured one, or the strategy's choice. One that
                is loaded stays where it is.

        Raises:
            InputError: there is no such device; or as `use`.
        """
        record, devices = self._configured(name), self._instances.devices
        if not -1 <= gpu < len(devices):
            raise InputError(f"gpu is {gpu}; expected {numbers_of(devices)}")
        async with self._hold(record, gpu, None) as use:
            return use

    async def unload(self, name: str) -> None:
        """Take an avatar out of memory; if it is being loaded, after that.

        Calls that use it go on with it, and it ends when the last of them leaves. New calls load it
        anew. If nobody uses it, its memory is free when this returns.

        Raises:
            NotLoaded: it is not loaded, or not configured.
        """
        record = self._records.get(name)
        instance = record.instance if record else None
        if instance is not None:
            await instance.told.wait()
            if not instance.settled:
                raise Ending("the server is ending")
        if record is None or instance is None or record.instance is not instance:
            raise NotLoaded(f"model '{name}' not loaded")
        self._instances.retire(instance)
        if instance.closing is not None:
            await asyncio.wait({instance.closing})

    def count(self, name: str, inference_seconds: float) -> None:
        """Count a finished request for a batch of frames."""
        record = self._configured(name)
        record.requests += 1
        record.inference_seconds += inference_seconds

    def entries(self) -> list[Entry]:
        """Return all avatars of the configuration."""
        return [self._entry(record) for record in self._records.values()]

    def peek(self, name: str) -> ServedAvatar | None:
        """Return an avatar if it is loaded, without using it: it may be evicted at any time."""
        record = self._records.get(name)
        instance = record.instance if record is not None else None
        return instance.served if instance is not None and instance.loaded else None

    def devices(self) -> list[DeviceUse]:
        """Return what is taken of the memory of each device."""
        return [
            DeviceUse(device.gpu, device.name, self._instances.bytes_on(device), device.limit)
            for device in self._instances.devices
        ]

    @property
    def failure(self) -> BaseException | None:
        """What ended a thread that makes frames, which is a bug; None if all run."""
        return self._instances.failure()

    async def preload(self) -> dict[str, InputError]:
        """Load the avatars that are to be preloaded, however long it takes.

        Returns:
            Those that cannot be loaded, and why.
        """
        async with AsyncExitStack() as held:  # so that none is evicted for another
            results = await asyncio.gather(
                *(
                    held.enter_async_context(self._hold(self._records[name], -1, math.inf))
                    for name in self._preloaded
                ),
                return_exceptions=True,
            )
        failures = dict[str, InputError]()
        for name, result in zip(self._preloaded, results, strict=True):
            if isinstance(result, InputError):
                failures[name] = result
            elif isinstance(result, BaseException):
                raise result
        return failures

    async def run(self) -> None:
        """Take avatars out that nobody has used for `idle_timeout_minutes`. Ends with `close`."""
        while not self._ended.is_set():
            delay = self._take_out_unused()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._ended.wait()

    async def close(self) -> None:
        """End everything. New calls, and calls that wait for a load, are told that the server ends.

        Avatars in use end when their users leave, or after 5 seconds: then live sessions and
        batches end with an error. A load that runs is waited for, because a thread cannot be
        stopped.
        """
        self._ended.set()
        for record in self._records.values():
            if record.instance is not None:
                record.instance.told.set()
        async with self._closing:  # a second call waits for the first one
            await self._instances.close(LEAVE_SECONDS)

    # ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _hold(self, record: Record, gpu: int, timeout: float | None) -> AsyncIterator[Use]:
        if self._ended.is_set():
            raise Ending("the server is ending")
        begin, instance = self._now(), record.instance
        began = instance is None
        if instance is None:
            instance = self._instances.begin(record, gpu)
        waits = not instance.settled
        instance.users += 1
        record.last_used = begin
        try:
            await self._settled(instance, timeout)
            assert instance.served is not None
            yield Use(instance.served, began, self._now() - begin if waits else 0.0)
        finally:
            record.last_used = self._now()
            self._instances.leave(instance)

    async def _settled(self, instance: Instance, timeout: float | None) -> None:
        """Wait until an avatar is loaded."""
        if not instance.settled:
            seconds = self._config.limits.load_seconds if timeout is None else timeout
            try:
                async with asyncio.timeout(None if seconds == math.inf else seconds):
                    await instance.told.wait()
            except TimeoutError:
                raise Busy(
                    f"model {instance.record.name!r} is still being loaded after {seconds:g} s; "
                    "try again later"
                ) from None
            if self._ended.is_set():
                raise Ending("the server is ending")
        if instance.failure is not None:
            raise type(instance.failure)(str(instance.failure))

    def _take_out_unused(self) -> float | None:
        """Take out what is idle for too long.

        Returns:
            Seconds until another one may be; None for never.
        """
        timeout = 60 * (self._config.capacity.idle_timeout_minutes or 0)
        if not timeout:
            return None
        delay, now = timeout, self._now()
        for instance in self._instances.idle():
            left = (instance.record.last_used or 0.0) + timeout - now
            if left <= 0:
                self._instances.retire(instance)
            else:
                delay = min(delay, left)
        return delay

    def _configured(self, name: str) -> Record:
        if name not in self._records:
            raise NotConfigured(f"model '{name}' not configured")
        return self._records[name]

    def _entry(self, record: Record) -> Entry:
        instance, last = record.instance, record.last_used
        there = instance if instance is not None and instance.loaded else None
        return Entry(
            record.name,
            there is not None,
            there.device.gpu if there is not None and there.device is not None else -1,
            there.bytes if there is not None else 0,
            record.requests,
            record.inference_seconds,
            time.time() - (self._now() - last) if last is not None else 0.0,
            self._instances.users(record),
        )
