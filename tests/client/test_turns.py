"""Whose turn it is, how long a call may take, and event loops one after the other."""

import asyncio
import threading
import time
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn_client import Client, aio, errors
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.turns import Claim, give_back, has_turn, take
from tests.support.fake_server import SocketServer


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Slot:
    """What `turns` needs of a stream's state."""

    def __init__(self):
        self.id = 0
        self.turn = self.waiting = None


def claim_of(slots, indices):
    return Claim(cast(Any, [slots[i] for i in indices]))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "end", "cancel"]),
            st.sets(st.integers(0, 4), min_size=1),
            st.integers(0, 9),
        ),
        max_size=40,
    )
)
def test_claims_are_granted_in_order_to_one_each_and_none_is_forgotten(actions):
    slots = [Slot() for _ in range(5)]
    queue: list[Claim] = []  # all that are not over, in the order of their calls
    woken: list[Claim] = []
    for action, indices, which in actions:
        if action == "take":
            claim = claim_of(slots, indices)
            claim.wake = lambda claim=claim: woken.append(claim)
            if take(claim):
                woken.append(claim)
            queue.append(claim)
        elif queue:
            granted = [claim for claim in queue if has_turn(claim)]
            claim = granted[which % len(granted)] if action == "end" else queue[which % len(queue)]
            give_back(claim)
            give_back(claim)
            queue.remove(claim)
        # A claim has its turn when no earlier one wants any of its streams.
        entitled = [
            claim
            for k, claim in enumerate(queue)
            if not any(set(claim.states) & set(other.states) for other in queue[:k])
        ]
        assert [claim for claim in queue if has_turn(claim)] == entitled
        assert set(entitled) <= set(woken)
    while queue:
        give_back(queue.pop(0))
    assert not any(slot.turn or slot.waiting for slot in slots)


def test_tasks_that_step_one_stream_are_served_in_the_order_of_their_calls():
    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum")
            rows = await client.rows(["a", "b"], "sum")
            calls = [stream.step([k, 0]) for k in range(50)]
            calls.insert(20, client.batch(rows, [[1000, 0], [1000, 0]]))
            outputs = [np.ravel(y)[0] for y in await asyncio.gather(*calls)]
            expected = np.cumsum([*range(20), 1000, *range(20, 50)]).tolist()
            assert outputs == expected

    with SocketServer() as server:
        run(main(server))


def test_the_work_of_a_turn_does_not_grow_with_the_number_of_those_who_wait():
    """Counted in the callbacks of the event loop, not in seconds."""

    class CountingLoop(asyncio.SelectorEventLoop):
        num_callbacks = 0

        def call_soon(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
            self.num_callbacks += 1
            return super().call_soon(*arguments, **options)

    async def main(server, num_tasks):
        loop = cast(CountingLoop, asyncio.get_running_loop())
        async with aio.Client(server.address, timeout_s=50) as client:
            stream = await client.stream(num_tasks, "sum")
            before = loop.num_callbacks
            await asyncio.gather(*(stream.step([1, 1]) for _ in range(num_tasks)))
            return (loop.num_callbacks - before) / num_tasks

    with SocketServer() as server:
        costs = []
        for num_tasks in (50, 1000):
            with asyncio.Runner(loop_factory=CountingLoop) as runner:
                costs.append(runner.run(main(server, num_tasks)))
        assert costs[1] < 2 * costs[0]


def test_a_cancelled_wait_leaves_the_queue():
    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum")
            tasks = [asyncio.create_task(stream.step([k, 0])) for k in range(1, 5)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes.pop(1), asyncio.CancelledError)
            assert [cast(Any, y)[0] for y in outcomes] == [1, 4, 8]

    with SocketServer() as server:
        run(main(server))


def test_the_timeout_of_waiting_tasks_counts_from_their_calls():
    async def main(server):
        async with aio.Client(server.address, timeout_s=0.3) as client:
            stream = await client.stream("a", "sum")
            server.is_mute = True
            started = time.monotonic()
            calls = (stream.step([1, 1]) for _ in range(20))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(error) for error in outcomes} == {errors.RequestTimeout}
            assert "its turn on stream 'a'" in str(outcomes[5])
            # 20 x 0.3 s were 6 s.
            assert time.monotonic() - started < 3

    with SocketServer() as server:
        run(main(server))


def test_the_timeout_of_waiting_threads_counts_from_their_calls():
    with SocketServer() as server, Client(server.address, timeout_s=0.3) as client:
        stream = client.stream("a", "sum")
        server.is_mute = True
        outcomes = []

        def step():
            try:
                stream.step([1, 1])
            except (errors.RequestTimeout, errors.ConnectionLost) as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=step) for _ in range(12)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 12
        assert time.monotonic() - started < 3
        server.is_mute = False
        assert stream.step([1, 1]).tolist() == [1, 1]


