"""``streamrnn import``: convert another framework's file to a model, and check it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import DataError
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.model.model import Model
from streamrnn.model.spec import ACTIVATIONS
from streamrnn.reference.model import ReferenceModel

__all__ = ["CHECK_TOLERANCE", "configure", "run"]

# float32 weights, inputs and outputs of order 1, recorded by a framework that sums in another
# order: far above its rounding (about 1e-6), far below what any other network would answer.
CHECK_TOLERANCE = 1e-5


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Read a PyTorch state dict, saved with safetensors.torch.save_file, that holds an nn.RNN, "
        "nn.GRU or nn.LSTM of any depth, perhaps an nn.Embedding before it and an nn.Linear after "
        "it. Kind and sizes are read off the shapes."
    )
    parser.add_argument("file", metavar="FILE", help="state dict (.safetensors)")
    parser.add_argument("-o", "--output", metavar="MODEL", required=True, help="file to write")
    parser.add_argument(
        "--check",
        nargs=2,
        metavar=("IN.npy", "OUT.npy"),
        help="recorded inputs [T, I] or [B, T, I] and the outputs [T, O] or [B, T, O] that the "
        "original gave, from a zero state; nothing is written if they differ by more than "
        f"{CHECK_TOLERANCE:g}",
    )
    parser.add_argument("--inputs", type=_names, metavar="A,B,...", help="names of the inputs")
    parser.add_argument("--outputs", type=_names, metavar="A,B,...", help="names of the outputs")
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="identity",
        help="what follows the linear layer (default: %(default)s)",
    )
    parser.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), help="of nn.RNN (default: tanh)"
    )
    parser.add_argument(
        "--prefix", help="names up to 'weight_ih_l0', to choose one of several networks"
    )
    parser.add_argument("--head", metavar="NAME", help="name of the linear layer, or 'none'")
    parser.add_argument("--embedding", metavar="NAME", help="name of the embedding, or 'none'")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Import a file; return the exit code, 1 if the check failed."""
    imported = import_torch(
        args.file,
        TorchOptions(
            prefix=args.prefix,
            head=args.head,
            embedding=args.embedding,
            activation=args.activation,
            nonlinearity=args.nonlinearity,
            inputs=args.inputs,
            outputs=args.outputs,
        ),
    )
    model = imported.model
    print(f"{args.file}: {_summary(model)}")
    for note in imported.notes:
        print(f"note: {note}")
    if args.check and not _check(model, *args.check):
        print(f"{args.output} was not written", file=sys.stderr)
        return 1
    model.save(args.output)
    print(f"wrote {args.output}")
    return 0


def _summary(model: Model) -> str:
    spec = model.spec
    first = spec.inputs[0]
    parts = [f"{spec.num_inputs} input{'s' * (spec.num_inputs > 1)}"]
    if spec.is_token:
        parts = [f"{first.num_categories} tokens", f"embedding {first.embedding_size}"]
    parts += [
        f"{layer.cell} {layer.hidden_size}" + (f"->{r}" if (r := layer.projection_size) else "")
        for layer in spec.layers
    ]
    if spec.head is not None:
        parts.append(f"linear {spec.output_size} ({spec.head.activation})")
    return f"{' -> '.join(parts)}, {model.num_parameters} parameters"


def _check(model: Model, input_path: str, output_path: str) -> bool:
    """Compare reference and engine with recorded outputs, and print the result."""
    expected = _load(output_path).astype(np.float64)
    x = _as_batch(model, _load(input_path), expected, input_path, output_path)
    expected = expected.reshape(-1, *expected.shape[-2:])
    answers = (("float64 reference", ReferenceModel(model).steps), ("engine", _engine_steps(model)))
    for name, steps in answers:
        y = steps(x)
        max_error = np.abs(y - expected).max()
        print(f"check: {name}: max abs error {max_error:.3g} over {y.size} outputs")
        place = _first_beyond(y, expected)
        if place is not None:
            b, t, o = place
            print(
                f"check failed: beyond {CHECK_TOLERANCE:g} first at stream {b}, step {t}, output "
                f"{model.spec.outputs[o].name!r}: got {y[b, t, o]:.9g}, expected "
                f"{expected[b, t, o]:.9g}. {_advice(t, x.shape)}",
                file=sys.stderr,
            )
            return False
    return True


def _advice(t: int, shape: tuple[int, ...]) -> str:
    if t == 0:
        hint = "The first step differs already: try --activation, --nonlinearity or --head"
    else:
        hint = f"The first {t} steps agree: try --nonlinearity, and record from a zero state"
    if shape[0] > 1:
        hint += "; arrays of a module with batch_first=False must be transposed to [B, T, ...]"
    return hint


def _engine_steps(model: Model) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    def steps(x: NDArray[Any]) -> NDArray[np.float32]:
        from streamrnn.engine.engine import Engine

        engine = Engine(model)
        return np.stack([engine.steps(b, x[b]) for b in range(x.shape[0])])

    return steps


def _first_beyond(y: NDArray[Any], expected: NDArray[Any]) -> tuple[int, int, int] | None:
    """Return the earliest step beyond the tolerance (or NaN): stream, step, output."""
    beyond = ~(np.abs(y - expected) <= CHECK_TOLERANCE)
    if not beyond.any():
        return None
    t, b, o = np.argwhere(beyond.transpose(1, 0, 2))[0]
    return int(b), int(t), int(o)


def _load(path: str) -> NDArray[Any]:
    try:
        with Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no array in NumPy's .npy format: {error}; save it with numpy.save"
        ) from error
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}; expected numbers")
    return array


def _as_batch(
    model: Model, x: NDArray[Any], y: NDArray[Any], input_path: str, output_path: str
) -> NDArray[Any]:
    """Bring the inputs to [B, T, I]; the outputs' axes tell whether there is a batch."""
    spec = model.spec
    if y.ndim not in (2, 3) or y.shape[-1] != spec.output_size or y.size == 0:
        raise DataError(
            f"{output_path} has shape {list(y.shape)}; expected [T, {spec.output_size}] or "
            f"[B, T, {spec.output_size}]"
        )
    wanted = (*y.shape[:-1], spec.num_inputs)
    if x.shape != wanted and not (spec.num_inputs == 1 and x.shape == wanted[:-1]):
        raise DataError(
            f"{input_path} has shape {list(x.shape)}; with outputs {list(y.shape)} expected "
            f"{list(wanted)}"
        )
    if spec.is_token and x.dtype.kind == "f":
        raise DataError(f"{input_path} holds {x.dtype}; token ids are whole numbers")
    return x.reshape(-1, *wanted[-2:]).astype(np.int64 if spec.is_token else np.float32)
