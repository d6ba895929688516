"""``streamrnn inspect``: show what a model file holds."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import Any

from streamrnn.commands.inspect_data import add_data, data_facts, data_lines
from streamrnn.commands.printable import printable
from streamrnn.errors import DataError
from streamrnn.model.graph import Read
from streamrnn.model.layers.base import Shape
from streamrnn.model.layers.memory import MemorySpec, TimeConvSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.report import report_lines

__all__ = ["configure", "describe", "run", "state_bytes"]

_FASTER = 1.05  # what two timings of one step may differ by


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="weight file")
    parser.add_argument(
        "--precision",
        action="store_true",
        help="run the model's stored sample in every precision and show each output's error, and "
        "how long a step takes on this processor",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_data(parser)


def run(args: argparse.Namespace) -> int:
    """Show a model; return the exit code."""
    model = Model.load(args.model)
    facts = describe(model) | {"file": args.model, "file_bytes": os.path.getsize(args.model)}
    if args.precision:
        facts["precision"] = _precision_facts(model)
    drawing: list[str] = []
    if args.data is not None:
        facts["data"], drawing = data_facts(args, model)
    elif args.unit is not None or args.predict is not None:
        raise DataError("--unit and --predict are of the streams of a file: name it with --data")
    if args.json:
        print(json.dumps(facts, sort_keys=True))
    else:
        print("\n".join(_lines(model.spec, facts)))
        if args.data is not None:
            print("\n".join(printable(line) for line in (*data_lines(facts["data"]), *drawing)))
    return 0


def state_bytes(spec: ModelSpec) -> int:
    """Count the bytes of all that a stream keeps from step to step, unpadded."""
    graph = spec.graph
    num_values = sum(item.has_memory for item in spec.inputs)
    for k, layer in enumerate(spec.layers):
        if isinstance(layer, LayerSpec):
            num_values += sum(layer.state_sizes)
        elif isinstance(layer, MemorySpec):
            num_values += layer.places * graph.shape_of_joined(k)[1]
        elif isinstance(layer, TimeConvSpec):
            num_values += layer.num_kept * math.prod(graph.shape_of_joined(k))
    num_values += sum(math.prod(graph.shape_of(Read(k, is_before=True))) for k in graph.kept)
    return 4 * num_values


def describe(model: Model) -> dict[str, Any]:
    """Collect the facts about a model as JSON types."""
    return {
        "fingerprint": model.fingerprint,
        "num_parameters": model.num_parameters,
        "parameter_bytes": sum(value.nbytes for value in model.parameters.values()),
        "state_bytes": state_bytes(model.spec),
        "spec": model.spec.to_dict(),
    } | ({} if model.proof is None else {"proof": model.proof})


def _lines(spec: ModelSpec, facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['file']}  ({facts['file_bytes']:,} bytes)",
        f"fingerprint  {facts['fingerprint']}",
        f"parameters   {facts['num_parameters']:,}  ({facts['parameter_bytes']:,} bytes)",
        f"state        {facts['state_bytes']:,} bytes a stream",
        f"warm-up      {spec.warmup_steps:,} steps",
        f"inputs       {spec.num_inputs}",
        *_shortened([_input_line(item) for item in spec.inputs]),
        "layers",
        *_layer_lines(spec),
        f"outputs      {spec.output_size}",
        *_shortened([_output_line(item) for item in spec.outputs]),
    ]
    if spec.training:
        lines.append("training")
        lines += [f"  {printable(line)}" for line in _training_lines(spec.training)]
    if "proof" in facts:
        lines += _tree({"proof": facts["proof"]})
    if "precision" in facts:
        lines += _precision_lines(spec, facts["precision"])
    return lines


def _training_lines(training: dict[str, Any]) -> list[str]:
    """Format it as the trainer did; list the facts of a training elsewhere."""
    try:
        return list(report_lines(training))
    # A report is whatever a file holds.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        long = ("sample", "seen")
        return _tree({key: value for key, value in training.items() if key not in long})


def _precision_facts(model: Model) -> dict[str, Any]:
    # Loads Numba, which the rest of the command does without.
    from streamrnn.engine.precision import measure_precisions, time_precisions

    errors, num_steps, is_own = measure_precisions(model)
    return {
        "num_steps": num_steps,
        "is_own_sample": is_own,
        "step_us": time_precisions(model),
        "errors": {
            error.precision: {
                output.name: {"largest": float(largest), "root_mean_square": float(rms)}
                for output, largest, rms in zip(
                    model.spec.outputs, error.largest, error.root_mean_square, strict=True
                )
            }
            for error in errors
        },
    }


def _precision_lines(spec: ModelSpec, facts: dict[str, Any]) -> list[str]:
    whose = "the model's own sample" if facts["is_own_sample"] else "made-up inputs (no sample)"
    lines = [f"precision    largest error of an output, over {facts['num_steps']} steps of {whose}"]
    lines.append("  " + "".join(f"{name:>12}" for name in facts["errors"]))
    rows = []
    for output in spec.outputs:
        cells = (found[output.name]["largest"] for found in facts["errors"].values())
        rows.append("".join(f"{cell:>12.3g}" for cell in cells) + f"  {_named(output)}")
    times_us = facts["step_us"]
    lines += _shortened(rows)
    lines.append(
        "  " + "".join(f"{each:>12.3g}" for each in times_us.values()) + "  us a step and its call"
    )
    if times_us["bfloat16"] <= _FASTER * times_us["int8"]:
        lines.append(
            "  of these two bfloat16 is the better choice on this processor: int8 is less exact, "
            f"and not {_FASTER - 1:.0%} faster"
        )
    return lines


def _shortened(lines: list[str], at_most: int = 24) -> list[str]:
    shown = [f"  {line}" for line in lines[:at_most]]
    if len(lines) > at_most:
        shown.append(f"  ... and {len(lines) - at_most} more (--json shows all)")
    return shown


def _named(item: InputSpec | OutputSpec) -> str:
    name = _quoted(item.name)
    return f"{name} [{printable(item.unit)}]" if item.unit else name


def _quoted(name: str) -> str:
    """Return a name in quotes if it could not be told from what is around it."""
    is_plain = bool(name) and name.isprintable() and name == name.strip(" ,")
    return printable(name) if is_plain else f"'{printable(name)}'"


def _input_line(item: InputSpec) -> str:
    parts = [_named(item), item.kind]
    if item.shape:
        parts.append(f"shape {list(item.shape)}")
    if item.num_categories:
        shown = ", ".join(map(_quoted, item.categories[:12]))
        shown += ", ..." * (len(item.categories) > 12)
        names = f": {shown}" if shown else ""
        parts.append(f"{item.num_categories} categories{names}")
        parts.append(f"embedding {item.embedding_size}" if item.embedding_size else "one-hot")
    if item.difference:
        parts.append("difference" + " (from the first known value)" * item.starts_known)
    if item.center != 0 or item.scale != 1:
        parts.append(f"center {item.center:g}, scale {item.scale:g}")
    if item.missing != "error":
        parts.append(f"missing: {item.missing} (fill {item.fill:g})")
    return "  ".join(parts)


def _output_line(item: OutputSpec) -> str:
    parts = [_named(item)]
    if item.shape:
        parts.append(f"shape {list(item.shape)}")
    if item.center != 0 or item.scale != 1:
        parts.append(f"center {item.center:g}, scale {item.scale:g}")
    if item.difference_of is not None:
        parts.append(f"added to the level of {item.difference_of}")
    return "  ".join(parts)


def _layer_lines(spec: ModelSpec) -> list[str]:
    """Write every layer with the size of what it reads and of what it gives."""
    graph, lines = spec.graph, []
    for k, layer in enumerate(spec.layers):
        what = layer.describe()
        read, given = _size(graph.shape_of_joined(k)), _size(graph.shapes[k])
        if isinstance(layer, LayerSpec):
            what, given = layer.cell, f"{layer.hidden_size}{layer.describe()[len(layer.cell) :]}"
        name = f"{layer.name}: " if layer.name else ""
        reads = f"  (of {', '.join(layer.reads)})" if layer.reads else ""
        lines.append(f"  {name}{what}  {read} -> {given}{reads}")
    if spec.head is not None:
        size = _size(graph.shapes[-1])
        lines.append(f"  linear  {size} -> {spec.output_size}  {spec.head.activation}")
    return lines


def _size(shape: Shape) -> str:
    return str(shape[1]) if shape[0] == 1 else f"[{shape[0]}, {shape[1]}]"


def _tree(value: dict[str, Any], indent: str = "") -> list[str]:
    """Format nested facts, one a line."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines.append(f"{indent}{key}")
            lines += _tree(item, indent + "  ")
        else:
            lines.append(f"{indent}{key}: {item}")
    return lines
