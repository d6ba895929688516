"""The PTX and machine code of the CUDA kernels, compiled without a GPU."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")
pytest.importorskip("cuda.bindings.nvjitlink", reason="needs NVIDIA's linker: numba-cuda[cu13]")

from streamrnn.kernels.cuda.table import parameters_of
from tests.cuda.compiled import (
    ARCHITECTURES,
    CHUNKS,
    LAYERS,
    MORE_LAYERS,
    NEWEST,
    OLDER,
    TENSOR_LAYERS,
)
from tests.cuda.fake import compile_and_check, make_driver
from tests.cuda.host_path import CHECKS
from tests.cuda.ptx import (
    FRAME_BYTES,
    NUM_REGISTERS,
    assemble,
    attribute_of,
    disassemble,
    loops_of,
)

# Its compilations take a minute on two idle cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WIDTHS = {"wide": 64, "middle": 16, "narrow": 4}  # and the sums of a thread
NORMS = ["lstm norm", "gru norm"]
KERNELS = [*LAYERS, *TENSOR_LAYERS, *NORMS, "features", "softmax", *CHUNKS, "fma rate", "move"]
# Of a thread, for each k.
NUM_PRODUCTS = {
    f"{kind} {width}": number * gates // 4
    for kind, gates in (("head", 4), ("dense", 4), ("gru", 3), ("gru form", 3), ("lstm", 4))
    for width, number in WIDTHS.items()
}

# A stage of 16 words of k, in x and in h; narrow ones stand there for one stage, and for two.
NUM_MMAS = {
    f"{kind} {width}": number * gates // 4
    for kind, gates in (("dense", 4), ("gru", 3), ("lstm", 4))
    for width, number in (("wide", 64), ("narrow", 48))
}


class Structure(NamedTuple):
    """What a kernel's machine code is made of, at the least or at the most.

    Bars of what is there: better code raises them. Of tensor cores, `HMMA` is a warp's product.
    """

    most_registers: int  # of a thread
    product: str = ""  # the instruction that multiplies, in the loops over k;
    num_products: int = 0  # of a round,
    least_share: float = 0.0  # of the loop's instructions
    num_wide_loads: int = 0  # from shared memory: those of 128 bits, or of four matrices
    least_speed: float = 0.0  # of the cycles of its products, as far as registers bound them
    num_spilled: int = 0  # registers that are stored and loaded again, once a round at most


# Sixteen k a round. A wide tile has 128 registers for two blocks of 256 threads a multiprocessor.
STRUCTURES = {
    "head wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "dense wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "gru wide": Structure(128, "FFMA", 768, 0.87, 64, 0.80),
    "lstm wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "lstm form wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "projected wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "gru form wide": Structure(128, "FFMA", 768, 0.87, 64, 0.80),
    "reset wide": Structure(128, "FFMA", 512, 0.81, 32, 0.60),  # two gates of four
    "blend wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "lstm int8 wide": Structure(128, "FFMA", 1024, 0.90, 64, 0.85),
    "gru middle": Structure(80, "FFMA", 192, 0.72, 32, 0.50),
    "lstm middle": Structure(80, "FFMA", 256, 0.77, 32, 0.70),
    "head narrow": Structure(80, "FFMA", 64, 0.48, 16, 0.75),
    "dense narrow": Structure(80, "FFMA", 64, 0.48, 16, 0.75),
    "gru narrow": Structure(80, "FFMA", 48, 0.40, 16, 0.70),
    "lstm narrow": Structure(80, "FFMA", 64, 0.48, 16, 0.75),
    **{
        f"{precision} {name}": structure
        for precision in ("tf32", "bfloat16")
        for name, structure in {
            "dense wide": Structure(128, "HMMA", 32, 0.24, 8),
            "gru wide": Structure(128, "HMMA", 24, 0.19, 6),
            "lstm wide": Structure(128, "HMMA", 32, 0.24, 8),
            "dense narrow": Structure(80, "HMMA", 16, 0.09, 8),
            "gru narrow": Structure(80, "HMMA", 12, 0.07, 4),
            "lstm narrow": Structure(80, "HMMA", 16, 0.09, 8),
        }.items()
    },
    "bfloat16 reset wide": Structure(128, "HMMA", 16, 0.14, 4),
    "lstm norm": Structure(96),
    "gru norm": Structure(96),
    "features": Structure(40),
    "softmax": Structure(80),
    "persistent": Structure(168, "FFMA", 64, 0.60, 32),  # the product with h, unrolled further
    "persistent stack": Structure(208),
    "fma rate": Structure(48, "FFMA", 256, 0.97, least_speed=0.9),
    "move": Structure(40),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every kernel for every architecture, and what the checks of the host's part found."""
    driver = make_driver(tmp_path_factory.mktemp("driver"))
    return compile_and_check(driver, "tiles", "others")


