"""Instruction sets, register use and the cache of machine code."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.caching import NullCache

from streamrnn.errors import StartError
from streamrnn.kernels import jit, vector_width
from streamrnn.kernels.cpu.blocks import BLOCK_TILES, make_block_cover
from streamrnn.kernels.cpu.tiles import ALL_TILES
from streamrnn.kernels.cpu.tiling import _make_cover
from streamrnn.kernels.jit import Linked
from streamrnn.kernels.precisions import PRECISIONS
from tests.support.program import run_python


def loops_of_products(assembly):
    """(function, text) of each innermost loop that multiplies."""
    function = ""
    for block in re.split(r"^(?=[.\w]+:|# %bb)", assembly, flags=re.MULTILINE):
        label = block.partition(":")[0]
        if label.startswith("streamrnn_"):
            function = label
        repeats = re.search(rf"\bj\w+\s+{re.escape(label)}$", block, re.MULTILINE)
        if repeats and "vfmadd" in block:
            yield function, block


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loops_over_k_stay_in_registers(precision):
    """LLVM once kept an accumulator of nearly every tile in memory."""
    loops = []
    for make in (_make_cover, make_block_cover):
        cover: Any = Linked(make(PRECISIONS[precision]), num_arguments=1)
        cover._cache = NullCache()  # the machine code that is kept has no text
        cover.compile()
        loops += loops_of_products(cover._library.get_asm_str())
    names = {name for name, _ in loops}
    assert len(names) == len(ALL_TILES) + len(BLOCK_TILES)
    for name, loop in loops:
        assert not re.search(r"mm\d.*\(%rsp\)|\(%rsp\).*mm\d", loop), (name, loop)


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("STREAMRNN_SIMD", "avx9000")
    with pytest.raises(StartError, match="avx9000"):
        vector_width._choose()


def test_an_edit_in_another_file_is_noticed(tmp_path):
    """Numba's own cache would run the old machine code here."""
    (tmp_path / "inner.py").write_text(
        "from streamrnn.kernels.jit import jit\n@jit\ndef inner(x):\n    return x + 1\n"
    )
    (tmp_path / "outer.py").write_text(
        "from streamrnn.kernels.jit import jit\nfrom inner import inner\n"
        "@jit\ndef outer(x):\n    return inner(x) * 10\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from outer import outer; "
        "print(outer(1), sum(outer.stats.cache_hits.values()))"
    )
    environment = {"STREAMRNN_CACHE_DIR": str(tmp_path / "cache")}
    assert run_python(code, **environment).stdout.split() == ["20", "0"]
    assert run_python(code, **environment).stdout.split() == ["20", "1"]
    inner = tmp_path / "inner.py"
    inner.write_text(inner.read_text().replace("x + 1", "x + 2"))
    assert run_python(code, **environment).stdout.split() == ["30", "0"]


USE_READ_ONLY = """
import os, sys
root = os.environ["STREAMRNN_CACHE_DIR"]
changes = ("os.mkdir", "os.rename", "os.remove", "os.chmod", "os.rmdir")

def refuse(event, args):  # as on read-only media, to root too
    is_change = event in changes or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if is_change and str(args[0]).startswith(root):
        raise OSError(30, "Read-only file system")

sys.addaudithook(refuse)
"""


def run_two_functions(directory, cache, read_only=False):
    """Return what they said, and from how many of them machine code was there."""
    (directory / "two.py").write_text(
        "from streamrnn.kernels.jit import jit\n@jit\ndef one(x):\n    return x + 1\n"
        "@jit\ndef other(x):\n    return x * 2\n"
    )
    (directory / "temporary").mkdir(exist_ok=True)
    code = USE_READ_ONLY * read_only + (
        f"import sys; sys.path.insert(0, {str(directory)!r}); from two import one, other; "
        "print(one(1), other(3), *(sum(f.stats.cache_hits.values()) for f in (one, other)))"
    )
    ran = run_python(code, STREAMRNN_CACHE_DIR=str(cache), TMPDIR=str(directory / "temporary"))
    assert ran.returncode == 0, ran.stderr
    assert not list((directory / "temporary").iterdir())
    *outputs, first, second = map(int, ran.stdout.split())
    assert outputs == [2, 6]
    return first + second, ran.stderr


