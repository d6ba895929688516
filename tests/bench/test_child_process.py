"""Child processes of tests, demo and benchmarks end with their parent."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from streamrnn_bench import child_process
from tests.support.models import random_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")

ROOT = Path(__file__).parents[2]
GIVE_UP_AFTER_S = 120
# Each starts a server of the model, tells its process and waits to be killed.
STARTERS = {
    "tests": """
from tests.support.program import Program
with Program(model) as program:
    print(program.process.pid, flush=True)
    sys.stdin.read()
""",
    "demo": """
from streamrnn_bench.demo.server_process import ServerProcess, usable_port
with ServerProcess(model, usable_port(None)) as server:
    server.start()
    print(server.pid, flush=True)
    sys.stdin.read()
""",
    "benchmarks": """
from streamrnn_bench.server.processes import server
with server(model) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
""",
}


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits for a parent to take notice."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


@pytest.mark.slow
@pytest.mark.parametrize("starter", STARTERS)
def test_a_server_ends_when_its_parent_is_killed(starter, tmp_path):
    path = tmp_path / "m.safetensors"
    random_model(np.random.default_rng(3), [("gru", 8)]).save(path)
    code = f"import sys\nfrom pathlib import Path\nmodel = Path({str(path)!r})\n{STARTERS[starter]}"
    pipe = subprocess.PIPE
    with child_process.start_child(
        [sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.kill()
    give_up_at_s = time.monotonic() + GIVE_UP_AFTER_S
    while not has_ended(pid):
        assert time.monotonic() < give_up_at_s, "the server has outlived its starter"
        time.sleep(0.01)


def test_other_threads_than_the_main_one_are_refused():
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(child_process.start_child, ["true"])
        with pytest.raises(RuntimeError, match="main one"):
            starting.result()


def test_a_command_is_not_run_if_its_parent_has_already_ended():
    words = [sys.executable, child_process.__file__, "0", "echo", "it runs"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
