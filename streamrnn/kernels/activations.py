"""The activations' numbers, and the constants of their approximations, for every device.

Coefficients are minimax fits (iteratively reweighted least squares, after Lawson 1961), rounded to
float32 and polished by a search over the neighbouring float32 values; each is written as the exact
float32 value.
"""

from __future__ import annotations

__all__ = [
    "ABS",
    "ACTIVATIONS",
    "AT_LEAST",
    "AT_MOST",
    "ELU",
    "ERF_BOUND",
    "ERF_P",
    "ERF_Q",
    "EXP",
    "EXP2",
    "GELU",
    "GELU_TANH",
    "HARD_SIGMOID_FIFTH",
    "HARD_SIGMOID_SIXTH",
    "HARD_SWISH",
    "HARD_TANH",
    "IDENTITY",
    "LEAST_NORMAL",
    "LN2",
    "LN2_REST",
    "LOG",
    "LOG1P_P",
    "LOG1P_Q",
    "LOG2E",
    "LOG2E_REST",
    "LOG_SOFTMAX",
    "MAX_EXPONENT",
    "PRELU",
    "RECIPROCAL",
    "RELU",
    "RELU6",
    "ROUND",
    "SELU",
    "SIGMOID",
    "SILU",
    "SOFTMAX",
    "SOFTPLUS",
    "SOFTSIGN",
    "SQRT",
    "TANH",
    "TANH_BOUND",
    "TANH_P",
    "TANH_Q",
]

IDENTITY, TANH, SIGMOID, RELU, SOFTMAX = range(5)
(
    RELU6,
    PRELU,
    ELU,
    SELU,
    SILU,
    GELU,
    GELU_TANH,
    SOFTPLUS,
    SOFTSIGN,
    HARD_SIGMOID_FIFTH,
    HARD_SIGMOID_SIXTH,
    HARD_SWISH,
    HARD_TANH,
    LOG_SOFTMAX,
    EXP,
    LOG,
    ABS,
    SQRT,
    RECIPROCAL,
    AT_LEAST,
    AT_MOST,
) = range(5, 26)
ACTIVATIONS = {
    "identity": IDENTITY,
    "tanh": TANH,
    "sigmoid": SIGMOID,
    "softmax": SOFTMAX,
    "relu": RELU,
    "relu6": RELU6,
    "leaky_relu": PRELU,  # a prelu of which all slopes are the same
    "prelu": PRELU,
    "elu": ELU,
    "selu": SELU,
    "silu": SILU,
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "softplus": SOFTPLUS,
    "softsign": SOFTSIGN,
    "hard_sigmoid_fifth": HARD_SIGMOID_FIFTH,
    "hard_sigmoid_sixth": HARD_SIGMOID_SIXTH,
    "hard_swish": HARD_SWISH,
    "hard_tanh": HARD_TANH,
    "log_softmax": LOG_SOFTMAX,
    "exp": EXP,
    "log": LOG,
    "abs": ABS,
    "sqrt": SQRT,
    "reciprocal": RECIPROCAL,
    "at_least": AT_LEAST,
    "at_most": AT_MOST,
}
"""By name; those of a GPU's head are the first four, and relu for its cells."""

LEAST_NORMAL = 1.1754943508222875e-38  # 2^-126: what is below is 0 to the engine
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
LN2 = 0.693145751953125  # in few digits, so that a small whole number of it is exact
LN2_REST = 1.42860682030941723212e-6  # ln 2 - LN2
# log(1 + u) = u P(u) / Q(u) for u from -0.3 to 1
LOG1P_P = tuple(
    float.fromhex(value) for value in ("0x1p+0", "0x1.24928ap+0", "0x1.228572p-2", "0x1.3f231cp-8")
)
LOG1P_Q = tuple(
    float.fromhex(value) for value in ("0x1p+0", "0x1.a49286p+0", "0x1.8b2abcp-1", "0x1.7d9486p-4")
)
ERF_BOUND = 4.0  # erf rounds to 1 from here on
# erf(x) = x P(x^2) / Q(x^2) below the bound
ERF_P = tuple(
    float.fromhex(value)
    for value in (
        "0x1.20dd74p+0",
        "0x1.8c6134p-3",
        "0x1.b301dep-5",
        "0x1.fcfc56p-9",
        "0x1.2a5f96p-12",
        "0x1.0aa414p-19",
    )
)
ERF_Q = tuple(
    float.fromhex(value)
    for value in (
        "0x1p+0",
        "0x1.027ca2p-1",
        "0x1.d878e4p-4",
        "0x1.f24e64p-7",
        "0x1.36c728p-10",
        "0x1.39e214p-15",
    )
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
