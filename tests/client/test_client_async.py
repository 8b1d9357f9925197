"""The asyncio client against a scripted service."""

import asyncio
import gc

import grpc
import pytest
from inference_fake import Fault, last, token

import penstock_client as sdk
from penstock_client import AsyncClient


async def two_tokens(request, context, attempt):  # type: ignore[no-untyped-def]
    yield token("a", 1, request_id="r-1")
    yield last("b", 2)


async def endless(request, context, attempt):  # type: ignore[no-untyped-def]
    for number in range(10_000):
        yield token("x", number)
        await asyncio.sleep(0.01)


async def _until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition lives in the fake service
            await asyncio.sleep(0.005)


async def test_generate_and_stream_give_the_same_answer(serving) -> None:  # type: ignore[no-untyped-def]
    address, fake = await serving(two_tokens)
    async with AsyncClient(address, api_key="k") as client:
        answer = await client.generate("p", max_tokens=2)
        deltas = [delta async for delta in client.stream("p", max_tokens=2)]
    assert answer.text == "".join(delta.text for delta in deltas) == "ab"
    assert answer.request_id == "r-1" and answer.finish_reason == deltas[-1].finish_reason == "stop"
    assert fake.metadata[0]["authorization"] == "Bearer k"


@pytest.mark.parametrize("leave", ["break", "close", "with", "collect", "task", "timeout"])
async def test_a_stream_left_early_is_cancelled_at_the_service(serving, leave) -> None:  # type: ignore[no-untyped-def]
    address, fake = await serving(endless)
    async with AsyncClient(address) as client:
        if leave == "break":
            async for _ in client.stream("p"):
                break
        elif leave == "close":
            stream = client.stream("p")
            await anext(stream)
            await stream.aclose()
            assert [delta async for delta in stream] == []
        elif leave == "with":
            async with client.stream("p") as stream:
                await anext(stream)
        elif leave == "collect":
            stream = client.stream("p")
            await anext(stream)
            del stream
            gc.collect()
        elif leave == "task":
            task = asyncio.create_task(client.generate("p"))
            await _until(lambda: fake.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.generate("p")
        await _until(lambda: fake.cancelled == 1)


async def test_every_one_of_fifty_abandoned_streams_is_cancelled(serving) -> None:  # type: ignore[no-untyped-def]
    address, fake = await serving(endless)
    async with AsyncClient(address) as client:

        async def abandon() -> None:
            async for _ in client.stream("p"):
                return

        await asyncio.gather(*(abandon() for _ in range(50)))
        await _until(lambda: fake.cancelled == 50)


async def test_a_call_cancelled_by_the_service_does_not_cancel_the_task(serving) -> None:  # type: ignore[no-untyped-def]
    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        yield token("a", 1)
        yield Fault(grpc.StatusCode.CANCELLED)

    address, _ = await serving(script)
    async with AsyncClient(address) as client:
        with pytest.raises(sdk.Cancelled):
            await client.generate("p")


async def test_closing_while_another_task_reads_ends_that_read_with_cancelled(serving) -> None:  # type: ignore[no-untyped-def]
    async def silent(request, context, attempt):  # type: ignore[no-untyped-def]
        yield token("x", 1)
        await asyncio.sleep(60)

    address, _ = await serving(silent)
    async with AsyncClient(address) as client:
        stream = client.stream("p")
        await anext(stream)
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        stream.close()
        with pytest.raises(sdk.Cancelled):
            await reader


async def test_unavailable_is_sent_again_only_before_the_first_token(serving) -> None:  # type: ignore[no-untyped-def]
    soon = Fault(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-retry-pushback-ms", "1"),))

    async def script(request, context, attempt):  # type: ignore[no-untyped-def]
        if attempt == 1:
            yield soon
        yield token("a", 1)
        if request.prompt == "break":
            yield soon
        yield last("b", 2)

    address, fake = await serving(script)
    async with AsyncClient(address) as client:
        assert (await client.generate("p")).text == "ab" and len(fake.requests) == 2
        assert [sent.get("x-penstock-previous-attempts") for sent in fake.metadata] == [None, "1"]
        with pytest.raises(sdk.Broken):
            await client.generate("break")
        assert len(fake.requests) == 3


async def test_a_deadline_is_the_calls_own(serving) -> None:  # type: ignore[no-untyped-def]
    address, fake = await serving(endless)
    async with AsyncClient(address, timeout_s=0.1) as client:
        with pytest.raises(sdk.DeadlineExceeded):
            await client.generate("p")
        await _until(lambda: fake.cancelled == 1)


async def test_models_status_and_errors_of_single_calls(serving) -> None:  # type: ignore[no-untyped-def]
    address, _ = await serving(two_tokens)
    async with AsyncClient(address) as client:
        assert (await client.models())[0].name == "tiny"
        assert (await client.status()).router_id == "r0"
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(sdk.Unavailable):
            await client.status(timeout_s=5)


async def test_a_client_may_be_made_outside_a_loop_and_used_again_after_close(serving) -> None:  # type: ignore[no-untyped-def]
    client = await asyncio.to_thread(AsyncClient, (await serving(two_tokens))[0])
    assert (await client.generate("p")).text == "ab"
    await client.close()
    assert (await client.generate("p")).text == "ab"
    await client.close()
