"""``streamrnn export``: convert a model to another framework's file, and check it there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from streamrnn.commands.arguments import share
from streamrnn.commands.printable import printable
from streamrnn.exporters.network import (
    NUM_STREAMS,
    Exported,
    is_installed,
    prove_export,
)
from streamrnn.exporters.onnx.model import export_onnx
from streamrnn.exporters.torch.model import export_torch
from streamrnn.importers.proof import TOLERANCE
from streamrnn.model.model import Model
from streamrnn.model.tensor_file import replace_file

__all__ = ["configure", "run"]

_TARGETS: dict[str, Callable[[Model], Exported]] = {"onnx": export_onnx, "torch": export_torch}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Turn a model into a file of another framework: an ONNX graph whose states are inputs and "
        "outputs, or a PyTorch state dict and the text of its module. Where onnxruntime or torch "
        "is installed, it is run and compared with the model, step by step and as a sequence."
    )
    parser.add_argument("model", metavar="MODEL", help="weight file")
    parser.add_argument("--to", choices=tuple(_TARGETS), required=True, help="the framework")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    parser.add_argument(
        "--tolerance",
        type=share,
        default=TOLERANCE,
        metavar="SHARE",
        help="largest error of an output, as a share of the range over which it varies; what "
        "float32 costs is allowed beside it (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Export a model; return the exit code, 1 if the check failed."""
    model = Model.load(args.model)
    exported = _TARGETS[args.to](model)
    print("\n".join(printable(line) for line in exported.lines))
    verdict = (
        f"UNPROVEN: {exported.framework} is not installed, so nothing was compared; install it and "
        "export again"
    )
    if is_installed(exported.framework):
        proofs = prove_export(model, exported, args.tolerance)
        for proof in proofs:
            print("\n".join(proof.lines))
            if proof.failure is not None:
                print(f"check failed: {proof.failure}", file=sys.stderr)
                print(f"{args.output} was not written", file=sys.stderr)
                return 1
        how = "step by step" if len(proofs) == 1 else "as a sequence and step by step"
        verdict = f"proved with {exported.framework}: {NUM_STREAMS} streams, {how}"
    replace_file(args.output, exported.data)
    if exported.text:
        print(exported.text)
    print(f"wrote {args.output}: {verdict}")
    return 0
