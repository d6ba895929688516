"""All PTX of the kernels: what numba has no name for, and what stands for it in the simulator.

Copies past the registers (``cp.async``), for the tiles: 16 bytes each, or 4, from an address in the
GPU's memory to one in shared memory. What a thread has copied belongs to a group when it calls
`commit_copies`; ``wait_for_copies[n]`` waits for all of its groups but the last n. Addresses in
shared memory are 32 bits wide, which `i32` keeps them at: numba's integers have 64, two registers.

A warp's product on tensor cores: ``mma.sync.aligned.m16n8k8`` (TF32) and ``m16n8k16`` (bfloat16)
multiply 16 rows of A with 8 columns of B and add to 16 x 8 sums in float32. Seen as words of 32
bits, each with one TF32 number or two bfloat16 of neighbouring k, both take 8 words of k and have
the same layout (PTX ISA, "Matrix Fragments for mma.m16n8k8"): with ``g, t = lane // 4, lane % 4``,

- A: words (row g, word t), (g + 8, t), (g, t + 4), (g + 8, t + 4);
- B: words (t, column g), (t + 4, g);
- sums: (row g, column 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).

``ldmatrix`` loads four matrices at once, or two, of 8 rows of 4 words: lanes 0 to 7 give where the
rows of the first begin, 8 to 15 those of the second, and so on; each row is 16 bytes. A lane gets
word ``lane % 4`` of row ``lane // 4`` of each: for A and B as they are above.

In what order the tensor core adds is NVIDIA's affair; it is the same for every element.

The simulator has neither addresses nor warps. There an address is an array and a place, checked at
every access; a copy is done as late as it may be, when it is waited for; and for a warp's product
every thread shows its words to the others.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numpy.typing import NDArray

from streamrnn.kernels.cuda.compiler import SIMULATED, device_function

__all__ = ["ADDRESS", "NUM_PACKED", "pack_words"]
__all__ += ["global_address", "i32", "make_shared_memory", "shared_address", "thread_index"]
__all__ += ["load_four", "load_matrices", "load_one", "load_two", "load_two_matrices"]
__all__ += ["commit_copies", "copy_4_bytes", "copy_16_bytes", "wait_for_copies"]
__all__ += ["add", "multiply", "peek", "publish"]
__all__ += ["mma_bfloat16", "mma_tf32", "word_bfloat16", "word_tf32"]

NUM_PACKED = {"float32": 1, "tf32": 1, "bfloat16": 2}
"""Elements of k in a word of 32 bits."""

_MAX_SIMULATED_THREADS = 1024
_MAX_GROUPS = 4  # of copies that are waited for one by one
_ROW_BYTES = 128  # of shared memory, in which places change by an exclusive or


def pack_words(values: NDArray[np.generic], precision: str) -> NDArray[np.float32]:
    """Round numbers as the kernels round their factors, and pack them into words.

    Parameters
    ----------
    values : ndarray of float, shape (K, ...)
        K is a multiple of what a word holds.
    precision : str
        A key of `NUM_PACKED`.

    Returns
    -------
    ndarray of float32, shape (K // NUM_PACKED[precision], ...)
        With tf32 the rounded numbers; with bfloat16 two in the bits of one.
    """
    floats = np.ascontiguousarray(values, dtype=np.float32)
    if precision == "float32":
        return floats
    bits = floats.view(np.uint32).astype(np.uint64)
    if precision == "tf32":  # to the nearest, ties away from zero
        return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    # To the nearest, ties to even.
    halves = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF
    return (halves[0::2] | halves[1::2] << 16).astype(np.uint32).view(np.float32)


if SIMULATED:
    ADDRESS: Any = object  # the type of an address in a local array

    class _Address:
        """A place in an array of float32, in bytes from its beginning."""

        def __init__(self, array: Any, place: int) -> None:
            for name in ("_item", "_ary"):  # of what numba wraps around a kernel's arguments
                array = getattr(array, name, array)
            self.array, self.place = array, place

        def __add__(self, num_bytes: int) -> _Address:
            return _Address(self.array, self.place + int(num_bytes))

        def __xor__(self, num_bytes: int) -> _Address:
            return _Address(self.array, self.place ^ int(num_bytes))

        def floats(self, offset: int = 0, size: int = 4) -> NDArray[np.float32]:
            """Return so many floats there, all of which must be in the array."""
            place = self.place + int(offset)
            first, rest = divmod(place, 4 * size)
            found: NDArray[np.float32] = self.array[size * first : size * (first + 1)]
            if rest or first < 0 or len(found) != size:
                raise IndexError(f"{4 * size} bytes at {place} of an array of {self.array.nbytes}")
            return found

    class _Copies(threading.local):
        """The copies of a thread, in groups, that it has not waited for; the last is open."""

        def __init__(self) -> None:
            self.groups: list[list[tuple[Any, Any]]] = [[]]

    _copies = _Copies()

    def i32(value):
        """Return the value: it is no number."""
        return value

    def shared_address(array):
        """Return the address of a shared array."""
        return _Address(array, 0)

    def make_shared_memory(size: int) -> Any:
        """Return the device function that gives the address of so many floats."""

        @device_function
        def shared_memory():
            return shared_address(cuda.shared.array(size, np.float32))

        return shared_memory

    @device_function
    def thread_index():
        """Return the thread's number."""
        return cuda.threadIdx.x

    def global_address(array, place):
        """Return the address of an element of an array."""
        return _Address(array, 4 * int(place))

    def _make_load(size: int) -> Any:
        return lambda address, offset: tuple(address.floats(offset, size))

    @device_function
    def _meet_the_warp():
        """Wait for the warp: numba's simulator has none, and waits for the block."""
        getattr(cuda, "syncwarp", cuda.syncthreads)()

    def _make_load_matrices(size: int) -> Any:
        @device_function
        def load(address, offset):
            shown = cuda.shared.array(_MAX_SIMULATED_THREADS, object)
            tid = cuda.threadIdx.x
            shown[tid] = address + offset
            _meet_the_warp()
            rows = shown[tid // 32 * 32 + tid % 32 // 4 :: 8][:size]
            words = tuple(row.floats().view(np.int32)[tid % 4] for row in rows)
            _meet_the_warp()
            return words

        return load

    def _make_copy(size: int) -> Any:
        def copy(target, offset, source, num_bytes):
            numbers = source.floats(0, size) if num_bytes else np.zeros(size, np.float32)
            _copies.groups[-1].append((target.floats(offset, size), numbers))

        return copy

    def commit_copies():
        """Close a group of copies."""
        _copies.groups.append([])

    def _make_wait(num_groups: int) -> Any:
        def wait():
            while len(_copies.groups) - 1 > num_groups:
                for target, source in _copies.groups.pop(0):
                    target[:] = source

        return wait

    def publish(array, place, tag, value):
        """Write a tag and a number as one word."""
        array[place] = int(tag) << 32 | int(np.float32(value).view(np.uint32))

    @device_function
    def peek(array, place):
        """Read a tag and a number that were written as one word; let others run."""
        getattr(cuda, "nanosleep", time.sleep)(1e-5)
        tag, bits = divmod(int(array[place]), 1 << 32)
        return tag, np.uint32(bits).view(np.float32)

    def add(a, b):
        """Add two numbers."""
        return a + b

    def multiply(a, b):
        """Multiply two numbers."""
        return a * b

    def _word_tf32(first, second):
        return pack_words(np.array([first]), "tf32").view(np.int32)[0]

    def _word_bfloat16(first, second):
        return pack_words(np.array([first, second]), "bfloat16").view(np.int32)[0]

    def _tf32_numbers(words):
        return np.ascontiguousarray(words).view(np.float32)

    def _bfloat16_numbers(words):
        halves = np.stack([words << 16, words & -(1 << 16)], axis=1)
        return halves.reshape(-1, words.shape[1]).view(np.float32)

    def _make_mma(numbers: Any) -> Any:
        @device_function
        def mma(sums, a, b):
            shown = cuda.shared.array((_MAX_SIMULATED_THREADS, 6), np.int32)
            tid = cuda.threadIdx.x
            shown[tid] = (*a, *b)
            _meet_the_warp()
            words = shown[tid // 32 * 32 :][:32]
            g, t = tid % 32 // 4, tid % 4
            # Of the thread's two rows and two columns: [k, row] and [k, column].
            own_a = words[4 * g :, :4][:4].reshape(4, 2, 2).swapaxes(0, 1).reshape(8, 2)
            own_b = words[8 * t :, 4:][:8].reshape(2, 4, 2).T.reshape(8, 2)
            total = np.array(sums, np.float32).reshape(2, 2)
            for product in numbers(own_a)[:, :, None] * numbers(own_b)[:, None, :]:
                total = total + product
            _meet_the_warp()
            return tuple(total.reshape(4))

        return mma

    word_tf32, word_bfloat16 = _word_tf32, _word_bfloat16
    mma_tf32 = _make_mma(_tf32_numbers)
    mma_bfloat16 = _make_mma(_bfloat16_numbers)
else:
    from numba.cuda import libdevice, types
    from numba.cuda.extending import intrinsic

    ADDRESS = types.int64
    i32 = np.int32
    _FLOAT, _WORD, _WIDE, _VOID = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.VoidType()

    def _call_assembly(builder: Any, kind: Any, assembly: str, constraints: str, args: Any) -> Any:
        """Call PTX that stays where it stands: all lanes of a warp must come by it together."""
        code = ir.InlineAsm(kind, assembly, constraints, side_effect=True)
        return builder.call(code, args, attrs=("convergent",))

    def _data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
        return context.make_array(kind)(context, builder, array).data

    def _plus(builder: Any, address: Any, offset: Any) -> Any:
        """Add a constant, which becomes part of the instruction."""
        return builder.add(address, builder.trunc(offset, _WORD))

    @intrinsic
    def thread_index(typingctx: Any) -> Any:
        """Return the thread's number, read anew: no register keeps it, nor what came of it."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_WORD, [])
            return _call_assembly(builder, kind, "mov.u32 $0, %tid.x;", "=r", [])

        return types.int32(), codegen

    @intrinsic
    def shared_address(typingctx: Any, array: Any) -> Any:
        """Return the address of a shared array, in 32 bits."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = builder.ptrtoint(_data_of(context, builder, signature.args[0], args[0]), _WIDE)
            assembly = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
            return _call_assembly(
                builder, ir.FunctionType(_WORD, [_WIDE]), assembly, "=r,l", [data]
            )

        return types.int32(array), codegen

    def make_shared_memory(size: int) -> Any:
        """Return the device function that gives the address of so many floats."""

        @device_function
        def shared_memory():
            return shared_address(cuda.shared.array(size, types.float32, _ROW_BYTES))

        return shared_memory

    @intrinsic
    def global_address(typingctx: Any, array: Any, place: Any) -> Any:
        """Return the address of an element of an array."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = _data_of(context, builder, signature.args[0], args[0])
            return builder.ptrtoint(builder.gep(data, [args[1]]), _WIDE)

        return types.int64(array, types.int64), codegen

    def _make_load(size: int) -> Any:
        """Return the intrinsic that loads floats of shared memory with one instruction."""
        places = ", ".join(f"${k}" for k in range(size))
        assembly = f"ld.shared.v{size}.f32 {{{places}}}, [${size}];"
        if size == 1:
            assembly = "ld.shared.f32 $0, [$1];"
        return _make_shared_load(assembly, size, types.float32, _FLOAT, "=f,")

    def _make_load_matrices(size: int) -> Any:
        """Return the intrinsic that loads matrices from shared memory for the whole warp."""
        places = ", ".join(f"${k}" for k in range(size))
        form = f"ldmatrix.sync.aligned.m8n8.x{size}.shared.b16"
        assembly = f"{form} {{{places}}}, [${size}];"
        return _make_shared_load(assembly, size, types.int32, _WORD, "=r,")

    def _make_shared_load(
        assembly: str, size: int, element: Any, word: Any, constraint: str
    ) -> Any:
        def load(typingctx: Any, address: Any, offset: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                result = word if size == 1 else ir.LiteralStructType([word] * size)
                kind = ir.FunctionType(result, [_WORD])
                place = _plus(builder, args[0], args[1])
                constraints = constraint * size + "r,~{memory}"
                found = _call_assembly(builder, kind, assembly, constraints, [place])
                values = [found]
                if size > 1:
                    values = [builder.extract_value(found, k) for k in range(size)]
                return context.make_tuple(builder, signature.return_type, values)

            return types.UniTuple(element, size)(types.int32, types.int64), codegen

        return intrinsic(load)

    def _make_copy(size: int) -> Any:
        """Return the intrinsic that copies floats to shared memory, or writes zeros for 0 bytes.

        Four go by way of the second cache alone; single ones of a row share lines of the first.
        """
        way = {4: "cg", 1: "ca"}[size]
        assembly = f"cp.async.{way}.shared.global [$0], [$1], {4 * size}, $2;"

        def copy(typingctx: Any, target: Any, offset: Any, source: Any, num_bytes: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                kind = ir.FunctionType(_VOID, [_WORD, _WIDE, _WORD])
                values = [_plus(builder, args[0], args[1]), args[2], args[3]]
                _call_assembly(builder, kind, assembly, "r,l,r,~{memory}", values)
                return context.get_dummy_value()

            return types.void(types.int32, types.int64, types.int64, types.int32), codegen

        return intrinsic(copy)

    def _make_order(assembly: str) -> Any:
        def order(typingctx: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                _call_assembly(builder, ir.FunctionType(_VOID, []), assembly, "~{memory}", [])
                return context.get_dummy_value()

            return types.void(), codegen

        return intrinsic(order)

    commit_copies = _make_order("cp.async.commit_group;")

    def _make_wait(num_groups: int) -> Any:
        return _make_order(f"cp.async.wait_group {num_groups};")

    def _place_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data_of(context, builder, signature.args[0], args[0])
        return builder.ptrtoint(builder.gep(data, [args[1]]), _WIDE)

    @intrinsic
    def publish(typingctx: Any, array: Any, place: Any, tag: Any, value: Any) -> Any:
        """Write a tag and a number as one word, which others see as one."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tag = builder.shl(builder.zext(args[2], _WIDE), _WIDE(32))
            word = builder.or_(tag, builder.zext(builder.bitcast(args[3], _WORD), _WIDE))
            kind = ir.FunctionType(_VOID, [_WIDE, _WIDE])
            assembly = "st.relaxed.gpu.global.u64 [$0], $1;"
            place = _place_of(context, builder, signature, args)
            _call_assembly(builder, kind, assembly, "l,l,~{memory}", [place, word])
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int32, types.float32), codegen

    @intrinsic
    def peek(typingctx: Any, array: Any, place: Any) -> Any:
        """Read a tag and a number that were written as one word, wherever they are now."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_WIDE, [_WIDE])
            assembly = "ld.relaxed.gpu.global.u64 $0, [$1];"
            place = _place_of(context, builder, signature, args)
            word = _call_assembly(builder, kind, assembly, "=l,l,~{memory}", [place])
            tag = builder.trunc(builder.lshr(word, _WIDE(32)), _WORD)
            value = builder.bitcast(builder.trunc(word, _WORD), _FLOAT)
            return context.make_tuple(builder, signature.return_type, (tag, value))

        result = types.Tuple((types.int32, types.float32))
        return result(array, types.int64), codegen

    # A product before a plain sum may be made one operation with it, in one kernel and perhaps not
    # in another: that would be the compiler's choice.
    add, multiply = libdevice.fadd_rn, libdevice.fmul_rn

    def _make_word(assembly: str) -> Any:
        def word(typingctx: Any, first: Any, second: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                kind = ir.FunctionType(_WORD, [_FLOAT, _FLOAT])
                return _call_assembly(builder, kind, assembly, "=r,f,f", args)

            return types.int32(types.float32, types.float32), codegen

        return intrinsic(word)

    def _make_warp_mma(form: str) -> Any:
        assembly = (
            f"mma.sync.aligned.{form} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, "
            "{$10, $11, $12, $13};"
        )
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

        def mma(typingctx: Any, sums: Any, a: Any, b: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                result = ir.LiteralStructType([_FLOAT] * 4)
                kind = ir.FunctionType(result, [_WORD] * 6 + [_FLOAT] * 4)
                words = [builder.extract_value(args[1], k) for k in range(4)]
                words += [builder.extract_value(args[2], k) for k in range(2)]
                old = [builder.extract_value(args[0], k) for k in range(4)]
                new = _call_assembly(builder, kind, assembly, constraints, words + old)
                values = [builder.extract_value(new, k) for k in range(4)]
                return context.make_tuple(builder, signature.return_type, values)

            four = types.UniTuple(types.float32, 4)
            a_words, b_words = types.UniTuple(types.int32, 4), types.UniTuple(types.int32, 2)
            return four(four, a_words, b_words), codegen

        return intrinsic(mma)

    word_tf32 = _make_word("cvt.rna.tf32.f32 $0, $1;")
    word_bfloat16 = _make_word("cvt.rn.bf16x2.f32 $0, $2, $1;")
    mma_tf32 = _make_warp_mma("m16n8k8.row.col.f32.tf32.tf32.f32")
    mma_bfloat16 = _make_warp_mma("m16n8k16.row.col.f32.bf16.bf16.f32")

wait_for_copies = tuple(_make_wait(num_groups) for num_groups in range(_MAX_GROUPS))
load_one, load_two, load_four = _make_load(1), _make_load(2), _make_load(4)
copy_4_bytes, copy_16_bytes = _make_copy(1), _make_copy(4)
load_two_matrices, load_matrices = _make_load_matrices(2), _make_load_matrices(4)
