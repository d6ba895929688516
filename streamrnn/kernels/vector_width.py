"""How many float32 one vector register of this machine holds."""

from __future__ import annotations

import os
import platform

import llvmlite.binding as llvm

from streamrnn.errors import StartError

__all__ = ["WIDTH", "WIDTHS"]

WIDTHS = {"avx512": 16, "avx2": 8, "neon": 4}
_VARIABLE = "STREAMRNN_SIMD"


def _available() -> list[str]:
    """Return the instruction sets that this machine has, widest first."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["neon"]
    features = llvm.get_host_cpu_features()
    found = []
    if all(features.get(name) for name in ("avx512f", "avx512vl", "avx512dq", "avx512bw")):
        found.append("avx512")
    if features.get("avx2") and features.get("fma"):
        found.append("avx2")
    return found


def _choose() -> int:
    available = _available()
    if not available:
        raise StartError(
            f"this processor ({llvm.get_host_cpu_name()}) has neither AVX2 with FMA nor NEON; "
            "StreamRNN needs one of them"
        )
    forced = os.environ.get(_VARIABLE, "").lower()
    if not forced:
        return WIDTHS[available[0]]
    if forced not in available:
        raise StartError(
            f"{_VARIABLE}={forced} was asked for, but this machine offers {', '.join(available)}"
        )
    return WIDTHS[forced]


WIDTH = _choose()
