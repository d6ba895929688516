"""The models of a shard: their structs, the memory of their streams' rows, and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.virtual_memory import (
    HUGE_PAGE_BYTES,
    address_of,
    reserve,
    struct_address,
    touch,
)
from streamrnn_server.shard.memory.budget import reserve_bytes
from streamrnn_server.shard.memory.kept_inputs import kept_bytes
from streamrnn_server.shard.memory.recording import most_steps
from streamrnn_server.shard.structs import Alias, Model

__all__ = ["MAX_LOADED_ROW_BYTES", "MAX_LOADED_VALUES", "ModelMemory", "Sizes", "row_size"]

# Of a model that is loaded while the server runs: address space is reserved for such a one.
MAX_LOADED_ROW_BYTES, MAX_LOADED_VALUES = 2**22, 2**16


class Sizes(NamedTuple):
    """The largest numbers of several models."""

    num_inputs: int
    output_size: int
    row_bytes: int

    @classmethod
    def of(cls, programs: Mapping[str, Program], history_of: Callable[[str], int]) -> Sizes:
        """Return those of some models."""
        each = [
            (program.spec.num_inputs, program.spec.output_size, row_size(program, history_of(name)))
            for name, program in programs.items()
        ]
        return cls(*map(max, zip(*each, strict=True)))

    def with_loaded(self) -> Sizes:
        """Return those with whatever model may be loaded later."""
        most = (MAX_LOADED_VALUES, MAX_LOADED_VALUES, MAX_LOADED_ROW_BYTES)
        return Sizes(*map(max, self, most))

    @property
    def y_stride(self) -> int:
        """From one output to the next in a batch's scratch."""
        return 64 * -(-self.output_size // 16)


def row_size(program: Program, max_kept: int) -> int:
    """Return the bytes of a stream's row, with the inputs that are kept of it."""
    return program.row_bytes + kept_bytes(max_kept, 4 * program.spec.num_inputs)


class ModelMemory:
    """A table of models, each with slots for as many streams as the shard may have.

    Parameters
    ----------
    capacity : int
        How many models there may ever be; one that was unloaded keeps its index.
    max_streams : int
    history_of : callable
        Of a model the number of inputs that are kept of a stream.

    Attributes
    ----------
    structs : ndarray of Model, shape (capacity + 1,)
        The last one stands for streams that are being looked up.
    names : list of str
        By index; empty of one that was unloaded.
    rows : list of ndarray of float32, shape (max_streams, row_bytes // 4)
    max_recorded_row_bytes : int
        Streams with larger rows are not recorded.
    """

    def __init__(
        self, capacity: int, max_streams: int, history_of: Callable[[str], int] = lambda name: 0
    ) -> None:
        self._history_of = history_of
        self.structs = np.zeros(capacity + 1, Model.dtype)
        self.structs[-1]["first_slot"] = capacity * max_streams
        self.structs[-1]["successor"] = -1
        self.names: list[str] = []
        self.rows: list[NDArray[np.float32]] = []
        self._units: list[NDArray[np.uint8]] = []
        self._max_streams = max_streams
        self._owned: dict[int, tuple[Any, ...]] = {}
        self._made: dict[int, Any] = {}
        self._tables: list[Any] = []
        self.max_recorded_row_bytes = 0

    def add(self, name: str, program: Program, budget: Any) -> None:
        """Add a model before the shard runs, with memory for its first streams."""
        k = len(self.names)
        self._make(k, name, program, 0)
        self.structs[k] = self._made[k]
        if reserve_bytes(budget, HUGE_PAGE_BYTES):
            self._units[k][0] = 1
            touch(self.rows[k].view(np.uint8).reshape(-1))

    def prepare(self, k: int, name: str, program: Program, family: int) -> int:
        """Make what the shard takes as its k-th model; return the address of a `Model`.

        The shard may run meanwhile: it does not know this index yet.
        """
        self._make(k, name, program, family)
        return self.address_of(k)

    def address_of(self, k: int) -> int:
        """Return the address of the `Model` that the shard takes as its k-th."""
        return struct_address(self._made[k])

    def relate(self, families: Sequence[int], successors: Mapping[int, tuple[int, int]]) -> None:
        """Say before the shard runs what models have to do with each other."""
        for k, number in enumerate(families):
            self._made[k]["family"] = self.structs["family"][k] = number
        for k, (successor, policy) in successors.items():
            self.structs["successor"][k] = successor
            self.structs["policy"][k] = policy

    def program(self, k: int) -> Program:
        """Return the shard's own program of its k-th model; other threads use it `for_shard`."""
        program: Program = self._owned[k][0]
        return program

    def forget(self, k: int) -> None:
        """Free what a model had that the shard has unloaded."""
        self.names[k] = ""
        self.rows[k] = np.zeros((0, 0), np.float32)
        self._units[k] = np.zeros(0, np.uint8)
        self._owned.pop(k, None)
        self._made.pop(k, None)

    def make_aliases(self, aliases: Sequence[tuple[str, int, int, int]]) -> int:
        """Return the address of a table of aliases: name, model, the other one, its share."""
        table = np.zeros(max(len(aliases), 1), Alias.dtype)
        self._tables.append(table)
        for k, (name, *numbers) in enumerate(aliases):
            text = np.frombuffer(name.encode(), np.uint8)
            self._tables.append(text)
            table[k] = (address_of(text), len(text), *numbers)
        return address_of(table)

    def num_open(self) -> dict[str, int]:
        """Return the number of open streams of each model."""
        column = self.structs["num_open"]
        return {name: int(column[k]) for k, name in enumerate(self.names) if name}

    @property
    def num_row_bytes(self) -> int:
        """The memory that rows have."""
        return sum(int(np.count_nonzero(each)) for each in self._units) * HUGE_PAGE_BYTES

    def _make(self, k: int, name: str, program: Program, family: int) -> None:
        max_kept, max_streams = self._history_of(name), self._max_streams
        row_bytes = row_size(program, max_kept)
        num_units = -(-max_streams * row_bytes // HUGE_PAGE_BYTES)
        rows = reserve(num_units * HUGE_PAGE_BYTES, huge_pages=True)
        units, text = np.zeros(num_units, np.uint8), np.frombuffer(name.encode(), np.uint8)
        for each in (self._units, self.names, self.rows):
            del each[k:]  # of a model that came to nothing before the shard knew it
        self._owned[k] = program, rows, units, text
        self._units.append(units)
        self.names.append(name)
        row_floats = rows.view(np.float32)[: max_streams * row_bytes // 4]
        self.rows.append(row_floats.reshape(max_streams, -1))
        first_slot = k * max_streams
        values = {
            "plan": program.plan_address,
            "first_row": address_of(rows) - first_slot * row_bytes,
            "row_bytes": row_bytes,
            "state_bytes": program.row_bytes,
            "max_kept": max_kept,
            "initial_row": address_of(program.initial_row),
            "step_bytes": 4 * program.spec.num_inputs,
            "y_bytes": 4 * program.spec.output_size,
            "is_token": program.spec.is_token,
            "family": family,
            "successor": -1,
            "first_slot": first_slot,
            "name": address_of(text),
            "name_bytes": len(text),
            "units": address_of(units),
        }
        if program.row_bytes <= self.max_recorded_row_bytes:
            values["recorded_steps"] = most_steps(program.spec, program.row_bytes)
        made = Model.one()
        for field, value in values.items():
            made[field] = value
        self._made[k] = made