def of_architecture(compiled, architecture):
    return {
        name: {"llvm": kernel["llvm"], "architecture": architecture, **kernel[architecture]}
        for name, kernel in compiled["kernels"].items()
        if architecture in kernel
    }


@pytest.fixture(params=ARCHITECTURES)
def kernels(request, compiled):
    return of_architecture(compiled, request.param)


def there(names, kernels):
    """Return which kernels there are for an architecture: for the newest one, all of them."""
    found = [name for name in names if name in kernels]
    assert found
    return found


def test_every_kernel_compiles(kernels):
    is_newest = len(kernels) > len(OLDER)
    assert sorted(kernels) == sorted(KERNELS if is_newest else OLDER)
    for name, kernel in kernels.items():
        assert re.search(r"\.visible \.entry ", kernel["ptx"]), name


@pytest.mark.parametrize("name", [*CHECKS["tiles"], *CHECKS["others"]])
def test_the_host_s_part_runs_on_the_fake_driver(compiled, name):
    assert not compiled["checks"][name], compiled["checks"][name]


def test_arguments_are_words_as_they_are_packed(kernels):
    """A table of launches holds seven words for an array and one for a number."""
    num_numbers = {"features": 3, "softmax": 3, **dict.fromkeys(CHUNKS, 5)}
    num_arrays = {"features": 7, "softmax": 1, **dict.fromkeys(CHUNKS, 8)}
    for name in there((*LAYERS, *TENSOR_LAYERS, *num_arrays), kernels):
        arguments = [np.zeros(3, np.float32)] * num_arrays.get(name, 7)
        words = parameters_of(arguments, lambda array: 1 << 40)
        entry = re.search(r"\.visible \.entry [^(]*\(([^)]*)\)", kernels[name]["ptx"])
        assert entry
        kinds = re.findall(r"\.param \.(\w+)", entry[1])
        assert len(kinds) == len(words) + num_numbers.get(name, 6), name
        assert set(kinds) <= {"u64", "s64", "b64"}, name


def test_no_instruction_is_approximate(kernels):
    """Nor flushes small numbers to zero: both would be signs of fast-math."""
    for name, kernel in kernels.items():
        assert not [word for word in ("approx", ".ftz", ".full") if word in kernel["ptx"]], name
        assert not re.findall(r" (?:fast|contract|arcp|afn|reassoc|nnan|ninf|nsz) ", kernel["llvm"])
    divisions = "".join(kernel["ptx"] for kernel in kernels.values())
    assert "div.rn.f32" in divisions


def test_the_machine_code_is_made_of_the_ptx_that_is_read(kernels):
    """For the GPU's own architecture, and not by an optimizer that comes after the PTX."""
    for name, kernel in kernels.items():
        assert re.findall(r"^\.target (\w+)", kernel["ptx"], re.M) == [kernel["architecture"]], name
    for name in there(("gru narrow", "features", "softmax", "tf32 dense narrow"), kernels):
        [entry] = re.findall(r"\.visible \.entry (\w+)", kernels[name]["ptx"])
        log = assemble(kernels[name]["ptx"])
        found = re.search(rf"'{entry}':\s+info\s+: used (\d+) registers", log)
        assert found, log
        machine_code = base64.b64decode(kernels[name]["machine_code"])
        assert attribute_of(machine_code, entry, NUM_REGISTERS) == int(found[1])


