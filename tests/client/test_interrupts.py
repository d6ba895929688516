"""A call that is cancelled, interrupted or timed out, and the same call again: no step twice."""

import asyncio
import sys

import numpy as np
import pytest

from streamrnn_client import Client, aio, errors
from streamrnn_client._drivers import event_loop
from tests.support.fake_server import SocketServer

AT_REST = np.full((400, 2), 3, np.float32)  # numbers alone tell such rows from each other


def draw(num_rows):
    return np.random.default_rng(5).integers(0, 100, (num_rows, 2)).astype(np.float32)


class Interrupter:
    """Raise KeyboardInterrupt at the n-th line of the client that a call comes to."""

    def __init__(self, countdown):
        self.countdown = countdown

    def __call__(self, frame, event, argument):
        if "streamrnn_client/_" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.countdown -= 1
            if self.countdown < 0:
                raise KeyboardInterrupt
        return self

    def interrupts(self, call):
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


def feed(client, stream, rows, x):
    """Return calls by name, with the rows of outputs that each of them must give."""
    return {
        "step": (lambda: stream.step(x[0])[None], 1),
        "steps": (lambda: stream.steps(x), len(x)),
        "batch": (lambda: client.batch(rows, x[: len(rows)]), len(rows)),
        "step_many": (
            lambda: np.array(list(client.step_many(dict(zip("bcd", x, strict=False))).values())),
            3,
        ),
    }


@pytest.mark.parametrize("durability", ["none", "checkpoint"])
@pytest.mark.parametrize("name", ["step", "steps", "batch", "step_many"])
def test_an_interrupt_at_any_line_and_the_same_call_again_apply_every_step_once(name, durability):
    x = draw(10)
    with SocketServer(durability=durability) as server, Client(server.address) as client:
        stream = client.stream("a", "sum", window=4)
        rows = client.rows(["b", "c", "d"], "sum")
        call, num_rows = feed(client, stream, rows, x)[name]
        call()
        num_lines, num_calls, was_interrupted = 0, 1, True
        while was_interrupted:
            was_interrupted = Interrupter(num_lines).interrupts(call)
            num_lines += 1
            y = call() if was_interrupted else None
            num_calls += 1
            assert server.server.num_applied == num_calls * num_rows, num_lines
            if y is None:
                continue
            total = num_calls * x[: 1 if name == "step" else len(x)].sum(axis=0)
            expected = total if name.startswith("step") else num_calls * x[:3]
            expected = num_calls * x[:3] if name == "step_many" else expected
            assert np.array_equal(y if name in ("batch", "step_many") else y[-1], expected)
        assert num_lines > 50


def test_an_interrupted_reset_and_the_same_call_again_take_one_number():
    with SocketServer() as server, Client(server.address) as client:
        stream = client.stream("a", "sum")
        num_lines, was_interrupted = 0, True
        while was_interrupted:
            stream.step([1, 1])
            was_interrupted = Interrupter(num_lines).interrupts(stream.reset)
            num_lines += 1
            if was_interrupted:
                stream.reset()
            assert server.server.num_applied == stream.last_seq == 2 * num_lines


def cancel_when(condition, awaitable):
    async def cancel():
        task = asyncio.ensure_future(awaitable)
        while not condition() and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    return cancel()


@pytest.mark.parametrize("x", [AT_REST, draw(400)])
def test_cancelled_steps_go_on_where_they_stood(x):
    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum")
            for share in (0.2, 0.5, 0.5, 0.9):
                enough = share * len(x)
                await cancel_when(lambda n=enough: stream.last_seq >= n, stream.steps(x))
                assert 0 < stream.last_seq < len(x)
            y = await stream.steps(x)
            assert y.tolist() == np.cumsum(x, axis=0).tolist()
            assert server.server.num_applied == stream.last_seq == len(x)
            assert (await stream.steps(x))[-1].tolist() == (2 * y[-1]).tolist()

    with SocketServer() as server:
        asyncio.run(asyncio.wait_for(main(server), 60))


