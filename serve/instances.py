"""Avatars in memory: where there is room for one, its load in a thread, its end."""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import DeviceFull, InputError, one_line
from engine.live import Scheduler

from .avatar import ServedAvatar
from .config import Config, Model
from .devices import GIB, Device
from .errors import Busy, Ending, LoadFailed

Load = Callable[[str, Model, Config, int, Scheduler], ServedAvatar]
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Record:
    """An avatar of the configuration, and what is recorded of it.

    Attributes:
        instance: what new calls use; None if it must be loaded first.
        bytes: that it took when it was last loaded; 0 if it never was.
        uses: calls that have used it.
        last_used: on the registry's clock; None if it never was.
        requests, inference_seconds: of batches, as they were reported.
    """

    name: str
    model: Model
    instance: "Instance | None" = None
    bytes: int = 0
    uses: int = 0
    last_used: float | None = None
    requests: int = 0
    inference_seconds: float = 0.0


class Instance:
    """An avatar in memory, from the start of its load to its end.

    Attributes:
        users: calls that use it or wait for it. It ends when it is 0, not before.
        device: None until there is room.
        served: None until it is loaded, and at its end.
        settled: whether it is loaded, or its load has failed.
        told: set when it is settled, or the server ends: those who wait are to look.
        failure: why it was not loaded.
        closing: the task that ends it.
    """

    def __init__(self, record: Record):
        self.record, self.users, self.bytes = record, 0, record.bytes
        self.device: Device | None = None
        self.served: ServedAvatar | None = None
        self.settled, self.told = False, asyncio.Event()
        self.failure: InputError | None = None
        self.closing: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether it is loaded, new calls would use it, and none does."""
        return self.loaded and self.record.instance is self and self.users == 0 and not self.closing

    @property
    def loaded(self) -> bool:
        """Whether it can be used."""
        return self.settled and self.served is not None

    def settle(self, failure: InputError | None = None) -> None:
        """Tell those who wait that it is loaded, or why not."""
        self.settled, self.failure = True, failure
        self.told.set()


class Instances:
    """All avatars in memory. Its methods run on one event loop; loads and ends run in threads.

    Args:
        config: its capacity is never exceeded, with what is being loaded or ended.
        load: loads an avatar, in a thread.
        devices: where.
    """

    def __init__(self, config: Config, load: Load, devices: Sequence[Device]):
        self._config, self._load, self.devices = config, load, devices
        self._there: dict[Instance, None] = {}  # in the order in which there was room
        self._schedulers: dict[Device, Scheduler] = {}
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        # One thread for each instance, so that a load that hangs holds up no other.
        most = config.capacity.max_models + len(devices)
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="viseme-load")
        self._changed = asyncio.Event()  # a call has left
        self.ending = False

    def begin(self, record: Record, gpu: int) -> Instance:
        """Begin to load an avatar, on this device or, with -1, on the strategy's choice."""
        record.instance = instance = Instance(record)
        self._spawn(self._fill(instance, gpu))
        return instance

    def leave(self, instance: Instance) -> None:
        """Count one user less."""
        instance.users -= 1
        self._changed.set()
        if instance.record.instance is not instance:
            self.retire(instance)

    def retire(self, instance: Instance) -> None:
        """Take an avatar out: new calls load it anew, and it ends when its last user leaves."""
        if instance.record.instance is instance:
            instance.record.instance = None
        if instance.users == 0 and instance.served is not None:
            self._end(instance)

    def bytes_on(self, device: Device) -> int:
        """Return the bytes that all avatars on a device take, with those being ended."""
        return sum(instance.bytes for instance in self._there if instance.device is device)

    def users(self, record: Record) -> int:
        """Return how many calls use an avatar, or wait for it."""
        instances = {record.instance, *(each for each in self._there if each.record is record)}
        return sum(each.users for each in instances if each is not None)

    def idle(self) -> list[Instance]:
        """Return the avatars that can go, the first to go first."""
        return sorted((instance for instance in self._there if instance.idle), key=self._rank)

    def failure(self) -> BaseException | None:
        """Return what ended a thread that makes frames, which is a bug; None if all run."""
        found = [scheduler.failure for scheduler in self._schedulers.values()]
        found += [each.served.failure for each in self._there if each.served is not None]
        return next((failure for failure in found if failure is not None), None)

    async def close(self, seconds: float) -> None:
        """End everything: at once what nobody uses, the rest when its users have left, or after so
        many seconds. Loads that run are waited for."""
        self.ending = True
        for instance in list(self._there):
            if instance.settled:
                self.retire(instance)
        patience_ends = asyncio.get_running_loop().time() + seconds
        while any(instance.users for instance in self._there):
            self._changed.clear()
            try:
                async with asyncio.timeout_at(patience_ends):
                    await self._changed.wait()
            except TimeoutError:
                break
        for instance in list(self._there):
            if instance.loaded:
                self._end(instance)
        while self._tasks:
            await asyncio.wait(self._tasks)
        schedulers, self._schedulers = list(self._schedulers.values()), {}
        for scheduler in schedulers:
            await self._in_thread(scheduler.close)
        self._threads.shutdown()

    # --- a load ----------------------------------------------------------------------------------

    async def _fill(self, instance: Instance, gpu: int) -> None:
        """Make room, load, and say so to those who wait."""
        name = instance.record.name
        try:
            await self._make_room(instance, gpu)
            await self._load_into(instance)
            if self.ending:
                raise Ending("the server is ending")
        except (Busy, Ending, LoadFailed) as error:
            failure: InputError = type(error)(str(error))  # without the frames, which hold memory
        except InputError as error:
            failure = LoadFailed(str(error))
        except Exception as error:
            _log.exception("model %r cannot be loaded", name)
            failure = LoadFailed(f"{type(error).__name__}: {one_line(error)}")
        else:
            instance.settle()
            return
        _log.warning("model %r is not loaded: %s", name, failure)
        if instance.record.instance is instance:
            instance.record.instance = None
        if instance.served is not None:
            await asyncio.wait({self._end(instance)})
        self._there.pop(instance, None)
        instance.settle(failure)

    async def _load_into(self, instance: Instance) -> None:
        """Load onto the instance's device. Others that are idle go if the memory is too little."""
        record, device = instance.record, instance.device
        assert device is not None
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while instance.served is None:
            try:
                instance.served = await self._in_thread(
                    self._load, record.name, record.model, self._config, device.gpu,
                    self._scheduler(device),
                )  # fmt: skip
                continue
            except DeviceFull as error:
                full = str(error)
            if not await self._free_one([device]):
                others = sum(other.device is device for other in self._there) - 1
                if others:
                    raise Busy(f"{full}. {others} other avatars on {device.name} are in use")
                raise LoadFailed(full)
        instance.bytes = record.bytes = instance.served.bytes
        while not self._fits(device, 0):
            # In vain, if all that are idle were not enough.
            if not self._could_fit(device, 0) or not await self._free_one([device]):
                raise self._too_much(record, [device], instance.bytes)
        _log.info(
            "model %r is loaded on %s: %.2f GiB, %.1f s",
            record.name, device.name, instance.bytes / GIB, loop.time() - begin,
        )  # fmt: skip

    def _scheduler(self, device: Device) -> Scheduler:
        """Return the scheduler of a device, which is made with the first avatar on it."""
        if device not in self._schedulers:
            # A client may pause between two utterances. Calls close their sessions.
            self._schedulers[device] = Scheduler(abandoned=math.inf)
            self._schedulers[device].start()
        return self._schedulers[device]

    # --- room ------------------------------------------------------------------------------------

    async def _make_room(self, instance: Instance, gpu: int) -> None:
        """Wait until there is room for one more avatar, and take it. Others that are idle go.

        Raises:
            Busy: those that are there are in use.
            Ending: the server ends.
        """
        devices, most = self._candidates(instance.record, gpu), self._config.capacity.max_models
        while True:
            if self.ending:
                raise Ending("the server is ending")
            if len(self._there) >= most:
                if not await self._free_one(self.devices):
                    raise Busy(
                        f"model {instance.record.name!r} cannot be loaded: {len(self._there)} "
                        "avatars are in use or being loaded; expected less than "
                        f"{most} (max_models)"
                    )
                continue
            needed = instance.record.bytes
            for device in devices:
                if self._fits(device, needed):
                    instance.device = device
                    self._there[instance] = None
                    return
            for device in devices:
                if self._could_fit(device, needed) and await self._free_one([device]):
                    break
            else:
                raise self._too_much(instance.record, devices, needed)

    def _candidates(self, record: Record, gpu: int) -> list[Device]:
        """Return the devices for an avatar, the preferred one first."""
        wanted = gpu if gpu >= 0 else record.model.preferred_gpu
        if wanted >= 0:
            return [self.devices[wanted]]
        if self._config.gpus.assignment_strategy == "round-robin":
            first = next(self._turn) % len(self.devices)
            return [*self.devices[first:], *self.devices[:first]]
        on = [instance.device for instance in self._there]
        return sorted(self.devices, key=lambda d: (self.bytes_on(d), on.count(d), d.gpu))

    def _fits(self, device: Device, needed: int) -> bool:
        """Whether a device has room for so many bytes more."""
        return device.limit is None or self.bytes_on(device) + needed <= device.limit

    def _could_fit(self, device: Device, needed: int) -> bool:
        """Whether it has room when all avatars are gone that can go."""
        return self._fits(device, needed - self._can_go(device))

    def _can_go(self, device: Device) -> int:
        """Return the bytes of avatars on a device that are idle, or are being ended."""
        return sum(
            instance.bytes
            for instance in self._there
            if instance.device is device and (instance.idle or instance.closing is not None)
        )

    async def _free_one(self, devices: Sequence[Device]) -> bool:
        """Wait until an avatar on one of these devices is gone. Return whether any could go."""
        closing = [s.closing for s in self._there if s.closing is not None and s.device in devices]
        if not closing:
            victim = next((each for each in self.idle() if each.device in devices), None)
            if victim is None:
                return False
            _log.info("model %r is evicted", victim.record.name)
            victim.record.instance = None
            closing = [self._end(victim)]
        await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
        return True

    def _rank(self, instance: Instance) -> tuple[float, ...]:
        record = instance.record
        last = record.last_used if record.last_used is not None else -1.0
        return (record.uses, last) if self._config.capacity.eviction_policy == "lfu" else (last,)

    def _too_much(self, record: Record, devices: Sequence[Device], needed: int) -> Busy:
        device = devices[0]
        others = [s for s in self._there if s.device is device and s.record is not record]
        used = sum(instance.bytes for instance in others) - self._can_go(device)
        assert device.limit is not None
        return Busy(
            f"model {record.name!r} needs {needed / GIB:.2f} GiB of {device.name}, where avatars "
            f"in use have {used / GIB:.2f} GiB; expected at most {device.limit / GIB:.2f} GiB "
            "in all (max_memory_gb, or what the device has)"
        )

    # --- an end ----------------------------------------------------------------------------------

    def _end(self, instance: Instance) -> asyncio.Task[None]:
        """End an avatar, once."""
        if instance.closing is None:
            instance.closing = self._spawn(self._close_one(instance))
        return instance.closing

    async def _close_one(self, instance: Instance) -> None:
        try:
            await self._in_thread(_close, instance)
        except Exception:
            _log.exception("model %r: its end failed", instance.record.name)
        finally:
            self._there.pop(instance, None)

    def _in_thread(self, work: Callable[..., Any], *arguments: object) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _close(instance: Instance) -> None:
    """Close an avatar, and give its memory back."""
    served, instance.served = instance.served, None
    assert served is not None
    try:
        served.close()
    finally:
        on_gpu = instance.device is not None and instance.device.name != "cpu"
        del served
        if on_gpu:
            torch.cuda.empty_cache()
