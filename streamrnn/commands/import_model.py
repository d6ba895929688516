"""``streamrnn import``: convert another framework's file to a model, and check it."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from streamrnn.commands.arguments import share
from streamrnn.commands.printable import printable
from streamrnn.importers.network import GraphOptions, ImportedModel
from streamrnn.importers.original.run import record_original
from streamrnn.importers.proof import TOLERANCE, joined, prove, read_recording
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.model.layers.base import LAYER_ACTIVATIONS
from streamrnn.model.model import Model

__all__ = ["configure", "run"]

# What stands in the metadata of a model that was compared with nothing.
_NOT_PROVED = "none: nothing was compared with the original"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Turn a file of another framework into a model. Its content says what it is: a PyTorch "
        "state dict (saved with safetensors.torch.save_file), ONNX, Keras, Neural Amp Modeler, "
        "RTNeural, AIDA-X or GuitarML. Nothing in it is run, and no pickle is read."
    )
    parser.add_argument(
        "file", metavar="FILE", help=".safetensors, .onnx, .keras, .h5, .nam or .json"
    )
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, help="file to write")
    parser.add_argument(
        "--check",
        nargs=2,
        metavar=("IN.npy", "OUT.npy"),
        help="recorded inputs [T, I] or [B, T, I] and the outputs [T, O] or [B, T, O] that the "
        "original gave, from a zero state, or its last outputs [B, O]; nothing is written if they "
        "differ",
    )
    parser.add_argument(
        "--tolerance",
        type=share,
        default=TOLERANCE,
        metavar="SHARE",
        help="largest error of an output, as a share of the range over which it varies; what the "
        "recording's precision costs is allowed beside it (default: %(default)g)",
    )
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="do not run the original; otherwise, without --check, an ONNX file is run with "
        "onnxruntime and one of Keras with keras, where that is installed, in a process of its own",
    )
    parser.add_argument("--inputs", type=_names, metavar="A,B,...", help="names of the inputs")
    parser.add_argument("--outputs", type=_names, metavar="A,B,...", help="names of the outputs")
    parser.add_argument(
        "--first-state",
        type=_names,
        metavar="NAME,...",
        help="of a state dict: the tensors of a trained first state, h0 (and c0) of every "
        "recurrent module; or 'zeros' to leave a first state out: the first outputs will differ",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="for weights of Keras alone (.weights.h5): the file that has the configuration",
    )
    graph = parser.add_argument_group("what an ONNX graph leaves open")
    graph.add_argument(
        "--set",
        type=_fixed,
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="an input of the graph that is the same at every step, or the size of an open axis; "
        "may be given several times",
    )
    graph.add_argument(
        "--state",
        type=_pair,
        action="append",
        default=[],
        metavar="INPUT=OUTPUT",
        help="an input of the graph that is this output of the step before, where names and shapes "
        "do not tell; once for each that is no recurrent operator's",
    )
    graph.add_argument(
        "--context",
        type=int,
        default=0,
        metavar="N",
        help="the last N samples of the frame before stand in front of every frame",
    )
    state_dict = parser.add_argument_group("what a state dict does not say")
    state_dict.add_argument(
        "--layers",
        type=_names,
        metavar="A,...",
        help="everything in the order of the data: modules by their names, and activations; a "
        "normalisation may have its epsilon after a colon, a causal convolution over steps its "
        "dilation, an embedding ':embedding'",
    )
    state_dict.add_argument(
        "--activation",
        type=_names,
        metavar="A,...",
        help="what follows each linear layer after the recurrent ones (default: identity): "
        f"{', '.join(LAYER_ACTIVATIONS)}; with a slope after a colon where one takes it "
        "(leaky_relu:0.2), a prelu with the name of its module (prelu:act)",
    )
    state_dict.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help="of nn.RNN (default: tanh)"
    )
    state_dict.add_argument(
        "--skip",
        type=float,
        nargs="?",
        const=1.0,
        metavar="GAIN",
        help="the first inputs are added to the outputs, times this (default: 1)",
    )
    state_dict.add_argument(
        "--causal-conv",
        metavar="NAME[:DILATION]",
        help="a convolution over steps that sees the past alone, before all other layers",
    )
    state_dict.add_argument(
        "--head-input",
        metavar="A",
        default="identity",
        help="what stands between the recurrent layers and the linear ones (default: %(default)s)",
    )
    state_dict.add_argument(
        "--between",
        type=_names,
        metavar="A,...",
        help="what follows each recurrent module but the last",
    )
    state_dict.add_argument(
        "--head", type=_names, metavar="NAME,...", help="linear layers after, or 'none'"
    )
    state_dict.add_argument(
        "--before", type=_names, metavar="NAME,...", help="linear layers before, or 'none'"
    )
    state_dict.add_argument(
        "--before-activation", type=_names, metavar="A,...", help="what follows each of them"
    )
    state_dict.add_argument("--embedding", metavar="NAME", help="the embedding, or 'none'")
    state_dict.add_argument(
        "--order", type=_names, metavar="NAME,...", help="several recurrent modules in their order"
    )
    state_dict.add_argument(
        "--prefix", help="names up to 'weight_ih_l0', to take one of several networks alone"
    )


def _fixed(text: str) -> tuple[str, float]:
    name, separator, number = text.partition("=")
    if not name or not separator or not math.isfinite(value := float(number)):
        raise ValueError(text)  # argparse says what it was
    return name, value


def _pair(text: str) -> tuple[str, str]:
    name, _, output = text.partition("=")
    if not name or not output:
        raise ValueError(text)  # argparse says what it was
    return name, output


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Import a file; return the exit code, 1 if the check failed."""
    graph_options = GraphOptions(dict(args.set), args.context, dict(args.state))
    imported = import_file(
        args.file,
        TorchOptions(
            layers=args.layers,
            prefix=args.prefix,
            between=args.between,
            causal_conv=args.causal_conv,
            skip=args.skip,
            order=args.order,
            before=args.before,
            before_activation=args.before_activation,
            head=args.head,
            head_input=args.head_input,
            embedding=args.embedding,
            activation=args.activation or "identity",
            nonlinearity=args.nonlinearity,
            first_state=args.first_state,
            inputs=args.inputs,
            outputs=args.outputs,
        ),
        args.config,
        graph_options,
    )
    model = imported.model
    print(f"{args.file}: {imported.source}: {_summary(model)}")
    for ours, theirs in imported.became.items():
        shape = "x".join(map(str, model.parameters[ours].shape))
        print(f"  {ours:<18} {shape:>11}  from {printable(theirs)}")
    for note in imported.notes:
        print(f"note: {printable(note)}")
    recordings, proofs = [], []
    if args.check:
        recordings = [read_recording(model.spec, *args.check)]
    elif not args.no_run:
        recordings, reason = record_original(args.file, imported, graph_options)
        if reason:
            print(f"note: {printable(reason)}")
    for recording in recordings:
        proof = prove(model, recording, args.tolerance)
        if not args.check:
            print(f"check: {printable(recording.source)}")
        print("\n".join(proof.lines))
        if proof.failure is not None:
            print(f"check failed: {proof.failure}", file=sys.stderr)
            print(f"{args.output} was not written", file=sys.stderr)
            return 1
        proofs.append(proof)
    facts = joined(proofs) if proofs else _NOT_PROVED
    Model(model.spec, model.parameters, facts).save(args.output)
    print(f"wrote {args.output}: {_verdict(imported, facts, is_recorded=bool(args.check))}")
    return 0


