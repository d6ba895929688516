"""What waits to be answered, taken from each user in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from streamrnn_server.control.messages import Ask

__all__ = ["Turns"]


class Turns:
    """A queue for each user: who asks for little does not wait behind who asks for much.

    What one user asks for stays in its order. Without users each client has a queue. How much waits
    is limited by the shards (`streamrnn_server.shard.memory.clients`).
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[tuple[int, Ask]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, user: Hashable, shard: int, ask: Ask) -> None:
        """Let what a shard asks for a user, or for a client where there are none, wait."""
        if user not in self._queues:
            self._queues[user] = deque()
        self._queues[user].append((shard, ask))

    def take(self) -> tuple[int, Ask]:
        """Return the shard and what it asks, of the user whose turn it is."""
        user, queue = next(iter(self._queues.items()))
        first = queue.popleft()
        if queue:
            self._queues.move_to_end(user)
        else:
            del self._queues[user]
        return first