def test_inline_assembly_stays_where_it_stands(kernels):
    """All lanes of a warp come by a product together: it is no sum that may be moved."""
    for name in there((*LAYERS, *TENSOR_LAYERS), kernels):
        calls = [line for line in kernels[name]["llvm"].splitlines() if " asm " in line]
        assert len(calls) >= 2, name
        for call in calls:
            assert "asm sideeffect" in call, name
            assert call.rstrip().endswith("convergent"), name


@pytest.mark.parametrize("kernels", [NEWEST], indirect=True)
def test_blocks_wait_for_words_and_not_for_each_other(kernels):
    """A number and the step it is of are one access; four looks are under way at once."""
    for name in CHUNKS:
        ptx = kernels[name]["ptx"]
        assert "st.relaxed.gpu.global.u64" in ptx
        steps = re.findall(r"\t(ld\.relaxed\.gpu\.global\.u64|@?%?\w* ?bra|st\.shared)", ptx)
        assert 4 * "ld.relaxed.gpu.global.u64 " in " ".join(steps), name
        assert not re.search(r"\b(membar|fence|red|atom)\b|cudaCG|barrier\.", ptx), name


def test_every_sum_is_rounded_once(kernels):
    """Each k adds one fused multiply-add to each sum; no product is rounded before it is added."""
    for name in there(LAYERS, kernels):
        ptx = kernels[name]["ptx"]
        loops = inner_loops(ptx)
        assert len(loops) == 2, f"{name}: x and h"
        for loop in loops:
            num_products, rest = divmod(loop.count("fma.rn.f32"), NUM_PRODUCTS[name])
            assert num_products >= 1, name
            assert rest == 0, name
            assert not re.search(r"(mul|add|sub)(\.rn)?\.f32", loop), name


def test_no_sum_takes_a_product_that_may_be_rounded_or_not(kernels):
    """The assembler may fuse a plain sum with the product before it, here and not there."""
    names = (*LAYERS, *NORMS, *TENSOR_LAYERS, "features", "softmax", "move")
    for name in there(names, kernels):
        assert not fusible_sums(kernels[name]["ptx"]), name
    assert "add.rn.f32" in kernels["softmax"]["ptx"]
    assert "add.rn.f32" in kernels["head wide"]["ptx"]


