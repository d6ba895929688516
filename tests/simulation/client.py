"""A client's operations over a network and a clock that are only numbers: no socket, no waiting.

Messages take random time, are lost, come twice and overtake each other; the server is started
again. A seed makes every run repeat.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass
from typing import Any

from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.turns import Claim, give_back, take
from tests.support.fake_server import FakeServer

TIMEOUT_S = 5.0


@dataclass
class Weather:
    """How bad the network is; probabilities of one message, seconds."""

    lost: float = 0.0
    twice: float = 0.0
    slowest_s: float = 0.02


class Cancelled(BaseException):
    """What ends a call as a cancellation does."""


class Network:
    """One client, and what is on its way to a server of one or more shards and back."""

    def __init__(self, seed: int, num_shards: int = 1, weather: Weather | None = None):
        self.random = random.Random(seed)
        self.weather = weather or Weather()
        self.now = 0.0
        self.endpoints = [f"sim://{k}" for k in range(num_shards)]
        self.session = Session(self.endpoints[0], give_back)
        draw = self.random.random
        self.exchange = Exchange(lambda: self.now, timeout_s=TIMEOUT_S, resend_s=0.1, draw=draw)
        self._events: list[tuple[float, int, str, Any]] = []
        self._order = itertools.count()
        self.num_sends = 0
        self.cancel_in: int | None = None  # so many events from now

    def run(self, operation: Operation[Any]) -> Any:
        """Run an operation to its end; its exceptions come out."""
        claims: list[Claim] = []
        try:
            wanted = next(operation)
            while True:
                if isinstance(wanted, Claim):
                    claims.append(wanted)
                    assert take(wanted)
                else:
                    self._wait(wanted)
                wanted = operation.send(None)
        except StopIteration as stop:
            return stop.value
        except BaseException as error:
            operation.close()
            for claim in claims:
                give_back(claim, error)
            raise
        finally:
            for claim in claims:
                give_back(claim)

    def _wait(self, call: Call) -> None:
        while not call.done:
            if self.cancel_in is not None:
                self.cancel_in -= 1
                if self.cancel_in < 0:
                    self.cancel_in = None
                    raise Cancelled
            outbox = self.exchange.outbox
            while outbox:
                out = outbox.popleft()
                if out.done:
                    continue
                self.num_sends += 1
                self._ship("request", (self.endpoints.index(out.endpoint), out.payload))
            due = self.exchange.next_at()
            if self._events and self._events[0][0] <= due:
                self.now, _, kind, what = heapq.heappop(self._events)
                self._deliver(kind, what)
            else:
                self.now = max(self.now, due)
                self.exchange.tick()

    def _deliver(self, kind: str, what: Any) -> None:
        """Let something arrive: ``request`` (shard, payload), or ``reply`` payload."""
        raise NotImplementedError

    def _ship(self, kind: str, what: Any) -> None:
        chance = self.random.random()
        copies = 1
        if chance < self.weather.lost:
            copies = 0
        elif chance < self.weather.lost + self.weather.twice:
            copies = 2
        for _ in range(copies):
            at = self.now + self.random.uniform(0.001, self.weather.slowest_s)
            heapq.heappush(self._events, (at, next(self._order), kind, what))


class Simulation(Network):
    """One client and one `FakeServer`, which answers everything at once."""

    def __init__(self, seed: int, num_shards: int = 1, weather: Weather | None = None, **server):
        super().__init__(seed, num_shards, weather)
        self.server = FakeServer(endpoints=self.endpoints, **server)

    def _deliver(self, kind: str, what: Any) -> None:
        if kind == "reply":
            self.exchange.receive(what)
        else:
            shard, payload = what
            reply = self.server.handle(payload, shard)
            if reply is not None:
                self._ship("reply", reply)
