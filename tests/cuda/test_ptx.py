"""The PTX and machine code of the CUDA kernels, compiled without a GPU."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")
pytest.importorskip("cuda.bindings.nvjitlink", reason="needs NVIDIA's linker: numba-cuda[cu13]")

from streamrnn.kernels.cuda.launches import parameters_of
from streamrnn_bench.child_process import start_child
from tests.cuda.fake import environment_of, make_driver
from tests.cuda.ptx import disassemble, loops_of, num_registers

ROOT = Path(__file__).parents[2]

# Its compilations take a minute on two idle cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LAYERS = [f"{kind} {width}" for kind in ("dense", "gru", "lstm") for width in ("wide", "narrow")]
TENSOR_LAYERS = [f"{precision} {layer}" for precision in ("tf32", "bfloat16") for layer in LAYERS]
KERNELS = [
    *LAYERS,
    *TENSOR_LAYERS,
    "features",
    "finish",
    "softmax",
    "persistent",
    "fma rate",
    "start",
    "move",
]
CAPABILITIES = [(8, 0), (9, 0)]
# Sums of a thread, which is products of a thread for each k.
NUM_PRODUCTS = {
    "dense wide": 64,
    "gru wide": 48,
    "lstm wide": 64,
    "dense narrow": 4,
    "gru narrow": 3,
    "lstm narrow": 4,
}

# 16 sums a warp's product in x and in h, each twice for 16 words of k; GRU has three gates of four.
NUM_MMAS = {
    f"{kind} {width}": number * gates // 4
    for kind, gates in (("dense", 4), ("gru", 3), ("lstm", 4))
    for width, number in (("wide", 64), ("narrow", 16))
}


class Structure(NamedTuple):
    """What a kernel's machine code is made of, at the least or at the most.

    Bars of what is there: better code raises them. Of tensor cores, `HMMA` is a warp's product.
    """

    most_registers: int  # of a thread
    product: str = ""  # the instruction that multiplies, in the loops over k;
    num_products: int = 0  # of a round,
    least_share: float = 0.0  # of the loop's instructions
    num_wide_loads: int = 0  # of its loads from shared memory, those of 128 bits


STRUCTURES = {
    "dense wide": Structure(160, "FFMA", 64, 0.76, 4),
    "gru wide": Structure(128, "FFMA", 48, 0.66, 2),
    "lstm wide": Structure(128, "FFMA", 64, 0.71, 2),
    "dense narrow": Structure(80, "FFMA", 16, 0.20, 4),
    "gru narrow": Structure(64, "FFMA", 12, 0.14),
    "lstm narrow": Structure(80, "FFMA", 16, 0.17),
    **{
        f"{precision} {name}": structure
        for precision in ("tf32", "bfloat16")
        for name, structure in {
            "dense wide": Structure(184, "HMMA", 32, 0.10),
            "gru wide": Structure(176, "HMMA", 24, 0.07),
            "lstm wide": Structure(176, "HMMA", 32, 0.10),
            "dense narrow": Structure(168, "HMMA", 8, 0.04),
            "gru narrow": Structure(144, "HMMA", 6, 0.03),
            "lstm narrow": Structure(168, "HMMA", 8, 0.04),
        }.items()
    },
    "features": Structure(40),
    "finish": Structure(48),
    "softmax": Structure(80),
    "persistent": Structure(168, "FFMA", 16, 0.17),
    "fma rate": Structure(48, "FFMA", 256, 0.97),
    "start": Structure(32),
    "move": Structure(32),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every kernel for every capability, compiled side by side in processes of their own."""
    driver = make_driver(tmp_path_factory.mktemp("driver"))
    options: Any = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    processes = {
        capability: start_child(
            [sys.executable, "-m", "tests.cuda.ptx"],
            env=environment_of(driver, capability),
            **options,
        )
        for capability in CAPABILITIES
    }
    with contextlib.ExitStack() as stack:
        for process in processes.values():
            stack.enter_context(process)  # waits for its end
            stack.callback(process.kill)
        outputs = {capability: p.communicate()[0] for capability, p in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    return {capability: json.loads(output) for capability, output in outputs.items()}


@pytest.fixture(params=CAPABILITIES, ids=lambda capability: "sm_{}{}".format(*capability))
def kernels(request, compiled):
    return compiled[request.param]


def test_every_kernel_compiles(kernels):
    assert list(kernels) == KERNELS
    for name, kernel in kernels.items():
        assert re.search(r"\.visible \.entry ", kernel["ptx"]), name
        assert re.search(r"used \d+ registers", kernel["log"]), kernel["log"]


def test_arguments_are_words_as_they_are_packed(kernels):
    """A table of launches holds seven words for an array and one for a number."""
    num_numbers = {"features": 3, "finish": 3, "softmax": 3, "persistent": 4}
    num_arrays = {"features": 7, "finish": 6, "softmax": 1, "persistent": 8}
    for name in (*LAYERS, *TENSOR_LAYERS, *num_arrays):
        arguments = [np.zeros(3, np.float32)] * num_arrays.get(name, 6)
        words = parameters_of(arguments, lambda array: 1 << 40)
        entry = re.search(r"\.visible \.entry [^(]*\(([^)]*)\)", kernels[name]["ptx"])
        assert entry
        kinds = re.findall(r"\.param \.(\w+)", entry[1])
        assert len(kinds) == len(words) + num_numbers.get(name, 4), name
        assert set(kinds) <= {"u64", "s64", "b64"}, name


def test_no_instruction_is_approximate(kernels):
    """Nor flushes small numbers to zero: both would be signs of fast-math."""
    for name, kernel in kernels.items():
        assert not re.findall(r"[\w.]*(?:approx|\.ftz|\.full)[\w.]*", kernel["ptx"]), name
        assert not re.findall(r" (?:fast|contract|arcp|afn|reassoc|nnan|ninf|nsz) ", kernel["llvm"])
    divisions = "".join(kernel["ptx"] for kernel in kernels.values())
    assert "div.rn.f32" in divisions


def test_the_machine_code_is_made_of_the_ptx_that_is_read(kernels, request):
    """For the GPU's own architecture, and not by an optimizer that comes after the PTX."""
    capability = request.node.callspec.params["kernels"]
    architecture = {(8, 0): "sm_80", (9, 0): "sm_90a"}[capability]
    for name, kernel in kernels.items():
        assert re.findall(r"^\.target (\w+)", kernel["ptx"], re.M) == [architecture], name
        [entry] = re.findall(r"\.visible \.entry (\w+)", kernel["ptx"])
        machine_code = base64.b64decode(kernel["machine_code"])
        assert entry.encode() in machine_code, name
        found = re.search(rf"'{entry}':\s+info\s+: used (\d+) registers", kernel["log"])
        assert found, kernel["log"]
        assert num_registers(machine_code, entry) == int(found[1]), name


def test_inline_assembly_stays_where_it_stands(kernels):
    """All lanes of a warp come by a product together: it is no sum that may be moved."""
    for name in TENSOR_LAYERS:
        calls = re.findall(r"^.*\bcall\b.*\basm\b.*$", kernels[name]["llvm"], re.M)
        assert len(calls) > 2, name
        for call in calls:
            assert "asm sideeffect" in call, name
            assert call.rstrip().endswith("convergent"), name


def test_every_sum_is_rounded_once(kernels):
    """Each k adds one fused multiply-add to each sum; no product is rounded before it is added."""
    for name in LAYERS:
        ptx = kernels[name]["ptx"]
        loops = inner_loops(ptx)
        assert len(loops) == 2, f"{name}: x and h"
        for loop in loops:
            num_products, rest = divmod(loop.count("fma.rn.f32"), NUM_PRODUCTS[name])
            assert num_products >= 1, name
            assert rest == 0, name
            assert not re.search(r"(mul|add|sub)(\.rn)?\.f32", loop), name


def test_no_sum_takes_a_product_that_may_be_rounded_or_not(kernels):
    """The assembler may fuse a plain sum with the product before it, here and not there.

    Elsewhere it does no harm: an activation's product before the output's center, which is 0 with
    all activations that multiply.
    """
    for name in (*LAYERS, *TENSOR_LAYERS, "features", "softmax", "move", "start"):
        assert not fusible_sums(kernels[name]["ptx"]), name
    assert "add.rn.f32" in kernels["softmax"]["ptx"]
    assert "add.rn.f32" in kernels["finish"]["ptx"]


def test_tensor_cores_multiply(kernels):
    """Each product of a warp stands there for x and for h, and inputs are rounded by the GPU."""
    mma = {
        "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    }
    word = {"tf32": "cvt.rna.tf32.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
    for name in TENSOR_LAYERS:
        precision, _, layer = name.partition(" ")
        ptx = kernels[name]["ptx"]
        assert ptx.count(mma[precision]) == ptx.count("mma.sync") == NUM_MMAS[layer], name
        assert word[precision] in ptx, name
    for name in LAYERS:
        assert "mma.sync" not in kernels[name]["ptx"]


def test_wide_tiles_read_four_numbers_at_once(kernels):
    for kind in ("dense", "gru", "lstm"):
        loops = inner_loops(kernels[f"{kind} wide"]["ptx"])
        assert loops
        assert all("ld.shared.v4.f32" in loop for loop in loops), kind
        assert not any("ld.shared.f32" in loop for loop in loops), kind


def test_sums_stay_in_registers(kernels):
    for name, kernel in kernels.items():
        log = kernel["log"]
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
        assert spills, log
        # Two blocks a multiprocessor leave it 128 registers: a word of it gives way to a division.
        has_word = name == "lstm wide"
        assert max(map(int, spills)) <= (4 if has_word else 0), log
        assert ".local" not in kernel["ptx"], name
        if name != "persistent":  # which calls a function of NVIDIA's, with a frame
            [frame] = re.findall(r"(\d+) bytes stack frame", log)
            assert int(frame) <= (8 if has_word else 0), log
    for kind in ("gru", "lstm"):
        # 65,536 registers of a multiprocessor for two blocks of 256 threads.
        registers = re.findall(r"used (\d+) registers", kernels[f"{kind} wide"]["log"])
        assert max(map(int, registers)) <= 128


def test_the_benchmarks_limit_is_multiply_and_add(kernels):
    """Sixteen sums that the compiler has not made fewer, and nothing else of weight."""
    loops = re.findall(
        r"^(?=(\$L__BB\d+_\d+):(.*?)^\s+@%p\d+ bra\s+\1;)",
        kernels["fma rate"]["ptx"],
        re.M | re.S,
    )
    assert len(loops) == 1
    body = loops[0][1]
    products = re.findall(r"fma\.rn\.f32\s+(%f\d+), (%f\d+), (%f\d+), (%f\d+);", body)
    assert len(products) == 256
    assert len(body.splitlines()) < 1.04 * len(products)
    # Eight factors and eight addends, each from memory, so that sums never come to rest.
    assert len({(factor, addend) for _, _, factor, addend in products}) == 8


@pytest.mark.parametrize("name", KERNELS)
def test_the_machine_code_is_made_of_what_multiplies(kernels, name):
    """Loops over k, of x and of h, of as little else as there was; nothing in local memory."""
    machine_code = base64.b64decode(kernels[name]["machine_code"])
    [entry] = re.findall(r"\.visible \.entry (\w+)", kernels[name]["ptx"])
    wanted = STRUCTURES[name]
    assert num_registers(machine_code, entry) <= wanted.most_registers
    code = disassemble(machine_code, entry)
    assert len(code) > 8
    spilled = [instruction for instruction, _ in code if instruction.startswith(("LDL", "STL"))]
    assert len(spilled) <= (2 if name == "lstm wide" else 0), spilled
    if not wanted.product:
        return
    loops = [loop for loop in loops_of(code) if loop.count(wanted.product) == wanted.num_products]
    assert len(loops) == (1 if name == "fma rate" else 2)
    for loop in loops:
        assert loop.share(wanted.product) >= wanted.least_share, loop
        assert loop.count("LDS.128") >= wanted.num_wide_loads, loop
        assert not [each for each in loop.names if ".FTZ" in each]


def fusible_sums(ptx):
    """Return the sums without a rounding of their own that take the result of a product."""
    products, sums = set(), []
    for operation, target in re.findall(r"(\w+)(?:\.rn)?\.f32\s+(%f\d+),", ptx):
        if operation == "mul":
            products.add(target)
    for target, rest in re.findall(r"(?:add|sub)\.f32\s+(%f\d+), (.*);", ptx):
        if products & set(rest.split(", ")):
            sums.append((target, rest))
    return sums


def inner_loops(ptx):
    """Return the bodies of the loops over k: from a label to the jump back to it."""
    loops = []
    for match in re.finditer(r"^(?=(\$L__BB\d+_\d+):(.*?)^\s+@%p\d+ bra\s+\1;)", ptx, re.M | re.S):
        body = match[2]
        if "fma.rn.f32" in body and "ld.shared" in body and "bar.sync" not in body:
            loops.append(body)
    return loops