def _verdict(imported: ImportedModel, facts: dict[str, Any] | str, *, is_recorded: bool) -> str:
    if not isinstance(facts, str):
        if is_recorded:
            return f"proved with {facts['num_outputs']} recorded outputs"
        return f"proved with {facts['num_outputs']} outputs of the original, which was run"
    if imported.holds_graph:
        return (
            "NOT PROVED: it was read as the file says, but nothing was compared; record inputs and "
            "outputs of the original and add --check IN.npy OUT.npy"
        )
    return (
        "NOT PROVED: a state dict does not hold the graph (an activation before the head, a skip "
        "connection and the order of layers leave no trace in it), and nothing was compared; "
        "record inputs and outputs of the original and add --check IN.npy OUT.npy"
    )


def _summary(model: Model) -> str:
    spec = model.spec
    first = spec.inputs[0]
    parts = [f"{spec.num_inputs} input{'s' * (spec.num_inputs > 1)}"]
    if spec.is_token:
        parts = [f"{first.num_categories} tokens", f"embedding {first.embedding_size}"]
    parts += [layer.summary() for layer in spec.layers]
    if spec.head is not None:
        parts.append(f"linear {spec.output_size} ({spec.head.activation})")
    return f"{' -> '.join(parts)}, {model.num_parameters} parameters"
