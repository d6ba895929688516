"""The types that numba finds in the compiled functions of the step."""

from __future__ import annotations

from tests.support.program import run_python

FUNCTIONS_WITH_FLOAT64 = """
import gc
from numba import types
from numba.core.registry import CPUDispatcher
from streamrnn.engine import cpu

for element in (types.float32, types.uint32):
    cpu._entry(element)
names, repeated = set(), set()
num_compiled = 0
for found in gc.get_objects():
    if isinstance(found, CPUDispatcher) and found.py_func.__module__.startswith("streamrnn."):
        if len(found.overloads) > 1:
            repeated.add(found.py_func.__name__)
        for compiled in found.overloads.values():
            num_compiled += 1
            if types.float64 in compiled.type_annotation.typemap.values():
                names.add(found.py_func.__name__)
print(num_compiled, *sorted(names))
print(*sorted(repeated))
"""


def test_no_compiled_function_of_the_step_computes_in_float64(tmp_path):
    """int64 with uint64, such as an array's address, makes a float64."""
    # Without a cache: machine code from there has no types. How good it is does not matter.
    ran = run_python(FUNCTIONS_WITH_FLOAT64, STREAMRNN_CACHE_DIR=str(tmp_path), NUMBA_OPT="1")
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    num_compiled, *names = first.split()
    assert int(num_compiled) > 30
    assert names == []
    # A literal among the arguments has all that is called compiled once more.
    repeated = set(second.split())
    assert not repeated & {"run_frame_op", "_run_layer", "_step_layer", "_finish"}
