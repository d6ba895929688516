"""Sequence of the demonstration's parts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from streamrnn_bench.demo.compilation import COMPILES, Compilation
from streamrnn_bench.demo.crash import crash
from streamrnn_bench.demo.learn import learn
from streamrnn_bench.demo.many_streams import compare, gather
from streamrnn_bench.demo.one_stream import stream_test_part
from streamrnn_bench.demo.output import Output, duration
from streamrnn_bench.demo.server_process import ServerProcess
from streamrnn_client import Client

__all__ = ["Options", "run_scenario"]

# Percentage of the rows of many streams that come before the part of the crash.
CALM_PERCENT = 75

CLIENT = """\
from streamrnn_client import Client

with Client("{address}") as client:
    stream = client.stream("sensor-7")
    for ppmv in [371.1, 371.3, 371.5]:
        print(stream.step([ppmv]))"""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    model_path: Path  # of the weight file to write
    port: int
    num_streams: int
    epochs: int  # at most; 0 for the trainer's default
    keep_running: bool  # at the end, until Ctrl-C


def run_scenario(options: Options, output: Output) -> None:
    """Train, serve, stream, compare, crash, and print what to do next."""
    output.line(
        "StreamRNN, from a table to a served model. Every number here is measured in this run."
    )
    with Compilation() as compilation:
        compilation.start()  # one core compiles the server, the other one trains
        learned = learn(options.model_path, options.epochs, output)
        output.heading("Serve, as a process of its own")
        compilation.start("--backwards")
        said_so = compilation.wait(output)
    with ServerProcess(options.model_path, options.port) as server:
        ready_s = server.start(lambda: None if said_so else output.say(COMPILES))
        output.say(f"Process {server.pid} at {server.address}, ready after {duration(ready_s)}.")
        with Client(server.address) as client:
            stream_test_part(client, learned, output)
            crowd = gather(learned, options.num_streams)
            calm = len(crowd.x) * CALM_PERCENT // 100
            compare(client, learned, crowd, calm, output)
            crash(server, client, crowd, calm, output)
        _hand_over(server, options.keep_running, output)


def _hand_over(server: ServerProcess, keep_running: bool, output: Output) -> None:
    output.heading("Yours")
    if keep_running:
        python = os.path.relpath(sys.executable)
        if python.startswith(os.pardir):
            python = sys.executable
        output.say(f"The server runs on until Ctrl-C. In another terminal, with {python}:")
    else:
        output.say(
            "Without a terminal the server ends here, where it would run on until Ctrl-C "
            "(--keep-running). A client:"
        )
    output.line()
    for line in CLIENT.format(address=server.address).splitlines():
        output.line(f"    {line}".rstrip())
    if keep_running:
        output.line()
        try:
            code = server.wait()
        except KeyboardInterrupt:
            output.line("Stopped.")
        else:
            output.line(f"The server has ended, with code {code}.")
