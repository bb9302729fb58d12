"""Avatars without frames and networks, whose loads and ends a test controls."""

import threading
from collections import Counter
from concurrent.futures import Executor, Future

from engine.live import Scheduler
from serve.config import Capacity, Config, Gpus, Limits, Model
from serve.devices import Device
from serve.registry import Registry

LONG = 30.0  # seconds; more than anything takes


class FakeAvatar:
    """What the registry needs of a `ServedAvatar`."""

    def __init__(self, avatars: "FakeAvatars", name: str, gpu: int, size: int):
        self.avatars, self.name, self.gpu, self.bytes = avatars, name, gpu, size
        self.closed, self.failure = 0, None

    def close(self) -> None:
        self.closed += 1
        self.avatars.closed.append(self.name)


class FakeAvatars:
    """Loads avatars, and remembers all of them.

    Attributes:
        sizes: bytes by name.
        fail: errors by name; each load raises the first one that is left.
        gates: a load waits for the event of its name.
        began: set when a load of that name has begun.
    """

    def __init__(self, **sizes: int):
        self.sizes, self.made, self.closed = sizes, list[FakeAvatar](), list[str]()
        self.fail: dict[str, list[Exception]] = {}
        self.gates: dict[str, threading.Event] = {}
        self.began: dict[str, threading.Event] = {}
        self.loads, self.at_once = Counter[str](), Counter[str]()
        self.most_at_once, self.schedulers = 0, set[Scheduler]()
        self._lock = threading.Lock()

    def hold(self, name: str) -> threading.Event:
        """Let loads of this name wait until the event that is returned is set."""
        self.began[name] = threading.Event()
        self.gates[name] = threading.Event()
        return self.gates[name]

    def load(
        self, name: str, model: Model, config: Config, gpu: int, scheduler: Scheduler
    ) -> FakeAvatar:
        with self._lock:
            self.loads[name] += 1
            self.at_once[name] += 1
            self.most_at_once = max(self.most_at_once, self.at_once[name])
            self.schedulers.add(scheduler)
        try:
            if name in self.gates:
                self.began[name].set()
                assert self.gates[name].wait(LONG)
            if self.fail.get(name):
                raise self.fail[name].pop(0)
        finally:
            with self._lock:
                self.at_once[name] -= 1
        avatar = FakeAvatar(self, name, gpu, self.sizes.get(name, 1))
        self.made.append(avatar)
        return avatar

    @property
    def in_memory(self) -> list[str]:
        return [avatar.name for avatar in self.made if not avatar.closed]


class ManualExecutor(Executor):
    """Runs work when a test says so, in the test's thread."""

    def __init__(self, *_: object, **__: object):
        self.waiting = list[tuple[Future, object, tuple]]()
        self.is_shut = False

    def submit(self, work, /, *arguments, **_):
        assert not self.is_shut
        self.waiting.append((Future(), work, arguments))
        return self.waiting[-1][0]

    def run(self, index: int) -> None:
        future, work, arguments = self.waiting.pop(index)
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)

    def shutdown(self, *_: object, **__: object) -> None:
        assert not self.waiting
        self.is_shut = True


def config_of(*names: str, models: dict | None = None, gpus: dict | None = None, **capacity):
    """A configuration with these models. `load_seconds`, if given, goes to the limits."""
    seconds = capacity.pop("load_seconds", LONG)
    return Config(
        models={name: Model(**(models or {}).get(name, {})) for name in names},
        capacity=Capacity(**capacity),
        limits=Limits(load_seconds=seconds),
        gpus=Gpus(**(gpus or {})),
    )


def registry_of(
    config: Config,
    avatars: FakeAvatars,
    *,
    devices: int = 1,
    limit: int | None = None,
    now=None,
) -> Registry:
    there = [Device(number, "cpu", limit) for number in range(devices)]
    clock = {} if now is None else {"now": now}
    return Registry(config, avatars.load, devices=there, **clock)
