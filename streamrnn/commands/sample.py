"""``streamrnn sample``: let a text model write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from streamrnn.commands.printable import printable
from streamrnn.errors import InputError
from streamrnn.model.model import Model
from streamrnn_client.errors import StreamRNNClientError
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.sampling import Sampler

__all__ = ["configure", "run", "sample"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="weight file")
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="what is gone on from, not printed (default: the unknown token, to begin anew)",
    )
    parser.add_argument(
        "-n", "--num-tokens", type=int, default=200, metavar="N", help="to draw (default 200)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="p becomes p^(1/T); 0: always the most probable token (default 1)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="only the K most probable (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the most probable that have the share P together (default 1: all)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed, the same text")


def run(args: argparse.Namespace) -> int:
    """Print the text that is drawn, as it is drawn; return the exit code."""
    model = Model.load(args.model)
    try:
        sampler = _info(args.model, model).sampler(
            args.text,
            args.num_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
        )
        for piece in sample(model, sampler):
            print(_shown(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    except StreamRNNClientError as error:
        raise InputError(str(error)) from error
    print()
    return 0


def sample(model: Model, sampler: Sampler) -> Iterator[str]:
    """Yield the pieces of text that are drawn from a model, computed in this process."""
    from streamrnn.engine.engine import Engine

    engine = Engine(model)
    for block in sampler.blocks():
        y = engine.steps("text", block[:, None])[-1]
    for _ in sampler.turns():
        token, piece = sampler.draw(y)
        y = engine.steps("text", [[token]])[-1]
        yield piece


def _info(path: str, model: Model) -> ModelInfo:
    """Describe a model as a server would."""
    spec = model.spec.to_dict()
    return ModelInfo({"name": path, "fingerprint": model.fingerprint, "spec": spec, "row_bytes": 0})


def _shown(piece: str) -> str:
    """Return a piece without what a terminal could take for a command."""
    return "".join(c if c in "\n\t\\" else printable(c) for c in piece)
