"""The program ``streamrnn``: its arguments, exit codes, errors and help."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import streamrnn
from streamrnn.errors import DataError, StartError
from streamrnn_server import cli
from tests.support.program import run_python


@pytest.fixture
def command(monkeypatch):
    """Put a stand-in behind `serve`, whose `run` a test may replace."""
    module = SimpleNamespace(
        configure=lambda parser: parser.add_argument("word"), run=lambda args: 0
    )
    monkeypatch.setitem(sys.modules, "stand_in_command", module)
    monkeypatch.setitem(cli.COMMANDS, "serve", cli.Command("stand_in_command", "stand in"))
    return module


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_command_gets_its_arguments_and_says_the_exit_code(command, code):
    command.run = lambda args: code if args.word == "model" else 99
    assert cli.main(["serve", "model"]) == code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("row 3:\nno such column"), 1, "row 3: no such column"),
        (StartError("the address is taken"), 3, "the address is taken"),
        (PermissionError(13, "Permission denied", "m.safetensors"), 1, "m.safetensors: Permission"),
        (ModuleNotFoundError("No module named 'onnx'"), 1, "No module named 'onnx'"),
    ],
)
def test_an_error_is_one_clear_line(command, capsys, error, code, words):
    command.run = raising(error)
    assert cli.main(["serve", "model"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("streamrnn: error: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "serve", "m"], ["serve", "m", "--debug"]])
def test_debug_shows_the_traceback(command, capsys, arguments):
    command.run = raising(DataError("no such column"))
    assert cli.main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_exception_keeps_its_traceback(command):
    command.run = raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["serve", "model"])


def test_ctrl_c_is_quiet(command, capsys):
    command.run = raising(KeyboardInterrupt())
    assert cli.main(["serve", "model"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments", [[], ["sreve"], ["serve"], ["serve", "a", "b"], ["--verison"]]
)
def test_wrong_usage_is_2(command, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: streamrnn" in capsys.readouterr().err


def test_help_has_a_line_for_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, words) in cli.COMMANDS.items():
        assert [line for line in lines if line.split() == [name, *words.split()]], name


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: streamrnn {name}" in capsys.readouterr().out


def test_the_module_is_the_program():
    arguments = [sys.executable, "-m", "streamrnn_server", "--version"]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert printed == f"streamrnn {streamrnn.__version__}\n"


def test_a_closed_output_pipe_gives_no_traceback():
    """As in `streamrnn inspect MODEL | head -1`."""
    code = """
import sys, types
from streamrnn_server import cli
sys.modules["command"] = types.SimpleNamespace(
    configure=lambda parser: None, run=lambda args: print("a line") or 0
)
cli.COMMANDS["serve"] = cli.Command("command", "")
sys.exit(cli.main(["serve"]))
"""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_the_end_looks_for_no_cycles_in_what_goes_anyway():
    code = """
import atexit, gc
from streamrnn_server import cli
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # which comes last
cli.main(["--version"])
"""
    assert run_python(code).stdout.splitlines()[-1] == "True"
