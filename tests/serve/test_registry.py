"""Loads, evictions, ends: what calls see of them. The loads are fakes."""

import asyncio
import gc
import logging
import math
import threading
import time
import weakref
from contextlib import AsyncExitStack

import pytest

from engine.errors import DeviceError, DeviceFull, InputError
from serve import registry as module
from serve.config import Config, Model
from serve.errors import Busy, Ending, LoadFailed, NotConfigured, NotLoaded
from serve.registry import Registry
from tests.serve.fake_avatars import LONG, FakeAvatars, config_of, registry_of


def run(work):
    async def bounded():
        return await asyncio.wait_for(work, LONG)

    return asyncio.run(bounded())


async def until(condition) -> None:
    """Let the loop and its threads go on until something is so."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.001)


def loaded(registry: Registry) -> set[str]:
    return {entry.name for entry in registry.entries() if entry.loaded}


def entry_of(registry: Registry, name: str):
    return next(entry for entry in registry.entries() if entry.name == name)


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


# --- loads ----------------------------------------------------------------------------------------


def test_a_call_loads_and_the_next_one_does_not():
    async def work():
        avatars, before = FakeAvatars(a=7), time.time()
        registry = registry_of(config_of("a", "b"), avatars)
        async with registry.use("a") as first:
            assert first.loaded and first.load_seconds > 0 and first.served is avatars.made[0]
            assert entry_of(registry, "a")[:4] == ("a", True, 0, 7)
            assert entry_of(registry, "a").in_use == 1
        async with registry.use("a") as second:
            assert second == (avatars.made[0], False, 0.0)
        assert entry_of(registry, "b") == ("b", False, -1, 0, 0, 0.0, 0.0, 0)
        assert before - 0.1 <= entry_of(registry, "a").last_used <= time.time() + 0.1
        assert registry.devices() == [(0, "cpu", 7, None)]
        await registry.close()
        assert avatars.made[0].closed == 1 and registry.devices()[0].bytes == 0

    run(work())


def test_many_calls_wait_for_one_load_and_others_go_on():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("slow", "quick"), avatars)
        gate, order = avatars.hold("slow"), []

        async def call():
            async with registry.use("slow") as use:
                order.append(use.loaded)
                return use.served

        calls = [asyncio.create_task(call()) for _ in range(20)]
        await until(avatars.began["slow"].is_set)
        async with registry.use("quick") as use:  # while the other one loads
            assert use.served.name == "quick" and not order
        assert entry_of(registry, "slow")[1:4] == (False, -1, 0)
        assert entry_of(registry, "slow").in_use == 20
        gate.set()
        assert set(await asyncio.gather(*calls)) == {avatars.made[1]}
        assert avatars.loads == {"slow": 1, "quick": 1} and sorted(order) == [False] * 19 + [True]
        await registry.close()

    run(work())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("crop_rects.json does not exist"), "crop_rects.json does not exist"),
        (DeviceError("device is cuda, but"), "device is cuda, but"),
        (DeviceFull("avatar 'a' needs 3.00 GiB"), "avatar 'a' needs 3.00 GiB"),
        (KeyError("of a\nbug"), "KeyError: 'of a\\nbug'"),
    ],
)
def test_a_failure_is_told_to_all_who_wait_and_the_next_call_tries_again(error, line, caplog):
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        avatars.fail["a"], gate = [error], avatars.hold("a")

        async def call():
            async with registry.use("a"):
                pass

        calls = [asyncio.create_task(call()) for _ in range(3)]
        await until(avatars.began["a"].is_set)
        gate.set()
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            assert type(failure) is LoadFailed and str(failure) == line
            assert failure.__cause__ is None and failure.__context__ is None  # they hold memory
        assert registry.devices()[0].bytes == 0 and not loaded(registry)
        async with registry.use("a") as use:
            assert use.loaded
        assert avatars.loads["a"] == 2
        await registry.close()

    run(work())
    assert any(line in record.getMessage() for record in caplog.records)
    assert isinstance(error, InputError) == all(
        record.exc_info is None for record in caplog.records
    )


def test_a_load_that_takes_too_long_goes_on_and_is_kept():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", load_seconds=0.01), avatars)
        gate = avatars.hold("a")
        line = "model 'a' is still being loaded after 0.01 s; try again later"
        for _ in range(2):
            with pytest.raises(Busy, match=line):
                async with registry.use("a"):
                    pass
        with pytest.raises(Busy, match="after 0.005 s"):
            async with registry.use("a", timeout=0.005):
                pass
        assert avatars.loads["a"] == 1
        gate.set()
        async with registry.use("a", timeout=LONG) as use:
            assert not use.loaded
        assert avatars.loads["a"] == 1
        await registry.close()

    run(work())


def test_a_waiter_that_is_cancelled_disturbs_nobody():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        gate = avatars.hold("a")

        async def call():
            async with registry.use("a") as use:
                return use.served.name

        first = asyncio.create_task(call())
        await until(avatars.began["a"].is_set)
        second = asyncio.create_task(call())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert await second == "a" and avatars.loads["a"] == 1
        await registry.close()

    run(work())


def test_a_load_that_nobody_waits_for_any_more_is_kept():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        gate = avatars.hold("a")
        call = asyncio.create_task(registry.load("a"))
        await until(avatars.began["a"].is_set)
        call.cancel()
        await asyncio.wait({call})
        assert entry_of(registry, "a").in_use == 0
        gate.set()
        await until(lambda: loaded(registry) == {"a"})
        async with registry.use("a") as use:
            assert not use.loaded
        await registry.close()

    run(work())


def test_names_and_devices_that_there_are_not():
    async def work():
        registry = registry_of(config_of("a"), FakeAvatars())
        with pytest.raises(NotConfigured, match=r"^model 'x' not configured$"):
            async with registry.use("x"):
                pass
        with pytest.raises(NotConfigured, match="model '../a' not configured"):
            await registry.load("../a")
        with pytest.raises(NotConfigured):
            registry.count("x", 0.1)
        for gpu in (-2, 1):
            with pytest.raises(InputError, match=f"gpu is {gpu}; expected 0, or -1 for any"):
                await registry.load("a", gpu)
        for name in ("a", "x"):
            with pytest.raises(NotLoaded, match=f"^model '{name}' not loaded$"):
                await registry.unload(name)
        await registry.close()

    run(work())


def test_statistics():
    async def work():
        clock = Clock()
        registry = registry_of(config_of("a"), FakeAvatars(), now=clock)
        await registry.load("a")
        registry.count("a", 0.25)
        registry.count("a", 0.5)
        clock.time += 1000
        before, found, after = time.time(), entry_of(registry, "a"), time.time()
        assert (found.requests, found.inference_seconds) == (2, 0.75)
        assert before - 0.1 <= found.last_used + 1000 <= after + 0.1
        await registry.unload("a")
        assert entry_of(registry, "a").requests == 2 and not loaded(registry)
        await registry.close()

    run(work())


# --- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "goes"), [("lfu", "seldom"), ("lru", "old")])
def test_the_policy_says_which_one_goes(policy, goes):
    async def work():
        clock, avatars = Clock(), FakeAvatars()
        config = config_of("old", "seldom", "new", max_models=2, eviction_policy=policy)
        registry = registry_of(config, avatars, now=clock)
        for name in ("old", "old", "seldom"):
            clock.time += 1
            async with registry.use(name):
                pass
        async with registry.use("new"):
            assert avatars.closed == [goes] and loaded(registry) == {"old", "seldom", "new"} - {
                goes
            }
        await registry.close()

    run(work())


def test_none_in_use_goes():
    async def work():
        clock, avatars = Clock(), FakeAvatars()
        config = config_of("a", "b", "c", max_models=2, eviction_policy="lru")
        registry = registry_of(config, avatars, now=clock)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(registry.use("a"))  # the oldest
            clock.time += 1
            await registry.load("b")
            await registry.load("c")
            assert avatars.closed == ["b"]
            async with registry.use("c"):
                line = (
                    "model 'b' cannot be loaded: 2 avatars are in use or being loaded; "
                    r"expected less than 2 \(max_models\)"
                )
                with pytest.raises(Busy, match=line):
                    await registry.load("b")
        await registry.load("b")
        assert len(avatars.in_memory) == 2
        await registry.close()

    run(work())


def test_those_that_are_being_loaded_count():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", "b", "c", max_models=2), avatars)
        gates = [avatars.hold(name) for name in "ab"]
        calls = [asyncio.create_task(registry.load(name)) for name in "ab"]
        await until(lambda: all(avatars.began[name].is_set() for name in "ab"))
        with pytest.raises(Busy, match="2 avatars are in use or being loaded"):
            await registry.load("c")
        for gate in gates:
            gate.set()
        await asyncio.gather(*calls)
        await registry.load("c")
        await registry.close()

    run(work())


def test_known_sizes_make_room_before_the_load_and_unknown_ones_after_it():
    async def work():
        avatars = FakeAvatars(a=60, b=30, c=50)
        registry = registry_of(config_of("a", "b", "c"), avatars, limit=100)
        await registry.load("a")
        await registry.load("b")
        await registry.load("c")  # 140 of 100: one of the others goes
        assert avatars.closed == ["a"] and registry.devices()[0].bytes == 80
        gate = avatars.hold("a")
        call = asyncio.create_task(registry.load("a"))
        await until(avatars.began["a"].is_set)
        assert sorted(avatars.closed) == ["a", "b", "c"]  # before it began
        gate.set()
        await call
        await registry.close()

    run(work())


def test_memory_in_use_is_refused_with_numbers():
    async def work():
        gib = 2**30
        avatars = FakeAvatars(a=3 * gib, b=2 * gib)
        registry = registry_of(config_of("a", "b"), avatars, limit=4 * gib)
        line = (
            r"model 'b' needs 2.00 GiB of cpu, where avatars in use have 3.00 GiB; expected at most "
            r"4.00 GiB in all"
        )
        async with registry.use("a"):
            for _ in range(2):
                with pytest.raises(Busy, match=line):
                    await registry.load("b")
            assert avatars.closed == ["b"] and avatars.loads["b"] == 1  # its size is known now
        await registry.load("b")
        assert avatars.in_memory == ["b"]
        await registry.close()

    run(work())


def test_one_that_never_fits_evicts_no_other():
    async def work():
        avatars = FakeAvatars(a=10, huge=101)
        registry = registry_of(config_of("a", "huge"), avatars, limit=100)
        await registry.load("a")
        for _ in range(2):
            with pytest.raises(Busy, match="model 'huge' needs 0.00 GiB of cpu"):
                await registry.load("huge")
        assert avatars.in_memory == ["a"] and avatars.loads["huge"] == 1
        await registry.close()

    run(work())


def test_a_full_device_is_freed_until_the_load_fits():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", "b", "c"), avatars)
        await registry.load("a")
        await registry.load("b")
        avatars.fail["c"] = [DeviceFull("no"), DeviceFull("no")]
        await registry.load("c")
        assert avatars.in_memory == ["c"] and avatars.loads["c"] == 3
        async with registry.use("c"):
            avatars.fail["a"] = [DeviceFull("avatar 'a' needs 3.00 GiB, 1.00 GiB are free")]
            line = "needs 3.00 GiB, 1.00 GiB are free. 1 other avatars on cpu are in use"
            with pytest.raises(Busy, match=line):
                await registry.load("a")
        await registry.close()

    run(work())


def test_devices_in_turn_or_by_load_or_as_preferred():
    async def work():
        avatars = FakeAvatars(a=50, b=10, c=10, d=10)
        config = config_of(*"abcd", models={"d": {"preferred_gpu": 0}})
        registry = registry_of(config, avatars, devices=2)
        for name in "abcd":
            await registry.load(name)
        assert [entry.gpu for entry in registry.entries()] == [0, 1, 0, 0]
        assert [device.bytes for device in registry.devices()] == [70, 10]
        assert len(avatars.schedulers) == 2
        await registry.unload("d")
        assert (await registry.load("d", gpu=1)).served.gpu == 1  # the call's wish comes first
        assert (await registry.load("d", gpu=0)).served.gpu == 1  # it stays where it is
        await registry.close()

        config = config_of(*"abcd", gpus={"assignment_strategy": "least-loaded"})
        registry = registry_of(config, avatars, devices=2)
        for name in "abcd":
            await registry.load(name)
        assert [entry.gpu for entry in registry.entries()] == [0, 1, 1, 1]
        await registry.close()

    run(work())


def test_another_device_is_taken_where_the_first_is_full():
    async def work():
        avatars = FakeAvatars(a=60, b=60)
        registry = registry_of(config_of("a", "b", "c"), avatars, devices=2, limit=100)
        async with registry.use("a"):  # on 0
            await registry.load("b")  # on 1; its size is known from now on
            await registry.unload("b")
            assert (await registry.load("b")).served.gpu == 1  # it was the turn of 0
        await registry.close()

    run(work())


# --- ends -----------------------------------------------------------------------------------------


def test_unloaded_while_in_use_ends_with_its_last_user_and_is_loaded_anew():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", "b", max_models=2), avatars)
        async with registry.use("a") as old:
            await registry.unload("a")
            assert not loaded(registry) and not avatars.closed and old.served.closed == 0
            assert entry_of(registry, "a").in_use == 1 and registry.devices()[0].bytes == 1
            with pytest.raises(NotLoaded):
                await registry.unload("a")
            async with registry.use("a") as new:
                assert new.loaded and new.served is not old.served
                with pytest.raises(Busy):  # both are in memory
                    await registry.load("b")
        await until(lambda: avatars.closed == ["a"])
        assert avatars.made[0].closed == 1 and avatars.made[1].closed == 0
        await registry.unload("a")  # nobody uses it: it is gone when this returns
        assert avatars.made[1].closed == 1
        await registry.close()

    run(work())


def test_unload_of_one_that_is_being_loaded_comes_after_that():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        for fails in (False, True):
            avatars.made.clear()
            gate = avatars.hold("a")
            avatars.fail["a"] = [InputError("no")] if fails else []
            call = asyncio.create_task(registry.load("a"))
            await until(avatars.began["a"].is_set)
            unload = asyncio.create_task(registry.unload("a"))
            await asyncio.sleep(0)
            gate.set()
            results = await asyncio.gather(call, unload, return_exceptions=True)
            if fails:
                assert [type(result) for result in results] == [LoadFailed, NotLoaded]
            else:
                assert results[0].served is avatars.made[0] and results[1] is None
            await until(lambda: not avatars.in_memory)
            assert not loaded(registry)
        assert avatars.most_at_once == 1
        await registry.close()

    run(work())


def test_unused_ones_are_taken_out():
    async def work():
        clock, avatars = Clock(), FakeAvatars()
        config = config_of("a", "b", "used", idle_timeout_minutes=2)
        registry = registry_of(config, avatars, now=clock)
        assert registry._take_out_unused() == 120
        await registry.load("a")
        clock.time += 60
        async with registry.use("used"):
            await registry.load("b")
            assert registry._take_out_unused() == 60
            clock.time += 60
            assert registry._take_out_unused() == 60
            await until(lambda: avatars.closed == ["a"])
            clock.time += 600
            registry._take_out_unused()
            await until(lambda: avatars.closed == ["a", "b"])
        assert registry._take_out_unused() == 120  # counted from the end of its use
        assert loaded(registry) == {"used"}
        await registry.close()

    run(work())


@pytest.mark.parametrize("minutes", [None, 0, 0.0005])
def test_run_takes_out_unused_ones_until_the_end(minutes):
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", idle_timeout_minutes=minutes), avatars)
        watch = asyncio.create_task(registry.run())
        await registry.load("a")
        if minutes:
            await until(lambda: avatars.closed == ["a"])
        else:
            assert registry._take_out_unused() is None
        assert not watch.done()
        await registry.close()
        await watch

    run(work())


def test_memory_of_one_that_is_gone_comes_back():
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", "b", max_models=1), avatars)
        async with registry.use("a") as use:
            found = weakref.ref(use.served)
        del use
        avatars.made.clear()
        gc.disable()  # nothing but references keeps it
        try:
            await registry.load("b")
            assert found() is None
        finally:
            gc.enable()
        await registry.close()

    run(work())


# --- before and after -----------------------------------------------------------------------------


def test_preload():
    async def work():
        avatars = FakeAvatars(a=60, b=30, big=50)
        names = "a", "b", "big", "broken"
        models = {name: {"preload": True} for name in names}
        registry = registry_of(config_of(*names, "other", models=models), avatars, limit=100)
        avatars.fail["broken"] = [InputError("no frames")]
        failures = await registry.preload()
        assert len(failures) == 2 and str(failures["broken"]) == "no frames"
        late = next(name for name in failures if name != "broken")  # whichever came last
        assert isinstance(failures[late], Busy) and "max_memory_gb" in str(failures[late])
        assert loaded(registry) == set(names) - set(failures)
        assert all(entry.in_use == 0 for entry in registry.entries())
        await registry.close()

    run(work())


def test_what_cannot_be_configured():
    models = {"a": Model(preload=True), "b": Model(preload=True)}
    capacity = {"max_models": 1}
    with pytest.raises(InputError, match=r"2 models are to be preloaded; expected at most 1"):
        Registry(Config(models=models, capacity=capacity), FakeAvatars().load)
    cpu = {"count": 0}
    with pytest.raises(InputError, match="model 'a': preferred_gpu is 3; expected 0, or -1"):
        Registry(Config(models={"a": Model(preferred_gpu=3)}, gpus=cpu), FakeAvatars().load)
    with pytest.raises(InputError, match="gpus.count is 1000; expected at most"):
        Registry(Config(gpus={"count": 1000}), FakeAvatars().load)


def test_the_host_has_a_limit():
    registry = Registry(Config(gpus={"count": 0}), FakeAvatars().load)
    (device,) = registry.devices()
    assert device[:3] == (0, "cpu", 0) and 0 < device.limit < 2**50
    registry = Registry(Config(gpus={"count": 0}, capacity={"max_memory_gb": 1.5}))
    assert registry.devices()[0].limit == 3 * 2**29


def test_close_tells_all_who_wait_and_ends_all():
    async def work():
        tasks = asyncio.all_tasks()
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", "b", "slow", max_models=3), avatars)
        gate = avatars.hold("slow")
        await registry.load("b")
        waiting = [asyncio.create_task(registry.load("slow")) for _ in range(2)]
        unload = asyncio.create_task(registry.unload("slow"))
        await until(avatars.began["slow"].is_set)
        left = asyncio.Event()

        async def user():
            async with registry.use("a") as use:
                await left.wait()
                return use.served.closed

        use = asyncio.create_task(user())
        await until(lambda: entry_of(registry, "a").loaded)
        closes = [asyncio.create_task(registry.close()) for _ in range(2)]
        for call in [*waiting, unload]:
            with pytest.raises((Ending, NotLoaded)):
                await call
        with pytest.raises(Ending, match="the server is ending"):
            await registry.load("b")
        await until(lambda: avatars.closed == ["b"])
        assert not any(close.done() for close in closes)
        left.set()
        assert await use == 0
        await until(lambda: avatars.closed == ["b", "a"])
        assert not any(close.done() for close in closes)  # a load still runs
        gate.set()
        await asyncio.gather(*closes)
        assert [avatar.closed for avatar in avatars.made] == [1, 1, 1]
        assert asyncio.all_tasks() == tasks

    before = threading.active_count()
    run(work())
    assert threading.active_count() == before


def test_close_does_not_wait_forever_for_users(monkeypatch):
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.01)

    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        async with registry.use("a") as use:
            await registry.close()
            assert use.served.closed == 1
        assert avatars.made[0].closed == 1

    run(work())


def test_a_failing_end_is_logged_and_the_avatar_is_gone(caplog, monkeypatch):
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a", max_models=1), avatars)
        await registry.load("a")
        avatars.made[0].close = lambda: 1 / 0
        await registry.unload("a")
        await registry.load("a")
        await registry.close()

    with caplog.at_level(logging.INFO):
        run(work())
    assert "model 'a': its end failed" in caplog.text and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("of", ["sessions", "batches"])
def test_a_dead_thread_is_seen(of):
    async def work():
        avatars = FakeAvatars()
        registry = registry_of(config_of("a"), avatars)
        await registry.load("a")
        assert registry.failure is None
        (scheduler,) = avatars.schedulers
        dead = scheduler if of == "sessions" else avatars.made[0]
        dead.failure = RuntimeError("a bug")
        assert registry.failure is dead.failure
        await registry.close()

    run(work())


def test_endless_waits_are_possible():
    async def work():
        registry = registry_of(config_of("a"), FakeAvatars())
        async with registry.use("a", timeout=math.inf) as use:
            assert use.loaded
        await registry.close()

    run(work())