def test_the_request_of_a_call_that_waited_has_the_rest_of_its_time():
    async def main(server):
        async with aio.Client(server.address, timeout_s=50) as client:
            stream = await client.stream("a", "sum")
            server.is_mute = True
            tasks = [asyncio.create_task(stream.step([1, 1])) for _ in range(2)]
            await asyncio.sleep(0)
            latest = time.monotonic() + 50
            tasks[0].cancel()
            pending = cast(Any, client._driver._hub).exchange._pending
            received = server.num_received
            while server.num_received == received:
                await asyncio.sleep(0.001)
            assert [call.deadline <= latest for call in pending.values()] == [True]
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with SocketServer() as server:
        run(main(server))


def test_a_call_that_is_looked_at_late_gets_a_little_time_once():
    now = 0.0
    exchange = Exchange(lambda: now, timeout_s=1.0, resend_s=9.0)
    call = exchange.submit("nowhere", "step", (b"",))
    now = 5.0  # the process was stopped meanwhile
    exchange.tick()
    assert not call.done
    assert now < exchange.next_at() <= 5.3
    now = exchange.next_at() + 5
    exchange.tick()
    assert isinstance(call.error, errors.RequestTimeout)
    call = exchange.submit("nowhere", "step", (b"",))
    now = call.deadline
    exchange.tick()
    assert isinstance(call.error, errors.RequestTimeout)


def test_a_thread_reads_what_has_come_before_it_gives_up(monkeypatch):
    monkeypatch.setattr("streamrnn_client._session.exchange.LATE_S", float("inf"))
    with SocketServer() as server, Client(server.address, timeout_s=0.2) as client:
        stream = client.stream("a", "sum")
        next_at = Exchange.next_at

        def late(self):
            due = next_at(self)
            time.sleep(0.3)  # now the answer is here, and the time is over
            return due

        monkeypatch.setattr(Exchange, "next_at", late)
        assert stream.steps([[1, 1]]).tolist() == [[1, 1]]


# ---- event loops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_left_in_a_call", [False, True])
def test_a_client_goes_on_in_a_second_event_loop(is_left_in_a_call):
    with SocketServer() as server:
        client = aio.Client(server.address, timeout_s=5)

        async def step():
            return (await (await client.stream("a", "sum")).step([1, 1])).tolist()

        assert run(step()) == [1, 1]
        if is_left_in_a_call:  # and the loop is closed without cancelling it
            server.is_mute = True
            loop = asyncio.new_event_loop()
            task = loop.create_task(step())
            received = server.num_received
            while server.num_received == received:
                loop.run_until_complete(asyncio.sleep(0.001))
            loop.close()
            cast(Any, task)._log_destroy_pending = False
            server.is_mute = False
        assert run(step()) == [2, 2]
        run(client.close())
        with pytest.raises(errors.ClientClosed):
            run(step())


def test_two_event_loops_may_take_turns():
    with SocketServer() as server:
        client = aio.Client(server.address)
        loops = [asyncio.new_event_loop() for _ in range(2)]
        stream = loops[0].run_until_complete(client.stream("a", "sum"))
        for count in range(1, 5):
            y = loops[count % 2].run_until_complete(stream.step([1, 1]))
            assert y.tolist() == [count, count]
        loops[0].run_until_complete(client.close())
        for loop in loops:
            loop.close()


def test_a_second_event_loop_at_the_same_time_is_refused_at_once():
    with SocketServer() as server:
        client = aio.Client(server.address)
        outcome = []

        async def main():
            stream = await client.stream("a", "sum")

            def elsewhere():
                try:
                    run(stream.step([1, 1]))
                except errors.NotSupported as error:
                    outcome.append(str(error))

            await asyncio.to_thread(elsewhere)
            assert (await stream.step([1, 1])).tolist() == [1, 1]
            await client.close()

        run(main())
        assert "another event loop" in outcome[0]


def test_an_event_loop_that_cannot_watch_sockets_is_served_by_looking():
    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, fd: Any, callback: Any, *arguments: Any) -> Any:  # type: ignore[override]
            if callback.__name__ == "_work":
                raise NotImplementedError
            return super().add_reader(fd, callback, *arguments)

    async def main(server):
        async with aio.Client(server.address) as client:
            stream = await client.stream("a", "sum")
            assert (await stream.steps(np.ones((100, 2))))[-1].tolist() == [100, 100]

    with SocketServer() as server, asyncio.Runner(loop_factory=Proactor) as runner:
        runner.run(main(server))


def test_what_has_come_while_the_event_loop_was_kept_is_read_before_the_timeout():
    async def main(server):
        async with aio.Client(server.address, timeout_s=0.2) as client:
            stream = await client.stream("a", "sum")
            for count in range(1, 4):
                tasks = [asyncio.create_task(stream.step([1, 1])) for _ in range(2)]
                await asyncio.sleep(0)
                time.sleep(0.25)  # other code keeps the loop for longer than timeout_s
                ys = [y.tolist() for y in await asyncio.gather(*tasks)]
                assert ys == [[2 * count - 1] * 2, [2 * count] * 2]

    with SocketServer() as server:
        run(main(server))
