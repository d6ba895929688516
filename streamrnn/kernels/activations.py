"""The activations' numbers, and the constants of their approximations, for every device.

Coefficients are minimax fits (iteratively reweighted least squares, after Lawson 1961), rounded to
float32 and polished by a search over the neighbouring float32 values; each is written as the exact
float32 value.
"""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS",
    "EXP2",
    "IDENTITY",
    "LOG2E",
    "LOG2E_REST",
    "MAX_EXPONENT",
    "RELU",
    "ROUND",
    "SIGMOID",
    "SOFTMAX",
    "TANH",
    "TANH_BOUND",
    "TANH_P",
    "TANH_Q",
]

IDENTITY, TANH, SIGMOID, RELU, SOFTMAX = range(5)
ACTIVATIONS = {"identity": IDENTITY, "tanh": TANH, "sigmoid": SIGMOID, "softmax": SOFTMAX}
"""Those of a head, by name."""

MAX_EXPONENT = 87.0  # exp stays a normal float32, and so does 1 / (1 + exp)
LOG2E = 1.4426950216293335  # float32
LOG2E_REST = 1.925963033500011e-08  # log2(e) - LOG2E, as float32
ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
EXP2 = (
    1.0,
    0.6931471824645996,
    0.24022646248340607,
    0.05550328642129898,
    0.009618489071726799,
    0.0013399930903688073,
    0.00015345809515565634,
)
TANH_BOUND = 8.399999618530273  # tanh rounds to 1 from here on
TANH_P = tuple(
    float.fromhex(value)
    for value in ("0x1p+0", "0x1.12d538p-3", "0x1.d034aep-9", "0x1.66b0b6p-16", "0x1.f0c204p-27")
)
TANH_Q = tuple(
    float.fromhex(value)
    for value in ("0x1p+0", "0x1.debfeap-2", "0x1.aad38ap-6", "0x1.60783ap-12", "0x1.b94cccp-21")
)
