"""The asyncio client."""

import asyncio
import inspect

import numpy as np
import pytest

from streamrnn_client import Client, StateLost, Stream, aio, errors
from tests.support.fake_server import SocketServer


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def public(cls):
    return {
        name: member
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


@pytest.mark.parametrize(("blocking", "awaitable"), [(Client, aio.Client), (Stream, aio.Stream)])
def test_both_clients_have_the_same_methods(blocking, awaitable):
    assert public(blocking).keys() == public(awaitable).keys()
    for name, method in public(awaitable).items():
        gives = str(inspect.signature(method).return_annotation)
        assert inspect.iscoroutinefunction(method) or gives.startswith("AsyncIterator")
        ours, theirs = (inspect.signature(c) for c in (method, public(blocking)[name]))
        assert str(ours).replace("aio.", "").replace("AsyncIterator", "Iterator") == str(theirs)
        assert method.__doc__ == f"Await `streamrnn_client.{blocking.__name__}.{name}`." or (
            method.__doc__ == public(blocking)[name].__doc__
        )
    ours, theirs = inspect.signature(aio.Client), inspect.signature(Client)
    assert ours.parameters == theirs.parameters


def test_every_public_method_works():
    async def main(address):
        async with aio.Client(address) as client:
            stream = await client.stream("a", model="sum")
            assert (await stream.step({"a": 1, "b": 2})).tolist() == [1, 2]
            assert (await stream.steps(np.ones((100, 2))))[-1].tolist() == [101, 102]
            ys = await client.step_many({"a": [0, 0], "b": [4, 5]}, model="sum")
            assert ys["b"].tolist() == [4, 5]
            rows = await client.rows(range(50), "sum")
            assert (await client.batch(rows, np.ones((50, 2)))).tolist() == [[1, 1]] * 50
            await stream.reset()
            assert await stream.resync() == 103
            assert await stream.close()
            assert (await client.hello()).instance == "first"
            assert set(await client.models()) == {"sum", "sum3"}
            assert (await client.stats())["num_steps"] > 0
            assert (await client.diagnostics("b"))["is_recorded"]
            assert "tcp" in repr(client)
        with pytest.raises(errors.ClientClosed):
            await client.hello()

    with SocketServer(num_shards=2) as server:
        run(main(server.address))
        assert len(server.server.streams) == 51


def test_many_tasks_share_a_client_and_a_stream():
    async def main(server):
        async with aio.Client(server.address, timeout_s=20, resend_s=5) as client:
            streams = await client.streams(range(300), "sum")
            shared = await client.stream("shared", "sum")

            async def feed(stream):
                for count in range(1, 6):
                    assert (await stream.step([1, 0])).tolist() == [count, 0]
                    await shared.step([1, 1])

            await asyncio.gather(*map(feed, streams))
            assert (await shared.step([0, 0])).tolist() == [1500, 1500]

    with SocketServer(max_in_flight=50) as server:
        run(main(server))


def test_losses_busy_timeouts_and_restarts():
    async def main(server):
        async with aio.Client(server.address, timeout_s=10, resend_s=0.05) as client:
            stream = await client.stream("a", "sum")
            server.lose_replies = 2
            assert (await stream.step([1, 1])).tolist() == [1, 1]
            server.server.busy_for = 3
            assert (await stream.step([1, 1])).tolist() == [2, 2]
            server.stop()
            server.start_again()
            with pytest.raises(StateLost, match=r"first before, second now"):
                await stream.step([1, 1])
        async with aio.Client(server.address, timeout_s=0.2, resend_s=0.05) as client:
            stream = await client.stream("b", "sum")
            server.is_mute = True
            with pytest.raises(errors.RequestTimeout):
                await stream.step([1, 1])
            server.stop()
            with pytest.raises(errors.ConnectionLost):
                await stream.step([1, 1])

    with SocketServer() as server:
        run(main(server))


def test_a_cancelled_step_frees_its_stream_and_keeps_its_number():
    async def main(server):
        async with aio.Client(server.address, resend_s=0.05) as client:
            stream = await client.stream("a", "sum")
            server.is_mute = True
            received = server.num_received
            task = asyncio.create_task(stream.step([1, 2]))
            while server.num_received == received:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.is_mute = False
            with pytest.raises(errors.Conflict, match="resync"):
                await stream.step([3, 4])
            assert (await stream.step([1, 2])).tolist() == [1, 2]
            assert stream.last_seq == 1

    with SocketServer() as server:
        run(main(server))


def test_closing_a_client_wakes_waiting_calls():
    async def main(server):
        client = aio.Client(server.address)
        stream = await client.stream("a", "sum")
        server.is_mute = True
        tasks = [asyncio.create_task(stream.step([1, 2])) for _ in range(3)]
        received = server.num_received
        while server.num_received == received:
            await asyncio.sleep(0.001)
        await client.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [errors.ClientClosed] * 3

    with SocketServer() as server:
        run(main(server))


def test_nothing_waits_for_the_next_resending():
    """With an alarm in 1,000 s, only what comes in may set the next step going."""

    async def main(server):
        async with aio.Client(server.address, timeout_s=3000, resend_s=1000) as client:
            streams = await client.streams(range(5), "sum")
            await asyncio.gather(*(stream.step([1, 1]) for stream in streams))
            server.server.busy_for = 3
            assert (await streams[0].step([1, 1])).tolist() == [2, 2]

    with SocketServer(max_in_flight=1) as server:
        run(main(server))
