"""The registry under calls in any order: what must always hold, and that nobody waits forever.

Loads and ends run when the schedule says so, in the test's thread: every schedule can be repeated.
"""

import asyncio
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DeviceFull, InputError
from serve.errors import Busy, Ending, LoadFailed, NotLoaded
from tests.serve.fake_avatars import FakeAvatar, FakeAvatars, ManualExecutor, config_of, registry_of

NAMES = "abcd"
SIZES = {"a": 10, "b": 30, "c": 50, "d": 120}
ERRORS = (None, None, None, InputError("no frames"), DeviceFull("full"), KeyError("bug"))

names = st.sampled_from(NAMES)
numbers = st.integers(0, 50)
steps = st.one_of(
    st.tuples(st.just("use"), names),
    st.tuples(st.just("use"), names),
    st.tuples(st.just("load"), names, st.sampled_from([-1, -1, 0, 1])),
    st.tuples(st.just("unload"), names),
    st.tuples(st.just("leave"), numbers),
    st.tuples(st.just("cancel"), numbers),
    st.tuples(st.just("work"), numbers, st.sampled_from(ERRORS)),
    st.tuples(st.just("work"), numbers, st.just(None)),
    st.tuples(st.just("idle"), st.floats(0, 100)),
)


class Watched(FakeAvatar):
    """Knows who uses it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.users = 0

    def close(self) -> None:
        assert self.users == 0 and self.closed == 0, f"{self.name} ends with {self.users} users"
        super().close()


class Schedule:
    """A registry, the calls that run, and what must hold between any two steps."""

    def __init__(self, most: int, limit: int | None, devices: int, policy: str):
        self.avatars, self.time, self.most, self.limit = FakeAvatars(**SIZES), 0.0, most, limit
        self.error: Exception | None = None
        config = config_of(
            *NAMES,
            max_models=most,
            eviction_policy=policy,
            idle_timeout_minutes=1,
            load_seconds=1e6,
        )
        with mock.patch("serve.instances.ThreadPoolExecutor", ManualExecutor):
            self.registry = registry_of(
                config, self.avatars, devices=devices, limit=limit, now=lambda: self.time
            )
        self.registry._instances._load = self.load
        self.registry._instances._scheduler = lambda device: (
            None
        )  # its threads have no part in this
        self.threads: ManualExecutor = self.registry._instances._threads
        self.uses: list[tuple[asyncio.Task, asyncio.Event]] = []
        self.calls: list[asyncio.Task] = []

    def load(self, name, model, config, gpu, scheduler):
        if self.error is not None:
            raise self.error
        avatar = Watched(self.avatars, name, gpu, SIZES[name])
        self.avatars.made.append(avatar)
        return avatar

    async def use(self, name: str, leaves: asyncio.Event) -> None:
        async with self.registry.use(name) as use:
            assert use.served.name == name and not use.served.closed
            use.served.users += 1
            try:
                await leaves.wait()
            finally:
                use.served.users -= 1

    async def step(self, kind: str, *what) -> None:
        if kind == "use":
            leaves = asyncio.Event()
            self.uses.append((asyncio.create_task(self.use(what[0], leaves)), leaves))
        elif kind == "load":
            gpu = min(what[1], len(self.registry.devices()) - 1)
            self.calls.append(asyncio.create_task(self.registry.load(what[0], gpu)))
        elif kind == "unload":
            self.calls.append(asyncio.create_task(self.registry.unload(what[0])))
        elif kind == "leave" and self.uses:
            self.uses[what[0] % len(self.uses)][1].set()
        elif kind == "cancel":
            tasks = [task for task, _ in self.uses] + self.calls
            if tasks:
                tasks[what[0] % len(tasks)].cancel()
        elif kind == "work" and self.threads.waiting:
            self.error = what[1]
            self.threads.run(what[0] % len(self.threads.waiting))
        elif kind == "idle":
            self.time += what[0]
            self.registry._take_out_unused()
        await self.settle()

    async def settle(self) -> None:
        """Let the loop go on until it waits for a thread or a call."""
        for _ in range(30):
            await asyncio.sleep(0)
        self.check()

    def check(self) -> None:
        loading = [arguments[0] for _, work, arguments in self.threads.waiting if work == self.load]
        assert len(set(loading)) == len(loading), f"two loads at once of {loading}"
        assert len(loading) + len(self.avatars.in_memory) <= self.most
        there = {entry.name for entry in self.registry.entries() if entry.loaded}
        assert there <= set(self.avatars.in_memory)
        if self.limit is not None:
            for device in self.registry.devices():
                unsettled = loading or device.bytes <= self.limit
                assert unsettled or self.threads.waiting, f"{device} with nothing on its way"

    async def work_off(self) -> None:
        """Let all loads and ends come to their end."""
        for _ in range(200):
            if not self.threads.waiting:
                return
            await self.step("work", 0, None)
        raise AssertionError("loads and evictions do not end")

    async def end(self) -> None:
        await self.work_off()
        for _, leaves in self.uses:
            leaves.set()
        await self.settle()
        await self.work_off()
        for task in [task for task, _ in self.uses] + self.calls:
            assert task.done(), "a call waits forever"
            if not task.cancelled() and task.exception() is not None:
                assert type(task.exception()) in (Busy, LoadFailed, NotLoaded), task.exception()
        assert all(entry.in_use == 0 for entry in self.registry.entries())
        loaded = sorted(entry.name for entry in self.registry.entries() if entry.loaded)
        assert loaded == sorted(self.avatars.in_memory), "one is in memory that nobody can use"
        there = sum(SIZES[name] for name in loaded)
        assert sum(device.bytes for device in self.registry.devices()) == there
        assert len(self.registry._instances._there) == len(loaded), "a place is lost"
        for name in NAMES:  # what failed before is loaded now
            call = asyncio.create_task(self.registry.load(name))
            await self.settle()
            await self.work_off()
            if self.limit is not None and SIZES[name] > self.limit:
                assert isinstance(call.exception(), Busy)
            else:
                assert not call.result().served.closed

    async def close(self) -> None:
        """Close in the middle of everything."""
        close = asyncio.create_task(self.registry.close())
        await self.settle()
        for _, leaves in self.uses:
            leaves.set()
        for _ in range(200):
            if close.done():
                break
            await self.step("work", 0, None)
        await close
        assert self.threads.is_shut and not self.avatars.in_memory
        assert all(avatar.closed == 1 for avatar in self.avatars.made)
        for task in [task for task, _ in self.uses] + self.calls:
            assert task.done()
            if not task.cancelled() and task.exception() is not None:
                assert type(task.exception()) in (Busy, Ending, LoadFailed, NotLoaded)


@settings(max_examples=250, deadline=None)
@given(
    schedule=st.lists(steps, max_size=40),
    most=st.integers(1, 3),
    limit=st.sampled_from([None, 60, 100]),
    devices=st.integers(1, 2),
    policy=st.sampled_from(["lfu", "lru"]),
    works_off=st.booleans(),
)
def test_any_schedule(schedule, most, limit, devices, policy, works_off):
    async def run() -> None:
        own = asyncio.current_task()
        there = Schedule(most, limit, devices, policy)
        for step in schedule:
            await there.step(*step)
        if works_off:
            await there.end()
        await there.close()
        assert asyncio.all_tasks() == {own}

    asyncio.run(run())
