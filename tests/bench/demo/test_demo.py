"""The demonstration as a program, and its parts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamrnn.errors import ModelError, StartError, StreamRNNError
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.child_process import start_child
from streamrnn_bench.demo import server_process
from streamrnn_bench.demo.learn import learn
from streamrnn_bench.demo.many_streams import check_bits
from streamrnn_bench.demo.numpy_loop import NumpyLoop
from streamrnn_bench.demo.output import Output, duration, sparkline
from streamrnn_bench.demo.scenario import CLIENT
from streamrnn_bench.demo.server_process import ServerProcess, usable_port
from tests.support.models import random_model

ROOT = Path(__file__).parents[3]
NUM_STREAMS = 7


class Demo:
    """`streamrnn demo` without a terminal, in a process group of its own."""

    def __init__(self, *arguments) -> None:
        port = usable_port(None if "--port" in arguments else free_port())
        command = ["-m", "streamrnn_server", "demo", "--port", port, "--streams", NUM_STREAMS]
        self.process = start_child(
            [sys.executable, *(str(word) for word in (*command, "--epochs", 2, *arguments))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *error) -> None:
        if self.group_lives():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def read_until(self, words: str) -> str:
        """Read lines up to one with the words in it."""
        out, err = self.process.stdout, self.process.stderr
        assert out is not None
        assert err is not None
        for line in out:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"no {words!r} in\n{''.join(self.lines)}{err.read()}")

    def rest(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=280)
        return out, err

    def group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_demo_runs_all_sections_and_ends(tmp_path):
    path = tmp_path / "made-on-the-way" / "co2.safetensors"
    with Demo("-o", path) as demo:
        out, err = demo.rest()
        assert demo.process.returncode == 0, err
        assert not demo.group_lives()
    assert err == ""
    assert re.findall(r"^── (\d)  ", out, re.M) == ["1", "2", "3", "4", "5", "6"]
    assert max(len(line) for line in out.splitlines() if str(path) not in line) <= 88
    assert "\x1b" not in out
    text = " ".join(out.split())
    [errors] = re.findall(r"Streamed error ([\d.]+) ppmv; the trainer said ([\d.]+)", text)
    streamed, trained = map(float, errors)
    assert abs(streamed - trained) <= 1e-4
    assert re.search(r"persistence: .* 0\.513 ", text)
    assert f"all {NUM_STREAMS} streams in one call, and knows of nothing" in text
    assert "StateLost" not in text
    [(num_bits, num_differing)] = re.findall(r"of the ([\d,]+) bits .* crash, (\d+) differ", text)
    assert int(num_bits.replace(",", "")) % (32 * NUM_STREAMS) == 0
    assert num_differing == "0"
    for number in re.findall(r"[Pp]rocess (\d+)", text):
        assert not Path(f"/proc/{number}").exists()
    assert path.stat().st_size > 1000


@pytest.mark.slow
def test_with_keep_running_the_demo_serves_until_ctrl_c():
    with Demo("--keep-running") as demo:
        demo.read_until("until Ctrl-C")
        demo.read_until("print(")
        [start] = [k for k, line in enumerate(demo.lines) if "from streamrnn_client" in line]
        code = textwrap.dedent("".join(demo.lines[start:]))
        assert len(code.splitlines()) == 6
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        outputs = [float(line.strip("[]")) for line in printed.splitlines()]
        assert len(outputs) == 3
        assert all(365 < y < 380 for y in outputs)
        os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does
        out, err = demo.rest()
        assert (demo.process.returncode, err) == (0, "")
        assert out.strip() == "Stopped."
        assert not demo.group_lives()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_stopped_demo_leaves_no_process_behind(number):
    with Demo() as demo:
        demo.read_until("Streamed error")
        os.kill(demo.process.pid, number)  # to it alone: the server learns of it from nobody else
        _, err = demo.rest()
        assert (demo.process.returncode, err) == (130, "")
        assert not demo.group_lives()


def test_a_server_that_cannot_start_says_why(tmp_path):
    with ServerProcess(tmp_path / "absent.safetensors", free_port()) as server:
        with pytest.raises(StartError, match=r"code \d.*absent\.safetensors"):
            server.start()
        assert server.wait() != 0


class Compiling:
    """A process that logs every minute, for so many of them, and is ready after `num_minutes`."""

    def __init__(self, server, num_minutes, num_lines):
        self.server, self.num_minutes, self.num_lines = server, num_minutes, num_lines
        self.minute = 0

    def perf_counter(self):
        return 60.0 * self.minute

    def wait(self, timeout):
        self.minute += 1
        if self.minute <= self.num_lines:
            with self.server.log_path.open("a") as log:
                log.write(f"compiling {self.minute}\n")
        if self.minute == self.num_minutes:
            self.server._ready_path.touch()
        raise subprocess.TimeoutExpired("serve", timeout)


@pytest.fixture
def compiling(monkeypatch):
    """Return a function that makes a server whose start takes some minutes, of no time."""
    with ServerProcess(Path("absent"), 1) as server:

        def start(num_minutes, num_lines):
            server.log_path.touch()
            process: Any = Compiling(server, num_minutes, num_lines)
            monkeypatch.setattr(server, "_process", process)
            monkeypatch.setattr(server_process, "time", process)
            return server

        yield start
        monkeypatch.undo()


@pytest.mark.parametrize(("num_minutes", "num_lines"), [(500, 500), (12, 10)])
def test_a_start_is_waited_for_as_long_as_it_makes_progress(compiling, num_minutes, num_lines):
    assert compiling(num_minutes, num_lines).wait_until_ready() == 60.0 * num_minutes


def test_a_start_that_says_nothing_any_more_is_given_up(compiling):
    with pytest.raises(StartError, match=r"after 780 s.* nothing for 180 s.*words: compiling 10"):
        compiling(100, 10).wait_until_ready()


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} cannot be used"):
            usable_port(port)


def test_readme_shows_the_client_that_the_demo_prints():
    readme = (ROOT / "README.md").read_text()
    assert CLIENT.format(address="tcp://127.0.0.1:7070") in readme


# The NumPy loop, which the server is compared with


def test_numpy_loop_agrees_with_the_reference(rng):
    inputs = (
        InputSpec("level", difference=True, center=0.1, scale=0.5, missing="hold", fill=3.0),
        InputSpec("other", center=1.0, scale=2.0),
    )
    outputs = (OutputSpec("next", scale=0.4, center=0.2, difference_of="level"), OutputSpec("b"))
    model = random_model(rng, [("lstm", 5), ("lstm", 3)], inputs, outputs)
    x = rng.normal(2, 1, (4, 30, 2)).astype(np.float32)
    x[0, :2, 0] = x[1, 10, 0] = np.nan
    loop = NumpyLoop(model, len(x))
    y = np.stack([loop.step(x[:, t]) for t in range(x.shape[1])], axis=1)
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), rtol=0, atol=2e-6)


def test_numpy_loop_refuses_what_it_does_not_know(rng):
    with pytest.raises(ModelError, match="LSTM"):
        NumpyLoop(random_model(rng, [("gru", 4)]), 1)


def test_one_wrong_bit_is_reported():
    y = np.ones(4, np.float32)
    check_bits(y, y.copy())
    with pytest.raises(StreamRNNError, match="1 of 4 outputs"):
        check_bits(y, np.nextafter(y, np.array([1, 1, 2, 1], np.float32)))


# What is written


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (2e-6, "2.00 µs"),
        (5.431e-5, "54.3 µs"),
        (9.996e-4, "1.00 ms"),
        (0.5, "500 ms"),
        (61, "61.0 s"),
    ],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_lines_are_not_broken_between_number_and_unit(capsys):
    Output().say("a" * 80 + " in 223 ms, and on.")
    assert capsys.readouterr().out.splitlines() == ["a" * 80 + " in", "223 ms, and on."]


def test_sparkline():
    assert sparkline(np.array([0.0, 4.0, np.nan, 8.0, 9.0]), 0, 8) == "▁▅ ██"


def test_a_demonstration_that_was_interrupted_while_it_trained_begins_anew(tmp_path):
    path = tmp_path / "co2.safetensors"
    path.with_name("co2.safetensors.checkpoint").write_bytes(b"half")
    learned = learn(path, 1, Output())
    assert learned.errors["network"] > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["co2.safetensors", "co2.toml"]
