"""A warp's product on tensor cores, as PTX has it, and the rounding of what goes in.

``mma.sync.aligned.m16n8k8`` (TF32) and ``m16n8k16`` (bfloat16) multiply 16 rows of A with 8 columns
of B and add to 16 x 8 sums in float32. Seen as words of 32 bits, each with one TF32 number or two
bfloat16 of neighbouring k, both take 8 words of k and have the same layout (PTX ISA, "Matrix
Fragments for mma.m16n8k8"): with ``g, t = lane // 4, lane % 4``,

- A: words (row g, word t), (g + 8, t), (g, t + 4), (g + 8, t + 4);
- B: words (t, column g), (t + 4, g);
- sums: (row g, column 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).

In what order the tensor core adds is NVIDIA's affair; it is the same for every element. The
simulator has no warps: there every thread shows its words to the others.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda, int32
from numpy.typing import NDArray

from streamrnn.kernels.cuda.compiler import SIMULATED, device_function

__all__ = ["NUM_PACKED", "mma_bfloat16", "mma_tf32", "pack_words", "word_bfloat16", "word_tf32"]

NUM_PACKED = {"float32": 1, "tf32": 1, "bfloat16": 2}
"""Elements of k in a word of 32 bits."""

_MAX_SIMULATED_THREADS = 1024


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

    def _word_tf32(first, second):
        return pack_words(np.array([first]), "tf32").view(np.int32)[0]

    def _word_bfloat16(first, second):
        return pack_words(np.array([first, second]), "bfloat16").view(np.int32)[0]

    def _tf32_numbers(words):
        return words.view(np.float32)

    def _bfloat16_numbers(words):
        halves = words.view(np.uint16).astype(np.uint32) << 16
        return halves.view(np.float32)

    def _make_mma(numbers: Any) -> Any:
        @device_function
        def mma(sums, a, b):
            shown = cuda.shared.array((_MAX_SIMULATED_THREADS, 6), int32)
            tid = cuda.threadIdx.x
            shown[tid] = (*a, *b)
            cuda.syncthreads()
            lane, first = tid % 32, tid // 32 * 32
            g, t = lane // 4, lane % 4
            b_words = [[shown[first + 4 * (2 * t + e) + w % 4, 4 + w // 4] for w in range(8)]
                       for e in range(2)]  # fmt: skip
            result = []
            for half in range(2):
                a_words = [shown[first + 4 * g + w % 4, 2 * (w // 4) + half] for w in range(8)]
                for e in range(2):
                    total = sums[2 * half + e]
                    left, right = (numbers(np.array(words)) for words in (a_words, b_words[e]))
                    for x, w in zip(left, right, strict=True):
                        total = np.float32(total + x * w)
                    result.append(total)
            cuda.syncthreads()
            return tuple(result)

        return mma

    word_tf32, word_bfloat16 = _word_tf32, _word_bfloat16
    mma_tf32 = _make_mma(_tf32_numbers)
    mma_bfloat16 = _make_mma(_bfloat16_numbers)
else:
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    _FLOAT, _WORD = ir.FloatType(), ir.IntType(32)

    def _call_assembly(builder: Any, kind: Any, assembly: str, constraints: str, args: Any) -> Any:
        """Call PTX that stays where it stands: all lanes of a warp must come by it together."""
        code = ir.InlineAsm(kind, assembly, constraints, side_effect=True)
        return builder.call(code, args, attrs=("convergent",))

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
