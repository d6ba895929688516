"""The types that numba finds in the compiled functions of the step."""

from __future__ import annotations

from tests.support.program import run_python

# A process of its own: here there would be what the trainer computes with too.
FUNCTIONS_WITH_FLOAT64 = """
import gc
from numba import types
from numba.core.registry import CPUDispatcher
from streamrnn.engine import cpu
from tests.support.compile import typed_overloads

for element in (types.float32, types.uint32):
    cpu._entry(element)
names, repeated = set(), set()
num_compiled = 0
for found in gc.get_objects():
    if isinstance(found, CPUDispatcher) and found.py_func.__module__.startswith("streamrnn."):
        overloads = typed_overloads(found)
        if len(overloads) > 1:
            repeated.add(found.py_func.__name__)
        for lines in overloads:
            num_compiled += len(lines) > 0
            if any(line.rpartition("  :: ")[2] == "float64" for line in lines):
                names.add(found.py_func.__name__)
print(num_compiled, *sorted(names))
print(*sorted(repeated))
"""


def test_no_compiled_function_of_the_step_computes_in_float64():
    """int64 with uint64, such as an array's address, makes a float64."""
    ran = run_python(FUNCTIONS_WITH_FLOAT64)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()
    num_compiled, *names = first.split()
    assert int(num_compiled) > 30
    assert names == []
    # A literal among the arguments has all that is called compiled once more.
    repeated = set(second.split())
    assert not repeated & {"run_frame_op", "_run_layer", "_step_layer", "_finish"}
