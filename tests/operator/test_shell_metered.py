"""Only a coroutine's own steps count."""

import asyncio
import itertools

import pytest

from penstock_operator.shell.metered import Metered


async def test_each_step_counts_and_the_waiting_between_them_does_not():
    ticks = itertools.count()

    async def waits(times):
        for _ in range(times):
            await asyncio.sleep(0)
        return "done"

    for times in (0, 3):
        metered = Metered(waits(times), lambda: float(next(ticks)))
        assert await metered == "done"
        assert metered.seconds == times + 1


async def test_a_fault_and_a_cancellation_go_through():
    async def fails():
        await asyncio.sleep(0)
        raise ValueError("it")

    with pytest.raises(ValueError, match="it"):
        await Metered(fails(), lambda: 0.0)
    seen = []

    async def waits():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def outer():
        await Metered(waits(), lambda: 0.0)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]