def test_other_steps_after_cancelled_ones_are_told_what_was_applied():
    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum")
            rows = await client.rows(["a", "b"], "sum")
            x = draw(400)
            await cancel_when(lambda: stream.last_seq > 100, stream.steps(x))
            done = stream.last_seq
            told = f"{done} of its 400 steps were applied, numbers 1 to {done}"
            for other in (stream.step([1, 1]), stream.steps(x[:7]), stream.steps(x + 1)):
                with pytest.raises(errors.Conflict, match=told) as caught:
                    await other
                assert caught.value.detail["expected"] == done + 1
            with pytest.raises(errors.PartialFailure) as partial:
                await client.batch(rows, [[1, 1], [2, 2]])
            assert isinstance(partial.value.errors["a"], errors.Conflict)
            # Its own rest, a number, or the server's word make plain what is meant.
            assert (await stream.steps(x[done:]))[-1].tolist() == x.sum(axis=0).tolist()
            await cancel_when(lambda: stream.last_seq > 500, stream.steps(x))
            again = await stream.steps(x, seq=401)
            assert again[-1].tolist() == (2 * x.sum(axis=0)).tolist()
            await cancel_when(lambda: stream.last_seq > 900, stream.steps(x))
            assert 900 < await stream.resync() == server.server.streams[b"sa"].last_seq
            await stream.step([1, 1])
            await cancel_when(lambda: stream.last_seq > 1300, stream.steps(x))
            await stream.resync()
            await stream.reset()
            assert (await stream.step([1, 2])).tolist() == [1, 2]

    with SocketServer() as server:
        asyncio.run(asyncio.wait_for(main(server), 60))


def go_mute_after(server, num_steps):
    handle = server.server.handle

    def mute(payload, shard):
        return handle(payload, shard) if server.server.num_applied < num_steps else None

    server.server.handle = mute
    return handle


def time_out(server, stream, x, num_steps):
    handle = go_mute_after(server, num_steps)
    with pytest.raises(errors.RequestTimeout) as caught:
        stream.steps(x)
    server.server.handle = handle
    return caught.value


def test_timed_out_steps_go_on_with_the_same_call_or_with_the_rest():
    x = draw(100)
    with SocketServer() as server, Client(server.address, timeout_s=0.2) as client:
        stream = client.stream("a", "sum")
        error = time_out(server, stream, x, 50)
        assert 0 < len(error.completed) == stream.last_seq < 100
        assert stream.steps(x).tolist() == np.cumsum(x, axis=0).tolist()
        error = time_out(server, stream, x, 150)
        done = len(error.completed)
        assert stream.steps(x[done:])[-1].tolist() == (2 * x.sum(axis=0)).tolist()
        error = time_out(server, stream, x, 250)
        assert stream.step(x[len(error.completed)]).shape == (2,)  # the caller knows: no doubt
        assert server.server.num_applied == stream.last_seq


def test_rows_at_rest_after_timed_out_ones_must_say_which_they_are():
    with SocketServer() as server, Client(server.address, timeout_s=0.2) as client:
        stream = client.stream("a", "sum")
        done = len(time_out(server, stream, AT_REST, 100).completed)
        with pytest.raises(errors.Conflict, match=rf"{done} of its 400 steps.*seq={done + 1}"):
            stream.steps(AT_REST)
        assert stream.steps(AT_REST, seq=1).tolist() == np.cumsum(AT_REST, axis=0).tolist()
        done = len(time_out(server, stream, AT_REST, 500).completed)
        assert 0 < done < 400
        stream.steps(AT_REST, seq=400 + done + 1)
        assert server.server.num_applied == stream.last_seq == 800 + done


def test_a_batch_cancelled_between_its_requests_is_applied_once():
    """One shard is busy: the other streams' steps are applied when the call is cancelled."""

    async def main(server):
        async with aio.Client(server.address) as client:
            rows = await client.rows(range(30), "sum")
            x = draw(30)
            server.server.busy_for = 10**6
            handle = server.server.handle

            def spare_some(payload, shard):
                server.server.busy_for = 5
                return handle(payload, shard)

            server.server.handle = spare_some
            applied = lambda: server.server.num_applied >= 25  # noqa: E731
            await cancel_when(applied, client.batch(rows, x))
            server.server.handle = handle
            server.server.busy_for = 0
            assert (await client.batch(rows, x)).tolist() == x.tolist()
            assert server.server.num_applied == 30
            assert rows.last_seqs == (1,) * 30

    with SocketServer() as server:
        asyncio.run(asyncio.wait_for(main(server), 60))


def test_what_was_abandoned_before_it_was_sent_is_never_sent(monkeypatch):
    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum", numbered=False)
            monkeypatch.setattr(event_loop, "send_outbox", lambda *args: False)
            task = asyncio.create_task(stream.step([1, 1]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.undo()
            assert (await stream.step([2, 2])).tolist() == [2, 2]

    with SocketServer() as server:
        asyncio.run(asyncio.wait_for(main(server), 60))
