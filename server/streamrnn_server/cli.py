"""The program ``streamrnn``: finds the subcommand and turns its outcome into an exit code.

A command is a module with ``configure(parser)`` and ``run(args) -> int``. Only the chosen one is
imported, so that ``streamrnn --help`` answers at once and nothing loads numba before it must.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 could not start; 130 after Ctrl-C,
143 where SIGTERM stopped a training.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TextIO

import streamrnn
from streamrnn.errors import StartError, StreamRNNError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["COMMANDS", "Command", "main"]

EXIT_FAILED = 1
EXIT_NOT_STARTED = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Command(NamedTuple):
    """One subcommand: the module that does it, and its line in the help."""

    module: str
    help: str


COMMANDS = {
    "train": Command("streamrnn.commands.train", "train a model on a table"),
    "compare": Command("streamrnn.commands.compare", "train several cells, say which to keep"),
    "predict": Command("streamrnn.commands.predict", "run a file through a model"),
    "evaluate": Command("streamrnn.commands.evaluate", "judge a model on a file it has not seen"),
    "sample": Command("streamrnn.commands.sample", "let a model of text write"),
    "import": Command(
        "streamrnn.commands.import_model", "turn another framework's file into a model"
    ),
    "export": Command("streamrnn.commands.export", "turn a model into another framework's file"),
    "inspect": Command("streamrnn.commands.inspect", "show what a model file holds"),
    "serve": Command("streamrnn_server.commands.serve", "serve models to streams"),
    "compile": Command(
        "streamrnn_server.commands.compile", "compile what a server runs, ahead of its first start"
    ),
    "state": Command(
        "streamrnn_server.commands.state", "streams on disk: look at them, move them, back them up"
    ),
    "drain": Command("streamrnn_server.commands.drain", "hand a server's streams to another one"),
    "keys": Command("streamrnn_server.commands.keys", "make keys for a server or a user"),
    "status": Command("streamrnn_server.commands.status", "ask a running server how it is"),
    "model": Command(
        "streamrnn_server.commands.model", "load, swap and unload a running server's models"
    ),
    "top": Command("streamrnn_server.commands.top", "watch a running server"),
    "bench": Command(
        "streamrnn_bench.commands.bench", "measure against peers and the machine's limits"
    ),
    "demo": Command("streamrnn_bench.commands.demo", "train, serve, stream and compare, by itself"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns
    -------
    int
        The exit code. What was wrong is one line on stderr, or a traceback with ``--debug``.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version`` (code 0) and wrong usage (code 2), as argparse does.
    """
    _open_standard_files()
    # Numba's objects are many: to look for cycles among them before they go takes a third of a
    # second of the end.
    atexit.register(gc.freeze)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    finally:
        # Python would complain of what it cannot write when it exits, and exit with 120.
        _flush(sys.stdout)
        _flush(sys.stderr)


def _open_standard_files() -> None:
    """Open those of descriptors 0 to 2 that are closed, so that no other file gets their numbers.

    What is printed, by us or by a library that ends the process, would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It takes the least number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115, for as long as the program runs
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _with_named_errors(sys.stdout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where it takes ASCII only, say


class _StandardOutput(io.FileIO):
    """Descriptor 1; an error says what could not be written, as that of another file does."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def _with_named_errors(file: io.TextIOWrapper) -> TextIO:
    """Return stdout again, as it is set, over a descriptor whose errors are named."""
    raw = _StandardOutput(file.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if file.write_through else io.BufferedWriter(raw),
        encoding=file.encoding,
        errors=file.errors,
        line_buffering=file.line_buffering,
        write_through=file.write_through,
    )


def _flush(file: TextIO) -> None:
    """Write what is buffered; if that fails, let it go nowhere."""
    try:
        file.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _run(arguments: Sequence[str]) -> int:
    """Run one subcommand and return the exit code."""
    # The words before the command are flags without a value, so the first other word is it.
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    debug = "--debug" in arguments
    try:
        command = import_module(COMMANDS[chosen].module) if chosen in COMMANDS else None
        parser = _parser()
        subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for name, (_, line) in COMMANDS.items():
            subparser = subparsers.add_parser(name, help=line, description=line, allow_abbrev=False)
            if command is not None and name == chosen:
                _add_debug(subparser)
                subparser.set_defaults(run=command.run)
                command.configure(subparser)
        args = parser.parse_args(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        return EXIT_FAILED
    except (StreamRNNError, OSError, ImportError) as error:
        with contextlib.suppress(OSError):  # if stderr fails, the exit code still says it
            if debug:
                traceback.print_exc()
            _complain(error)
        return EXIT_NOT_STARTED if isinstance(error, StartError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamrnn",
        description="Recurrent networks (RNN, GRU, LSTM) one time step at a time.",
        epilog="`streamrnn COMMAND --help` says more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"streamrnn {streamrnn.__version__}")
    _add_debug(parser)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    # Only for the help and the check of usage: an error may come before there are parsed arguments.
    parser.add_argument("--debug", action="store_true", help="show a traceback when it fails")


def _complain(error: Exception) -> None:
    """Say what went wrong in one line, whatever the message holds."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    message = " ".join(text.split()) or type(error).__name__
    print(f"streamrnn: error: {message}", file=sys.stderr)