def test_a_cache_that_is_warm_and_read_only_is_used_as_it_is(tmp_path):
    cache = tmp_path / "cache"
    assert run_two_functions(tmp_path, cache) == (0, "")
    assert run_two_functions(tmp_path, cache, read_only=True) == (2, "")


@pytest.mark.parametrize("why", ["read-only", "a file is there", "no directory can be made"])
def test_machine_code_that_cannot_be_kept_is_one_warning(tmp_path, why):
    cache = tmp_path / "cache"
    if why == "read-only":
        cache.mkdir()
    elif why == "a file is there":
        cache.write_text("")
    else:
        cache = Path(os.devnull) / "below"
    num_hits, told = run_two_functions(tmp_path, cache, read_only=why == "read-only")
    assert num_hits == 0
    assert told.count("STREAMRNN_CACHE_DIR") == 1
    assert str(cache) in told


def test_old_machine_code_is_forgotten(tmp_path):
    for i in range(20):
        (tmp_path / f"kernels-{i}").mkdir()
        os.utime(tmp_path / f"kernels-{i}", (i, i))
    (tmp_path / "state-1").mkdir()
    jit._forget_old_generations(tmp_path, "kernels")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"state-1", *(f"kernels-{i}" for i in range(13, 20))}


def test_loads_and_stores():
    from streamrnn.kernels import memory

    @jit.jit
    def moved(a, b):
        memory.copy_bytes(b, a, 16)
        memory.prefetch(b)
        memory.store_u8(b, 255)
        memory.store_i32(b + 16, memory.load_i32(a + 4))
        memory.fill_bytes(b + 20, 4, 7)
        return memory.load_u16(a), memory.load_u32(a), memory.load_u8(b), memory.load_i64(b + 8)

    a = np.frombuffer(bytes(range(248, 256)) + bytes(range(8)), np.uint8).copy()
    b = np.zeros(24, np.uint8)
    read = moved(a.ctypes.data, b.ctypes.data)
    whole = bytes(a)
    assert read == (
        int.from_bytes(whole[:2], "little"),
        int.from_bytes(whole[:4], "little"),
        255,
        int.from_bytes(whole[8:], "little"),
    )
    assert bytes(b) == b"\xff" + whole[1:] + whole[4:8] + b"\x07" * 4


PRINT_CACHE = """
import os
os.umask({umask})
from pathlib import Path
from streamrnn.kernels.jit import cache_directory
print(cache_directory(Path("streamrnn/kernels")))
"""


def cache_of(root, umask=0o022):
    """Return the directory that is used for machine code, and what was warned of."""
    ran = run_python(PRINT_CACHE.format(umask=umask), STREAMRNN_CACHE_DIR=str(root))
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.strip()), ran.stderr


def test_nobody_else_can_write_the_cache_that_we_make(tmp_path):
    for umask in (0, 0o002, 0o022):
        place, _ = cache_of(tmp_path / f"{umask}" / "cache", umask)
        for directory in (place, place.parent):
            assert directory.stat().st_mode & 0o777 == 0o700


def test_a_cache_of_ours_that_a_umask_opened_is_closed_and_used(tmp_path):
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o775)
    place, _ = cache_of(root)
    assert place.parent == root
    assert root.stat().st_mode & 0o777 == 0o755


def refuse(root):
    """Check that a cache is not used, and that this is said."""
    place, told = cache_of(root)
    assert place.is_relative_to(os.devnull)
    assert "others can write it: set STREAMRNN_CACHE_DIR" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_cache_that_another_user_made_is_not_used(tmp_path):
    root = tmp_path / "cache"
    root.mkdir()
    os.chown(root, 65534, 65534)
    refuse(root)
    link = tmp_path / "link"
    root.rename(tmp_path / "other")
    (tmp_path / "ours").mkdir()
    link.symlink_to(tmp_path / "ours")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    refuse(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_machine_code_that_another_user_put_into_our_cache_is_not_used(tmp_path):
    root = tmp_path / "cache"
    place, _ = cache_of(root)
    os.chown(place, 65534, 65534)
    refuse(root)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    refuse(shared)
