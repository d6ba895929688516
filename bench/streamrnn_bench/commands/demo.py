"""``streamrnn demo``: train, serve, stream and compare in one run; or bring a network of others."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what",
        nargs="?",
        choices=("co2", "vad", "agreement"),
        default="co2",
        help="co2: train on a table and serve it (default); vad: bring Silero's voice activity "
        "detector from its ONNX file and serve it beside onnxruntime; agreement: let an LSTM carry "
        "a subject's number over distractors, and draw the unit that does",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="MODEL", help="keep the trained model in this file"
    )
    parser.add_argument(
        "--port", type=int, help="of the server, on 127.0.0.1 (default 7070 if it is free)"
    )
    parser.add_argument(
        "--streams", type=_at_least_2, default=1000, metavar="B", help="at once (default 1000)"
    )
    parser.add_argument(
        "--epochs", type=int, default=0, metavar="N", help="train less (default: as `train` does)"
    )
    parser.add_argument(
        "--silero",
        type=Path,
        metavar="PATH",
        help="vad: the wheel of silero-vad, a folder that holds it, or its ONNX file (default: the "
        "installed package)",
    )
    parser.add_argument(
        "--seconds", type=float, default=12.0, metavar="S", help="vad: in real time (default 12)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="agreement: draw the unit as a picture too"
    )
    parser.add_argument(
        "--updates", type=int, default=0, metavar="N", help="agreement: train less (default 1000)"
    )
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument(
        "--keep-running",
        action="store_true",
        default=None,
        help="leave the server running until Ctrl-C (default on a terminal)",
    )
    ending.add_argument(
        "--once",
        dest="keep_running",
        action="store_false",
        default=None,
        help="end by itself (default without a terminal)",
    )


def _at_least_2(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("at least 2 streams are needed")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; return 0."""
    return {"agreement": _run_agreement, "vad": _run_vad, "co2": _run_co2}[args.what](args)


def _run_agreement(args: argparse.Namespace) -> int:
    from streamrnn_bench.demo.agreement.scenario import Options, run_scenario
    from streamrnn_bench.demo.output import Output

    with tempfile.TemporaryDirectory(prefix="streamrnn-demo-") as scratch:
        path = args.output or Path(scratch) / "agreement.safetensors"
        for place in filter(None, (path, args.plot)):
            place.parent.mkdir(parents=True, exist_ok=True)
        run_scenario(Options(path, args.plot, args.updates), Output())
    return 0


def _run_vad(args: argparse.Namespace) -> int:
    from streamrnn_bench.demo.output import Output
    from streamrnn_bench.demo.server_process import usable_port
    from streamrnn_bench.demo.vad.scenario import Options, run_scenario
    from streamrnn_bench.server.processes import stopping_cleanly

    options = Options(args.silero, usable_port(args.port), args.streams, args.seconds)
    with stopping_cleanly(), tempfile.TemporaryDirectory(prefix="streamrnn-demo-") as scratch:
        run_scenario(options, Path(scratch), Output())
    return 0


def _run_co2(args: argparse.Namespace) -> int:
    from streamrnn_bench.demo.output import Output
    from streamrnn_bench.demo.scenario import Options, run_scenario
    from streamrnn_bench.demo.server_process import usable_port
    from streamrnn_bench.server.processes import stopping_cleanly

    keep_running = args.keep_running
    if keep_running is None:
        keep_running = sys.stdin.isatty() and sys.stdout.isatty()
    port = usable_port(args.port)
    with stopping_cleanly(), tempfile.TemporaryDirectory(prefix="streamrnn-demo-") as scratch:
        path = args.output or Path(scratch) / "co2.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        run_scenario(Options(path, port, args.streams, args.epochs, keep_running), Output())
    return 0
