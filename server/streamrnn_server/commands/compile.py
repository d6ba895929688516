"""``streamrnn compile``."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from streamrnn.errors import ServerError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn_server.event_log import EventLog

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--precision",
        choices=tuple(DEVICE_PRECISIONS["cpu"]),
        nargs="+",
        default=["float32"],
        help="what 'serve --precision' will be (float32)",
    )


def run(args: argparse.Namespace) -> int:
    """Compile all that a server runs on this processor, as its first start would.

    Returns
    -------
    int
        0.

    Raises
    ------
    ServerError
        If what was compiled cannot be kept.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from streamrnn.kernels import jit
        from streamrnn_server.startup.warmup import compile_all

        kept = jit.cache_directory(Path(jit.__file__).parent).parent
        _need(caught, kept)
        passed_s = sum(compile_all(EventLog(), each, "cpu") for each in args.precision)
        _need(caught, kept)
    print(f"ready to serve {', '.join(args.precision)} ({passed_s:.1f} s): {kept}")
    return 0


def _need(caught: Sequence[warnings.WarningMessage], kept: Path) -> None:
    """Refuse to go on, or to be done, where nothing is kept."""
    told = [text for each in caught if "STREAMRNN_CACHE_DIR" in (text := str(each.message))]
    if told or not kept.is_dir():
        reason = f"nothing can be kept in {kept}: set STREAMRNN_CACHE_DIR to a directory"
        raise ServerError(told[0] if told else reason)
