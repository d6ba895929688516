"""The passes of the staged path over blocks of float32: gates, cells, layer normalisation.

Each works on one vector at a time, in registers. Sums over a row go by 16 lanes, whatever the
width of this machine's vectors, so that the bits are the same everywhere.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.activations import emit_gate_parts, emit_tanh_parts
from streamrnn.kernels.cpu.vectors import INT, VECTOR, Emitter
from streamrnn.kernels.jit import jit
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["add_gated", "blend", "enter_cell", "leave_cell", "normalise"]

_VECTOR_BYTES = 4 * WIDTH
_LANES = 16  # of a sum over a row
_ONE = np.float32(1.0)


def _emit_gate(e: Emitter, t: ir.Value, is_hard: bool) -> ir.Value:
    """Return a gate from its sum, which the weights have brought to the form it takes."""
    if not is_hard:
        return e.builder.fdiv(e.constant(1.0), emit_gate_parts(e, t)[1])
    b, zero, one = e.builder, e.constant(0.0), e.constant(1.0)
    t = b.select(b.fcmp_ordered(">", t, one), one, t)
    return b.select(b.fcmp_ordered("<", t, zero), zero, t)


def _emit_candidate(e: Emitter, t: ir.Value, is_tanh: bool) -> ir.Value:
    """Return a candidate: its tanh, or what another activation has made of it before."""
    if not is_tanh:
        return t
    p, q = emit_tanh_parts(e, t)
    return e.builder.fdiv(p, q)


_Form = tuple[bool, bool]  # whether gates are hard sigmoids; whether tanh is still to be taken


def _vector_pass(emit: Callable[[Emitter, _Form, list[ir.Value]], None], num_addresses: int) -> Any:
    """Make an intrinsic ``(form, addresses)`` that works on one vector at each address.

    ``emit`` gets the addresses; ``form`` is a literal, 2 for hard gates and 1 for tanh.
    """
    addresses = types.containers.UniTuple(types.int64, num_addresses)

    def one_vector(typingctx: Any, form: types.Type, places: types.Type) -> Any:
        if not isinstance(form, types.IntegerLiteral):
            return None
        chosen = bool(form.literal_value & 2), bool(form.literal_value & 1)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            values = [builder.extract_value(args[1], i) for i in range(num_addresses)]
            emit(Emitter(builder), chosen, values)
            return context.get_dummy_value()

        return types.void(form, addresses), codegen

    return intrinsic(prefer_literal=True)(one_vector)


def _emit_add_gated(e: Emitter, form: _Form, places: list[ir.Value]) -> None:
    t, factor, addend, out = places
    gate = _emit_gate(e, e.load(t), form[0])
    e.store(e.fma(gate, e.load(factor), e.load(addend)), out)


def _emit_blend(e: Emitter, form: _Form, places: list[ir.Value]) -> None:
    b, (is_hard, is_tanh) = e.builder, form
    t, candidate, before, out = places
    h = e.load(before)
    if is_hard or not is_tanh:
        n = _emit_candidate(e, e.load(candidate), is_tanh)
        e.store(e.fma(_emit_gate(e, e.load(t), is_hard), b.fsub(h, n), n), out)
        return
    # With n = p / q and z = 1 / (1 + u) it is (p u + h q) / (q (1 + u)): one division.
    p, q = emit_tanh_parts(e, e.load(candidate))
    power, below = emit_gate_parts(e, e.load(t))
    above = e.fma(p, power, b.fmul(h, q))
    e.store(b.fdiv(above, b.fmul(q, below)), out)


def _emit_enter(e: Emitter, form: _Form, places: list[ir.Value]) -> None:
    b, (is_hard, is_tanh) = e.builder, form
    in_i, in_f, in_g, in_o, peep_i, peep_f, peep_o, cell = places
    c = e.load(cell)
    i = _emit_gate(e, e.fma(e.load(peep_i), c, e.load(in_i)), is_hard)
    f = _emit_gate(e, e.fma(e.load(peep_f), c, e.load(in_f)), is_hard)
    g = _emit_candidate(e, e.load(in_g), is_tanh)
    new_c = e.fma(f, c, b.fmul(i, g))
    e.store(new_c, cell)
    e.store(e.fma(e.load(peep_o), new_c, e.load(in_o)), in_o)


def _emit_leave(e: Emitter, form: _Form, places: list[ir.Value]) -> None:
    t, cell, out = places
    shown = _emit_candidate(e, e.load(cell), form[1])
    e.store(e.builder.fmul(_emit_gate(e, e.load(t), form[0]), shown), out)


_add_gated = _vector_pass(_emit_add_gated, 4)
_blend = _vector_pass(_emit_blend, 4)
_enter = _vector_pass(_emit_enter, 8)
_leave = _vector_pass(_emit_leave, 3)


@jit
def add_gated(is_hard, t, factor, addend, out, num_bytes):
    """Compute ``out = gate(t) * factor + addend`` over a block.

    ``is_hard`` says whether the gate is a hard sigmoid; all others but ``num_bytes`` of a block are
    addresses of blocks, and ``out`` may be one of the others. So it is in all passes.
    """
    for i in range(0, num_bytes, _VECTOR_BYTES):
        places = (t + i, factor + i, addend + i, out + i)
        if is_hard:
            _add_gated(2, places)
        else:
            _add_gated(0, places)


@jit
def blend(is_hard, is_tanh, t, candidate, before, out, num_bytes):
    """Compute ``out = (1 - z) tanh(candidate) + z before`` with ``z = gate(t)``.

    Where tanh is not to be taken, the candidate has gone through another activation. So it is in
    all passes that have this flag.
    """
    form = 2 * (is_hard != 0) + (is_tanh != 0)
    for i in range(0, num_bytes, _VECTOR_BYTES):
        places = (t + i, candidate + i, before + i, out + i)
        if form == 1:
            _blend(1, places)
        elif form == 0:
            _blend(0, places)
        elif form == 3:
            _blend(3, places)
        else:
            _blend(2, places)


@jit
def enter_cell(is_hard, is_tanh, sums, peepholes, cell, num_bytes):
    """Replace c by ``gate(f) c + gate(i) tanh(g)``, and add to o what it sees of the new c.

    Parameters
    ----------
    is_hard, is_tanh : int64
        As in `blend`.
    sums : int64
        Address of four blocks: i, f, g, o.
    peepholes : int64
        Address of three blocks: i, f, o.
    cell : int64
        Address of c, one block.
    num_bytes : int64
        Of a block.
    """
    form = 2 * (is_hard != 0) + (is_tanh != 0)
    for i in range(0, num_bytes, _VECTOR_BYTES):
        s, p = sums + i, peepholes + i
        places = (
            s,
            s + num_bytes,
            s + 2 * num_bytes,
            s + 3 * num_bytes,
            p,
            p + num_bytes,
            p + 2 * num_bytes,
            cell + i,
        )
        if form == 1:
            _enter(1, places)
        elif form == 0:
            _enter(0, places)
        elif form == 3:
            _enter(3, places)
        else:
            _enter(2, places)


@jit
def leave_cell(is_hard, is_tanh, t, cell, out, num_bytes):
    """Compute ``out = gate(t) tanh(cell)``."""
    form = 2 * (is_hard != 0) + (is_tanh != 0)
    for i in range(0, num_bytes, _VECTOR_BYTES):
        places = (t + i, cell + i, out + i)
        if form == 1:
            _leave(1, places)
        elif form == 0:
            _leave(0, places)
        elif form == 3:
            _leave(3, places)
        else:
            _leave(2, places)


def _emit_total(e: Emitter, sums: list[ir.Value]) -> ir.Value:
    """Add up 16 lanes: i and i + 8, then i and i + 4, then i and i + 2, then both."""
    b = e.builder
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [b.fadd(sums[i], sums[i + half]) for i in range(half)]
    lanes = [b.extract_element(sums[0], INT(i)) for i in range(WIDTH)]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [b.fadd(lanes[i], lanes[i + half]) for i in range(half)]
    return lanes[0]


@intrinsic(prefer_literal=True)
def _row_sum(
    typingctx: Any,
    is_square: types.Type,
    values: types.Type,
    masks: types.Type,
    factor: types.Type,
    num_bytes: types.Type,
) -> Any:
    """Sum ``v * factor`` over a row, or with the literal 1 ``(v + mask * factor) ** 2``."""
    if not isinstance(is_square, types.IntegerLiteral):
        return None
    squares = bool(is_square.literal_value)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        b, e = builder, Emitter(builder)
        _, first, first_mask, factor_value, size = args
        factors = e.splat(factor_value)
        before = b.block
        head, body, after = (b.append_basic_block(f"row_{name}") for name in ("head", "do", "end"))
        b.branch(head)
        b.position_at_end(head)
        offset = b.phi(INT)
        offset.add_incoming(INT(0), before)
        sums = [b.phi(VECTOR) for _ in range(_LANES // WIDTH)]
        for total in sums:
            total.add_incoming(e.constant(0.0), before)
        b.cbranch(b.icmp_signed("<", offset, size), body, after)
        b.position_at_end(body)
        for part, total in enumerate(sums):
            place = b.add(offset, INT(part * _VECTOR_BYTES))
            a, other = e.load(b.add(first, place)), factors
            if squares:
                a = other = e.fma(e.load(b.add(first_mask, place)), factors, a)
            total.add_incoming(e.fma(a, other, total), body)
        offset.add_incoming(b.add(offset, INT(_LANES * 4)), body)
        b.branch(head)
        b.position_at_end(after)
        return _emit_total(e, sums)

    result = types.float32(is_square, types.int64, types.int64, types.float32, types.int64)
    return result, codegen


@intrinsic
def _scale_vector(
    typingctx: Any, places: types.Type, minus_mean: types.Type, scale: types.Type
) -> Any:
    """Compute ``out = (v - mean) * scale * gain + addend`` for one vector.

    ``places`` are the addresses of v, gain, addend and out.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        b, e = builder, Emitter(builder)
        value, gain, addend, out = (b.extract_value(args[0], i) for i in range(4))
        deviation = b.fadd(e.load(value), e.splat(args[1]))
        scaled = b.fmul(deviation, e.splat(args[2]))
        e.store(e.fma(scaled, e.load(gain), e.load(addend)), out)
        return context.get_dummy_value()

    addresses = types.containers.UniTuple(types.int64, 4)
    return types.void(addresses, types.float32, types.float32), codegen


@jit
def normalise(values, num_values, num_bytes, mask, epsilon, gain, addend, out):
    """Compute ``out = (v - mean) / sqrt(variance + epsilon) * gain + addend``.

    Parameters
    ----------
    values : int64
        Address of one or more blocks; their padding is 0.
    num_values : int64
        Elements that count.
    num_bytes : int64
        Of all the blocks.
    mask : int64
        Address of as many blocks: 1 where an element counts, 0 where it is padding.
    epsilon : float32
        Above 0.
    gain, addend : int64
        Addresses of as many blocks; the gain's padding is 0.
    out : int64
        Address of as many blocks; it may be one of the others.
    """
    share = _ONE / np.float32(num_values)
    minus_mean = -_row_sum(0, values, mask, share, num_bytes)
    variance = _row_sum(1, values, mask, minus_mean, num_bytes) * share
    scale = _ONE / np.sqrt(variance + epsilon)
    for i in range(0, num_bytes, _VECTOR_BYTES):
        places = (values + i, gain + i, addend + i, out + i)
        _scale_vector(places, minus_mean, scale)
