"""Calls in forked children, in signal handlers and in finalizers; processes that are stopped."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast

import numpy as np
import pytest

from streamrnn_client import Client, aio, errors
from streamrnn_client._session.exchange import Exchange
from tests.support.fake_server import SocketServer


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def in_child(work):
    """Run work() in a forked child; return whether it ended well, False if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_sockets_of_its_own_and_leaves_the_parents_alone():
    with SocketServer() as server, Client(server.address) as client:
        stream = client.stream("a", "sum")
        stream.step([1, 1])
        # Another thread is in the midst of a call, and has a stream and perhaps the lock.
        held = client.stream("held", "sum")
        server.lose_requests = 1
        thread = threading.Thread(target=lambda: held.step([1, 1]))
        received = server.num_received
        thread.start()
        while server.num_received == received:
            threading.Event().wait(0.001)

        def work():
            assert stream.step([1, 1]).tolist() == [2, 2]
            assert held.step([1, 1]).tolist() == [1, 1]
            client.close()

        assert in_child(work)
        thread.join()
        with pytest.raises(errors.Conflict):  # the child has made this step, with another x
            stream.step([5, 5])
        assert stream.resync() == 2
        assert stream.step([1, 1]).tolist() == [3, 3]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_event_loop_of_a_forked_child_has_sockets_of_its_own():
    with SocketServer() as server:
        client = aio.Client(server.address)

        async def step():
            return (await (await client.stream("a", "sum")).step([1, 1])).tolist()

        async def main():
            assert await step() == [1, 1]
            assert await asyncio.to_thread(in_child, work)
            return await step()

        def work():
            assert asyncio.run(step()) == [2, 2]

        assert run(main()) == [3, 3]


class InMidst:
    """Have something done by a signal handler, or a finalizer, once a call waits for its answer."""

    def __init__(self, server, work):
        self.outcomes = []
        self.answer = server.server.handle
        server.server.handle = self.answer_late
        self.server = server
        self.done = threading.Event()
        self.work = work
        self.before = signal.signal(signal.SIGUSR1, self.handle)

    def answer_late(self, payload, shard):
        self.server.server.handle = self.answer
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)).start()
        return None  # this request is lost, so that its call waits

    def handle(self, *_):
        try:
            self.outcomes.append(self.work())
        except errors.StreamRNNClientError as error:
            self.outcomes.append(error)
        signal.signal(signal.SIGUSR1, self.before)


@pytest.mark.parametrize("name", ["step", "batch"])
def test_a_signal_handler_may_call_in_the_midst_of_a_call(name):
    with SocketServer() as server, Client(server.address, resend_s=0.1) as client:
        stream, other = client.streams(["a", "b"], "sum")
        rows = client.rows(["a", "c"], "sum")
        call = {
            "step": lambda: stream.step([1, 1]),
            "batch": lambda: client.batch(rows, np.ones((2, 2)))[0],
        }[name]
        midst = InMidst(server, lambda: other.step([2, 2]).tolist())
        assert call().tolist() == [1, 1]
        assert midst.outcomes == [[2, 2]]
        # The stream of the interrupted call itself cannot be waited for.
        started = time.monotonic()
        midst = InMidst(server, lambda: stream.step([2, 2]))
        assert call().tolist() == [2, 2]
        assert isinstance(midst.outcomes[0], errors.NotSupported)
        assert "'a'" in str(midst.outcomes[0])
        assert time.monotonic() - started < client._driver.options.timeout_s
        assert stream.step([1, 1]).tolist() == [3, 3]


def test_finalizers_may_close_streams_in_the_midst_of_a_call(monkeypatch):
    class Session:
        def __init__(self, stream):
            self.stream = stream
            self.me = self  # so that a collection ends it, and nothing else

        def __del__(self):
            self.stream.close()

    def collecting(function):
        def collect_first(*arguments, **options):
            gc.collect(0)
            return function(*arguments, **options)

        return collect_first

    for name in ("submit", "receive", "next_at"):
        monkeypatch.setattr(Exchange, name, collecting(getattr(Exchange, name)))
    gc.disable()  # the thread of the server must not be the one that collects
    try:
        with SocketServer() as server, Client(server.address) as client:
            rows = client.rows(range(1000, 1010), "sum")
            for k in range(20):
                Session(client.stream(k, "sum"))
                assert client.batch(rows, np.ones((10, 2)))[0].tolist() == [k + 1, k + 1]
            assert len(server.server.streams) == 10
    finally:
        gc.enable()


def test_an_answer_that_came_while_the_process_was_stopped_is_read():
    code = """
import sys
from streamrnn_client import Client
client = Client(sys.argv[1], timeout_s=0.3)
stream = client.stream("a", "sum")
print("ready", flush=True)
sys.stdin.readline()
print(stream.step([1, 1]).tolist(), flush=True)
"""
    with SocketServer() as server:
        handle = server.server.handle
        arguments = [sys.executable, "-c", code, server.address]
        child = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

        def stop_and_answer(payload, shard):
            server.server.handle = handle
            child.send_signal(signal.SIGSTOP)
            threading.Timer(0.6, child.send_signal, (signal.SIGCONT,)).start()
            return handle(payload, shard)

        server.server.handle = stop_and_answer
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "[1.0, 1.0]\n"
        assert child.wait(20) == 0
        child.stdin.close()
        child.stdout.close()


def test_an_error_of_a_handler_that_ends_a_call_leaves_the_call_undone():
    """Whatever of the client's errors it is: the outer call has been interrupted by it."""
    with SocketServer() as server, Client(server.address, resend_s=0.1) as client:
        stream = client.stream("a", "sum")

        def handle(*_):
            client._driver.run(lambda session, ex: session.steps(ex, stream._state, [[1, 1]], None))

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            session = cast(Any, client._driver.session)
            accept = session.accept

            def accept_and_be_interrupted(*arguments):
                y = accept(*arguments)
                session.accept = accept
                signal.raise_signal(signal.SIGUSR1)
                return y

            session.accept = accept_and_be_interrupted
            with pytest.raises(errors.NotSupported):
                stream.step([1, 1])
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert stream.step([1, 1]).tolist() == [1, 1]
        assert server.server.num_applied == stream.last_seq == 1
