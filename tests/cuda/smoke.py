"""First words with a GPU: each way through it once, beside the CPU, bit by bit.

``python -m tests.cuda.smoke``; with ``--tiny`` for a sanitizer, under which kernels crawl. Prints a
line a check, and goes on after one that fails; the exit code is the number of those.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from streamrnn import Engine
from tests.support.engines import stepped
from tests.support.models import random_inputs, random_model
from tests.tolerances import KERNEL, TENSOR


def difference(given: Any, wanted: Any) -> str:
    """Say where two arrays of float32 differ, or nothing."""
    a, b = (np.ascontiguousarray(each).view(np.uint32) for each in (given, wanted))
    wrong = np.argwhere(a != b)
    if not len(wrong):
        return ""
    first = tuple(map(int, wrong[0]))
    return (
        f"{len(wrong)} of {a.size} numbers differ, the first at {first}: "
        f"{a.view(np.float32)[first]!r}, not {b.view(np.float32)[first]!r}"
    )


def batches(layers: Any, head: str | None, num_streams: int) -> str:
    rng = np.random.default_rng(0)
    outputs = 5 if head else layers[-1][1]
    model = random_model(rng, layers=layers, inputs=9, outputs=outputs, head=head)
    x, most = random_inputs(rng, model.spec, num_streams, 3), max(8, num_streams)
    gpu = stepped(Engine(model, device="cuda", max_streams=most), x)
    cpu = stepped(Engine(model, max_streams=most), x)
    if head != "softmax":
        return difference(gpu, cpu)
    # Its sum has another order than the CPU's.
    error = float(np.max(np.abs(gpu - cpu)))
    return "" if error <= KERNEL else f"off by {error:.2g}"


def tensor_cores(precision: str, num_streams: int) -> str:
    rng = np.random.default_rng(0)
    model = random_model(rng, layers=[("lstm", 257)], inputs=9, outputs=5)
    x = random_inputs(rng, model.spec, num_streams, 3)
    engine = Engine(model, device="cuda", max_streams=num_streams, precision=precision)
    error = float(
        np.max(np.abs(stepped(engine, x) - stepped(Engine(model, max_streams=num_streams), x)))
    )
    return "" if 0 < error <= TENSOR[precision] else f"off by {error:.2g}"


def chunk(layers: Any, num_steps: int) -> str:
    rng = np.random.default_rng(1)
    model = random_model(rng, layers=layers, inputs=9, outputs=4)
    x = random_inputs(rng, model.spec, 1, num_steps)
    together, singly = (Engine(model, device="cuda", max_streams=8) for _ in range(2))
    return difference(together.steps("a", x[0]), stepped(singly, x)[0])


def checks(is_tiny: bool) -> dict[str, Callable[[], str]]:
    if is_tiny:
        return {
            "lstm 20, 9 streams": partial(batches, [("lstm", 20)], None, 9),
            "gru 17 and head, 9 streams": partial(batches, [("gru", 17)], "softmax", 9),
            "lstm 40, chunk": partial(chunk, [("lstm", 40)], 5),
            "tf32, 9 streams": partial(tensor_cores, "tf32", 9),
        }
    found: dict[str, Callable[[], str]] = {}
    for cell in ("lstm", "gru", "rnn_tanh"):
        found[f"{cell} 50, 9 streams"] = partial(batches, [(cell, 50)], None, 9)
        found[f"{cell} 200, 3000 streams"] = partial(batches, [(cell, 200)], "tanh", 3000)
    found["gru 33, softmax"] = partial(batches, [("gru", 33)], "softmax", 9)
    # The small model's chunk after the large one's: they share a kernel.
    found["lstm 512, chunk"] = partial(chunk, [("lstm", 512)], 100)
    found["lstm 40, chunk"] = partial(chunk, [("lstm", 40)], 100)
    for precision in ("tf32", "bfloat16"):
        found[f"{precision}, 3000 streams"] = partial(tensor_cores, precision, 3000)
    return found


def main() -> int:
    num_failed = 0
    for name, run in checks("--tiny" in sys.argv[1:]).items():
        began_s = time.perf_counter()
        try:
            wrong = run()
        except Exception:
            wrong = traceback.format_exc()
        num_failed += bool(wrong)
        print(f"{name}: {wrong or 'fine'} ({time.perf_counter() - began_s:.1f} s)", flush=True)
    print(f"{num_failed} of {len(checks('--tiny' in sys.argv[1:]))} checks failed")
    return num_failed


if __name__ == "__main__":
    sys.exit(main())
