"""A server that can be slow, silent or wrong: a ROUTER in a thread, which computes nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import numpy as np
import zmq

from streamrnn_bench.load.generator import Generator, Target
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.senders import NUM_X, ModelLoad
from streamrnn_client.protocol import encode_error, encode_response

NUM_INPUTS, OUTPUT_SIZE = 3, 2


class FakeServer:
    """Answers as the protocol says, but for what a test makes of `answer` and `stall_s`.

    Attributes
    ----------
    answer : callable
        Takes method, params and the usual result; returns what is sent: a result, `Refusal`, bytes
        of a whole reply (after ``msgid``), or None for nothing.
    stall_s : float
        After so many seconds of steps no message is taken for ``stalled_for_s``.
    """

    def __init__(self, answer=None, stall_after_s=None, stalled_for_s=0.0):
        self.answer = answer or (lambda method, params, result, msgid: result)
        self.open: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.steps_at_s: list[float] = []
        self._stall_after_s, self._stalled_for_s = stall_after_s, stalled_for_s
        self._ends = threading.Event()

    def __enter__(self):
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set_hwm(0)
        self._router.linger = 0
        self._router.bind("tcp://127.0.0.1:*")
        self.endpoint = self._router.get_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join()
        self._router.close()
        self._context.term()

    def _serve(self):
        import msgpack

        first_step_s = None
        while not self._ends.is_set():
            if not self._router.poll(20):
                continue
            identity, payload = self._router.recv_multipart()
            _kind, msgid, method, params = msgpack.unpackb(payload)
            self.calls[method] += 1
            if method in ("step", "batch"):
                now = time.monotonic()
                first_step_s = first_step_s or now
                self.steps_at_s.append(now - first_step_s)
                stall = self._stall_after_s
                if stall is not None and now - first_step_s > stall:
                    self._stall_after_s = None
                    time.sleep(self._stalled_for_s)
            answer = self.answer(method, params, self._result(method, params), msgid)
            if answer is None:
                continue
            if isinstance(answer, Refusal):
                answer = encode_error(msgid, [answer.code, "a test wants it", None])
            elif not isinstance(answer, bytes):
                answer = encode_response(msgid, answer)
            self._router.send_multipart([identity, answer])

    def _result(self, method, params):
        if method == "hello":
            return {}
        if method == "open":
            self.open |= dict.fromkeys(params[0], params[2])
            self.last |= dict.fromkeys(params[0], 0)
            return [[None, [0, 0, params[2]]] for _ in params[0]]
        if method == "close":
            return self.open.pop(params[0], None) is not None
        if method == "batch":
            names, seqs, x = params[:3]
            assert len(x) == len(names) * NUM_INPUTS * 4
            for name, seq in zip(names, seqs, strict=True):
                assert seq == self.last[name] + 1
                self.last[name] = seq
            numbers = np.array(seqs, "<u8").tobytes()
            return [{}, numbers, bytes(8 * len(names)), bytes(4 * OUTPUT_SIZE * len(names))]
        name, seq, x = params[:3]
        num_steps = len(x) // (4 * NUM_INPUTS)
        if seq == self.last.get(name, 0) + 1:
            self.last[name] = seq + num_steps - 1
        return [seq + num_steps - 1, 0, bytes(4 * OUTPUT_SIZE * num_steps)]


class Refusal:
    def __init__(self, code):
        self.code = code


@contextlib.contextmanager
def generator_of(server, others=(), **options):
    """Open a generator's streams at a fake server."""
    endpoints = [each.endpoint for each in (server, *others)]
    x = np.random.default_rng(0).standard_normal((NUM_X, NUM_INPUTS)).astype(np.float32)
    target = Target(endpoints, [ModelLoad("m", x, OUTPUT_SIZE)], max_in_flight=8192)
    given = {"streams": 4, "warm_up_s": 0.0, "duration_s": 0.2, "timeout_s": 1.0} | options
    with Generator(target, LoadOptions(**given)) as generator:
        yield generator
