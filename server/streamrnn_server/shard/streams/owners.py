"""Whose a stream is: users are numbered as they come, and streams carry the number.

Without keys there are no users, no table, and nothing is looked at. With keys, libzmq says of each
message whose connection it came through (`User-Id`, which the ZAP handler of
`streamrnn_server.access.auth` has set: the number of the key, and the user's name); what a client
says of itself counts for nothing. A key that was removed is refused from the next message on.

A stream's owner is `UNKNOWN` while its record is looked up, and `NO_OWNER` if it is of a time
before there were keys: then it belongs to the first user who asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_u8,
    store_i32,
    store_u8,
)
from streamrnn.kernels.virtual_memory import address_of, reserve, struct_address
from streamrnn_client.protocol import MAX_BATCH, ErrorCode
from streamrnn_client.protocol.identity import hash64 as hash64_bytes
from streamrnn_server.config import MAX_USER_NAME_BYTES, UserLimits
from streamrnn_server.shard.libzmq import msg_property
from streamrnn_server.shard.memory.admission import (
    USER_BUDGET_BYTES,
    Limit,
    UserBudget,
    charge_steps,
    ns_per_step,
    user_budget_at,
    wait_of_steps,
)
from streamrnn_server.shard.memory.clients import AskBucket
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.index import equal_bytes, hash64
from streamrnn_server.shard.memory.slab import model_of, slot_of
from streamrnn_server.shard.requests.finish import set_error
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.streams.replay_ring import ring_size
from streamrnn_server.shard.structs import Shard, UsersStruct, users_at

__all__ = [
    "MAX_ASKS",
    "MAX_ASKS_PER_CALL",
    "MAX_KEYS",
    "NO_OWNER",
    "NS_PER_ASK",
    "UNKNOWN",
    "Users",
    "begin_lookup",
    "count_ring",
    "count_stream",
    "encode_key_number",
    "end_lookup",
    "exceeded_limit",
    "is_forbidden",
    "may_take_steps",
    "name_of_owner",
    "number_of",
    "owner_of",
    "set_owner",
    "take_steps",
    "user_of",
]

NO_OWNER, UNKNOWN = 0, -1
_NAME_BYTES = 256  # a length, and the name
_MAX_USERS = 1 << 16
_TABLE_MASK = 2 * _MAX_USERS - 1
_KEY_LETTERS = 4  # of a key's number in a `User-Id`, four bits each
_LETTER_A = ord("A")
MAX_KEYS = 1 << 4 * _KEY_LETTERS
# Requests that wait for Python hold records, and without free ones no message is received.
_MAX_LOOKUPS = MAX_BATCH // 2
# Requests to Python, of all users together.
_ASKS_PER_S = 2_000
MAX_ASKS = 2_000
MAX_ASKS_PER_CALL = 200
NS_PER_ASK = 1_000_000_000 // _ASKS_PER_S
_NS_PER_MS = 1_000_000


def encode_key_number(number: int) -> bytes:
    """Write the number of a key as a `User-Id` begins with it."""
    nibbles = (number >> 4 * k & 15 for k in reversed(range(_KEY_LETTERS)))
    return bytes(_LETTER_A + nibble for nibble in nibbles)


class Users:
    """A shard's users and the owners of its streams.

    Parameters
    ----------
    num_slots : int
        How many slots there are, those of lookups too.
    is_valid : ndarray of uint8, shape (MAX_KEYS,)
        By the number of a key, whether it may be used; Python changes it.
    default : UserLimits
        What a user may take of the whole server, unless `set_limits` says otherwise.
    num_shards : int
        Among which each limit is divided.
    share : int
        Percent of what goes to Python that one user may ask for.

    Attributes
    ----------
    address : int
        What stands in ``users`` of the shard.
    """

    def __init__(
        self,
        num_slots: int,
        is_valid: NDArray[np.uint8],
        default: UserLimits,
        num_shards: int,
        share: int,
    ) -> None:
        self._names = reserve((_MAX_USERS + 1) * _NAME_BYTES)
        self._table = reserve(4 * (_TABLE_MASK + 1))
        self._owners = reserve(4 * num_slots)
        self._is_valid = is_valid
        self._num_lookups = reserve(4 * (_MAX_USERS + 1))
        budgets = reserve(USER_BUDGET_BYTES * (_MAX_USERS + 1))
        self._budgets = budgets[: USER_BUDGET_BYTES * (_MAX_USERS + 1)].view(UserBudget.dtype)
        self._default, self._num_shards = default, num_shards
        self._limits: Mapping[str, UserLimits] = {}
        self._num_limited = 0  # users who have their limits
        self._asks = reserve(AskBucket.dtype.itemsize * (_MAX_USERS + 1))
        self._numbers: dict[str, int] = {}
        self._property = np.frombuffer(b"User-Id\0", np.uint8)
        self.struct = UsersStruct.one()
        tables = ("names", "table", "owners", "property", "is_valid")
        for name in (*tables, "budgets", "num_lookups", "asks"):
            self.struct[name] = address_of(getattr(self, f"_{name}"))
        self._write_limits(self.struct["default"], default)
        self.struct["max_lookups"] = _MAX_LOOKUPS
        self.struct["max_asks"] = max(MAX_ASKS * share // 100, MAX_ASKS_PER_CALL)
        self.struct["ns_per_ask"] = NS_PER_ASK * 100 // share
        self.address = struct_address(self.struct)

    def name(self, number: int) -> str:
        """Return a user's name.

        Parameters
        ----------
        number : int
            As the shard gave it; it stays the same.

        Returns
        -------
        str
            Empty for `NO_OWNER`.
        """
        at = number * _NAME_BYTES
        return bytes(self._names[at + 1 : at + 1 + int(self._names[at])]).decode()

    def budget(self, name: str) -> dict[str, int]:
        """Return what a user's streams take of this shard: ``num_streams``, ``num_bytes``."""
        for number in range(len(self._numbers) + 1, int(self.struct["num_users"]) + 1):
            self._numbers[self.name(number)] = number
        budget = self._budgets[self._numbers.get(name, NO_OWNER)]
        return {key: int(budget[key]) for key in ("num_streams", "num_bytes")}

    def add(self, name: str) -> None:
        """Give a user a number, before the shard's thread begins."""
        text = name.encode()
        place = hash64_bytes(text) & _TABLE_MASK
        table = self._table.view(np.int32)
        while number := int(table[place]):
            if self.name(number) == name:
                return
            place = (place + 1) & _TABLE_MASK
        number = int(self.struct["num_users"]) + 1
        at = number * _NAME_BYTES
        self._names[at] = len(text)
        self._names[at + 1 : at + 1 + len(text)] = np.frombuffer(text, np.uint8)
        table[place] = self.struct["num_users"] = number

    def set_limits(self, limits: Mapping[str, UserLimits]) -> None:
        """Set what users may take, by name; others have what all have. From one thread of Python.

        Users who came since the last call have had what all have.
        """
        if limits is not self._limits:
            self._limits, self._num_limited = limits, 0
        for number in range(self._num_limited + 1, int(self.struct["num_users"]) + 1):
            self._write_limits(self._budgets[number], limits.get(self.name(number), self._default))
            self._num_limited = number

    def _write_limits(self, budget: np.void, limits: UserLimits) -> None:
        """Write a shard's part of limits; it is at least 1, for 0 is no limit."""
        budget["max_streams"] = -(-limits.max_streams // self._num_shards)
        budget["max_bytes"] = -(-limits.max_bytes // self._num_shards)
        budget["steps"]["ns_per_step"] = ns_per_step(limits.max_steps_per_s, self._num_shards)


@jit
def user_of(shard: Shard, message: int) -> int:
    """Return the number of the user whose connection a message came through.

    Parameters
    ----------
    shard : Shard
        That has users.
    message : int
        Address of libzmq's message.

    Returns
    -------
    int
        From 1; `NO_OWNER` if it came from none, by a key that was removed, or there are too many
        users.
    """
    users = users_at(shard.users)
    user_id = msg_property(message, users.property)
    if user_id == 0:
        return NO_OWNER
    key = 0
    for k in range(_KEY_LETTERS):
        nibble = load_u8(user_id + k) - _LETTER_A
        if nibble < 0 or nibble > 15:  # so the text ends before, too
            return NO_OWNER
        key = 16 * key + nibble
    if load_u8(users.is_valid + key) == 0:
        return NO_OWNER
    name, num_bytes = user_id + _KEY_LETTERS, 0
    while load_u8(name + num_bytes) != 0:
        num_bytes += 1
    return number_of(shard, name, num_bytes)


@jit
def number_of(shard: Shard, name: int, num_bytes: int) -> int:
    """Return the number of a user, who gets one if he has none yet.

    Parameters
    ----------
    shard : Shard
        That has users.
    name, num_bytes : int
        The name's UTF-8, at most `MAX_USER_NAME_BYTES`.

    Returns
    -------
    int
        From 1; `NO_OWNER` for no name, or if there are too many users.
    """
    users = users_at(shard.users)
    names, table = users.names, users.table
    if num_bytes == 0 or num_bytes > MAX_USER_NAME_BYTES:
        return NO_OWNER
    place = hash64(name, num_bytes) & _TABLE_MASK
    while True:
        number = load_i32(table + 4 * place)
        if number == 0:
            break
        known = names + number * _NAME_BYTES
        if load_u8(known) == num_bytes and equal_bytes(known + 1, name, num_bytes):
            return number
        place = (place + 1) & _TABLE_MASK
    number = users.num_users + 1
    if number > _MAX_USERS:
        return NO_OWNER
    store_u8(names + number * _NAME_BYTES, num_bytes)
    copy_bytes(names + number * _NAME_BYTES + 1, name, num_bytes)
    store_i32(table + 4 * place, number)
    budget, default = _budget_of(shard, number), users.default
    budget.max_streams = default.max_streams
    budget.max_bytes = default.max_bytes
    budget.steps.ns_per_step = default.steps.ns_per_step
    users.num_users = number
    return number


@jit
def set_owner(shard: Shard, header: Header, owner: int) -> None:
    """Set the owner of a stream, where there are users."""
    if shard.users != 0:
        store_i32(users_at(shard.users).owners + 4 * slot_of(shard, header), owner)


@jit
def is_forbidden(shard: Shard, header: Header, request: Request) -> bool:
    """Tell whether a stream belongs to another user than the request's.

    False where there are no users, and for streams with `NO_OWNER` or `UNKNOWN` as owner.
    """
    owner = owner_of(shard, header)
    return owner > 0 and owner != request.owner


@jit
def owner_of(shard: Shard, header: Header) -> int:
    """Return the owner of a stream; `NO_OWNER` where there are no users."""
    if shard.users == 0:
        return NO_OWNER
    return load_i32(users_at(shard.users).owners + 4 * slot_of(shard, header))


@jit
def name_of_owner(shard: Shard, header: Header) -> int:
    """Return the address of a length byte and the owner's name; 0 if there is none."""
    owner = owner_of(shard, header)
    if owner <= 0:
        return 0
    return users_at(shard.users).names + owner * _NAME_BYTES


@jit
def _budget_of(shard: Shard, owner: int) -> UserBudget:
    return user_budget_at(users_at(shard.users).budgets + owner * USER_BUDGET_BYTES)


@jit
def count_stream(shard: Shard, header: Header, change: int) -> None:
    """Count that a slot of a model was taken (1) or given back (-1) by its owner."""
    owner = owner_of(shard, header)
    if owner > 0:
        budget = _budget_of(shard, owner)
        budget.num_streams += change
        budget.num_bytes += change * model_of(shard, header.model).row_bytes


@jit
def count_ring(shard: Shard, header: Header, change: int) -> None:
    """Count that a stream has got a ring (1), or is about to lose what it may have (-1)."""
    owner = owner_of(shard, header)
    if owner > 0 and header.window_log2 > 0 and header.ring != 0:
        num_bytes = ring_size(header.window_log2, model_of(shard, header.model).y_bytes)
        _budget_of(shard, owner).num_bytes += change * num_bytes


@jit
def exceeded_limit(shard: Shard, owner: int, num_streams: int, num_bytes: int) -> int:
    """Return which `Limit` forbids a user so many streams and bytes more; `ROOM`: none does."""
    if shard.users == 0 or owner <= 0:
        return Limit.ROOM
    budget = _budget_of(shard, owner)
    if num_streams > 0 and budget.num_streams + num_streams > budget.max_streams:
        return Limit.USER_STREAMS
    if budget.max_bytes > 0 and budget.num_bytes + num_bytes > budget.max_bytes:
        return Limit.USER_BYTES
    return Limit.ROOM


@jit
def may_take_steps(shard: Shard, request: Request, num_steps: int) -> bool:
    """Tell whether the rates of all and of a user admit steps; else `busy` with the time to wait.

    Nothing is taken: whatever else may refuse the steps comes before `take_steps`.
    """
    now = shard.now_ns
    limit, wait_ns = Limit.STEPS, wait_of_steps(shard.steps, now, num_steps)
    if shard.users != 0 and request.owner > 0:
        own_ns = wait_of_steps(_budget_of(shard, request.owner).steps, now, num_steps)
        if own_ns > max(wait_ns, 0):
            limit, wait_ns = Limit.USER_STEPS, own_ns
    if wait_ns <= 0:
        return True
    set_error(request, ErrorCode.BUSY, limit, 1 + wait_ns // _NS_PER_MS)
    shard.counters.num_refused_user_steps += limit == Limit.USER_STEPS
    shard.counters.num_refused_steps += limit == Limit.STEPS
    return False


@jit
def take_steps(shard: Shard, request: Request, num_steps: int) -> None:
    """Take steps, which nothing refuses any more, from the rates of all and of a user."""
    charge_steps(shard.steps, shard.now_ns, num_steps)
    if shard.users != 0 and request.owner > 0:
        charge_steps(_budget_of(shard, request.owner).steps, shard.now_ns, num_steps)


@jit
def begin_lookup(shard: Shard, asker: int) -> bool:
    """Count a lookup for a user; False if there are as many as one user may have."""
    if shard.users == 0:
        return True
    users = users_at(shard.users)
    at = users.num_lookups + 4 * asker
    num_lookups = load_i32(at)
    if num_lookups >= users.max_lookups:
        return False
    store_i32(at, num_lookups + 1)
    return True


@jit
def end_lookup(shard: Shard, asker: int) -> None:
    """Count that a lookup of `begin_lookup` has ended."""
    if shard.users != 0:
        at = users_at(shard.users).num_lookups + 4 * asker
        store_i32(at, load_i32(at) - 1)
