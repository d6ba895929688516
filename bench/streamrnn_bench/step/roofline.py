"""Limits of one core of the machine: fused multiply-adds and memory reads.

Both are measured with every measurement that is compared with them, as the speed of a shared
machine changes within seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.vectors import INT, Emitter
from streamrnn.kernels.jit import jit
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["FLOPS_A_PEAK_ITERATION", "READS", "READ_BLOCK_BYTES", "read_memory", "run_peak"]

_VECTOR_BYTES = 4 * WIDTH
# As many sums as fit into the registers (16 of AVX2, else 32) next to the factors, and more than
# the two units times their latency of four.
_NUM_SUMS = 12 if WIDTH == 8 else 24
_NUM_ROUNDS = 4
FLOPS_A_PEAK_ITERATION = 2 * WIDTH * _NUM_SUMS * _NUM_ROUNDS

# How memory is read: streams at once, vectors of each a round, and how many bytes ahead of it the
# same lines are asked for (0: not at all). Which one is best depends on the cache that holds the
# memory, so all are tried.
READS = [
    (num_streams, num_vectors, ahead_bytes)
    for num_streams, num_vectors in ((1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (4, 2), (4, 4))
    for ahead_bytes in (0, 512, 1024, 2048)
]
READ_BLOCK_BYTES = 16 * _VECTOR_BYTES  # every way of reading takes a multiple of it whole


class _Loop:
    """Emitter of a loop over k in steps, with values carried from round to round."""

    def __init__(self, builder: ir.IRBuilder, num_rounds: ir.Value) -> None:
        self.builder = builder
        before = builder.block
        self.head = builder.append_basic_block("head")
        self.body = builder.append_basic_block("body")
        self.after = builder.append_basic_block("after")
        self.before = before
        self.num_rounds = num_rounds
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.k = builder.phi(INT)
        self.k.add_incoming(INT(0), before)

    def carry(self, initial: Sequence[ir.Value]) -> list[ir.Value]:
        """Return the values at the start of a round, and enter the body."""
        carried = [self.builder.phi(value.type) for value in initial]
        for phi, value in zip(carried, initial, strict=True):
            phi.add_incoming(value, self.before)
        more = self.builder.icmp_signed("<", self.k, self.num_rounds)
        self.builder.cbranch(more, self.body, self.after)
        self.builder.position_at_end(self.body)
        return carried

    def close(self, carried: Sequence[ir.Value], new: Sequence[ir.Value]) -> None:
        """End the body; ``carried`` then are the values after the loop."""
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.k.add_incoming(self.builder.add(self.k, INT(1)), self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.after)


@intrinsic
def _multiply_only(typingctx: Any, num_iterations: types.Type) -> Any:
    """Do only fused multiply-adds on registers; the sum keeps them from being elided."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        e = Emitter(builder)
        loop = _Loop(builder, args[0])
        sums = loop.carry([e.constant(float(k)) for k in range(_NUM_SUMS)])
        new = list(sums)
        for _ in range(_NUM_ROUNDS):
            new = [e.fma(value, e.constant(0.5), e.constant(1.0)) for value in new]
        loop.close(sums, new)
        total = sums[0]
        for value in sums[1:]:
            total = builder.fadd(total, value)
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(types.int64), codegen


@jit
def run_peak(num_iterations: int) -> float:
    """Multiply and add as fast as a core can; the result has no meaning.

    An iteration is `FLOPS_A_PEAK_ITERATION` operations.
    """
    return _multiply_only(num_iterations)


def _emit_read(
    builder: ir.IRBuilder,
    shape: tuple[int, int, int],
    address: ir.Value,
    num_bytes: ir.Value,
) -> ir.Value:
    """Emit one pass over memory in a way of `READS`; return a sum of all of it."""
    num_streams, num_vectors, ahead_bytes = shape
    e = Emitter(builder)
    round_bytes = num_vectors * _VECTOR_BYTES
    stream_bytes = builder.sdiv(num_bytes, INT(num_streams))
    starts = [builder.add(address, builder.mul(stream_bytes, INT(s))) for s in range(num_streams)]
    loop = _Loop(builder, builder.sdiv(stream_bytes, INT(round_bytes)))
    sums = loop.carry([e.lanes(0)] * (num_streams * num_vectors))
    offset = builder.mul(loop.k, INT(round_bytes))
    new: list[ir.Value] = []
    for start in starts:
        for v in range(num_vectors):
            place = builder.add(builder.add(start, offset), INT(v * _VECTOR_BYTES))
            if ahead_bytes:
                e.prefetch(builder.add(place, INT(ahead_bytes)))
            new.append(builder.add(sums[len(new)], e.as_lanes(e.load(place))))
    loop.close(sums, new)
    total = sums[0]
    for value in sums[1:]:
        total = builder.add(total, value)
    lanes = [builder.extract_element(total, ir.IntType(32)(k)) for k in range(WIDTH)]
    result = lanes[0]
    for lane in lanes[1:]:
        result = builder.add(result, lane)
    return builder.zext(result, INT)


@intrinsic
def _read_once(typingctx: Any, way: types.Type, address: types.Type, num_bytes: types.Type) -> Any:
    """Read memory once, in a way of `READS`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        entry = builder.block
        done = builder.append_basic_block("done")
        switch = builder.switch(args[0], done)
        results = []
        for way, shape in enumerate(READS):
            block = builder.append_basic_block(f"read_{way}")
            switch.add_case(INT(way), block)
            builder.position_at_end(block)
            value = _emit_read(builder, shape, args[1], args[2])
            results.append((value, builder.block))
            builder.branch(done)
        builder.position_at_end(done)
        result = builder.phi(INT)
        result.add_incoming(INT(0), entry)
        for value, block in results:
            result.add_incoming(value, block)
        return result

    return types.int64(types.int64, types.int64, types.int64), codegen


@jit
def read_memory(way: int, address: int, num_bytes: int, num_repeats: int) -> int:
    """Read memory ``num_repeats`` times in the way ``READS[way]``, and add it up.

    The address is a multiple of a vector's bytes, the length one of `READ_BLOCK_BYTES`. Returns the
    sum of the int32 of all passes, each modulo 2**32.
    """
    total = 0
    for _ in range(num_repeats):
        total += _read_once(way, address, num_bytes)
    return total