def test_tensor_cores_multiply(kernels):
    """Each product of a warp stands there for x and for h, and inputs are rounded by the GPU."""
    mma = {
        "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    }
    word = {"tf32": "cvt.rna.tf32.f32", "bfloat16": "cvt.rn.bf16x2.f32"}
    for name in there(TENSOR_LAYERS, kernels):
        precision, _, layer = name.partition(" ")
        ptx = kernels[name]["ptx"]
        assert ptx.count(mma[precision]) == ptx.count("mma.sync") == NUM_MMAS[layer], name
        assert word[precision] in ptx, name
    for name in there(LAYERS, kernels):
        assert "mma.sync" not in kernels[name]["ptx"]


def test_tiles_are_copied_past_the_registers(kernels):
    """A stage while another is multiplied; and read four numbers at once, or one of one row.

    Of a row in float32, which becomes bfloat16, a lane has two numbers side by side.
    """
    for name in there(LAYERS, kernels):
        ptx = kernels[name]["ptx"]
        assert not re.findall(r"ld\.shared\.(?!v4|f32)|st\.shared", ptx), name
        assert ("ld.shared.f32" in ptx) == name.endswith("narrow"), name
        for loop in inner_loops(ptx):
            assert "cp.async.cg.shared.global" in loop, name
            assert "cp.async.ca.shared.global" in loop, name
            assert loop.index("bar.sync") < loop.index("cp.async.ca") < loop.index("fma.rn.f32")
    for name in there(TENSOR_LAYERS, kernels):
        ptx = kernels[name]["ptx"]
        assert "cp.async.cg.shared.global" in ptx, name
        assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in ptx, name
        loads = set(re.findall(r"(?:ld|st)\.shared[.\w]*", ptx))
        assert loads == ({"ld.shared.v2.f32"} if "bfloat16" in name else set()), name


@pytest.mark.parametrize("kernels", [NEWEST], indirect=True)
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


@pytest.mark.parametrize(
    ("kernels", "name"),
    [*((NEWEST, name) for name in KERNELS), *(("sm_80", name) for name in sorted(OLDER))],
    indirect=["kernels"],
)
def test_the_machine_code_is_made_of_what_multiplies(kernels, name):
    check_machine_code(kernels, name)


@pytest.mark.soak
def test_the_other_layers_are_made_of_what_multiplies(tmp_path):
    compiled = compile_and_check(make_driver(tmp_path), "more")
    kernels = of_architecture(compiled, NEWEST)
    assert sorted(kernels) == sorted(MORE_LAYERS)
    for name in kernels:
        check_machine_code(kernels, name)
    test_no_instruction_is_approximate(kernels)


def check_machine_code(kernels, name):
    """Loops over k, of x and of h, of as little else as there was; nothing in local memory."""
    machine_code = base64.b64decode(kernels[name]["machine_code"])
    [entry] = re.findall(r"\.visible \.entry (\w+)", kernels[name]["ptx"])
    wanted = STRUCTURES[name]
    assert attribute_of(machine_code, entry, NUM_REGISTERS) <= wanted.most_registers
    assert attribute_of(machine_code, entry, FRAME_BYTES) <= 8 * wanted.num_spilled
    if kernels[name]["architecture"] != "sm_90a" and name not in LAYERS:
        return  # each disassembly takes a third of a second
    code = disassemble(machine_code, entry)
    assert len(code) > 8
    spills = [instruction for instruction, _ in code if instruction.startswith(("LDL", "STL"))]
    assert len(spills) <= 2 * wanted.num_spilled
    assert ".local" not in kernels[name]["ptx"]
    if not wanted.product:
        return
    loops = [loop for loop in loops_of(code) if loop.count(wanted.product) == wanted.num_products]
    assert len(loops) == (1 if name in ("fma rate", "persistent") else 2)
    for loop in loops:
        assert loop.share(wanted.product) >= wanted.least_share, loop
        if kernels[name]["architecture"] == NEWEST:  # the older one begins one every other cycle
            assert loop.speed_of_registers() >= wanted.least_speed, loop
        wide_load = "LDSM" if wanted.product == "HMMA" else "LDS.128"
        assert loop.count(wide_load) >= wanted.num_wide_loads, loop
        assert not [each for each in loop.names if ".FTZ" in each]


def fusible_sums(ptx):
    """Return the sums without a rounding of their own that take the result of a product."""
    found = re.findall(r"\t(mul|add|sub)(\.rn)?\.f32\s+(%f\d+), (.*);", ptx)
    products = {target for operation, _, target, _ in found if operation == "mul"}
    return [
        (target, rest)
        for operation, is_rounded, target, rest in found
        if operation != "mul" and not is_rounded and products & set(rest.split(", "))
    ]


def inner_loops(ptx):
    """Return the bodies of the loops over k: from a label to the jump back to it."""
    loops = []
    for match in re.finditer(r"^(?=(\$L__BB\d+_\d+):(.*?)^\s+@%p\d+ bra\s+\1;)", ptx, re.M | re.S):
        body = match[2]
        if "fma.rn.f32" in body and "ld.shared" in body:
            loops.append(body)
    return loops
