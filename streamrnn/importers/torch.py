"""Import a PyTorch state dict that was saved as safetensors. No PyTorch is needed.

A state dict holds names and shapes, not code. Kind and sizes of the recurrent layers follow from
the shapes: ``weight_hh`` has G*H rows and H columns, and G is 1 for ``nn.RNN``, 3 for ``nn.GRU``,
4 for ``nn.LSTM``. What comes before and after is found by asking that every tensor has a role:
a model that would leave something out is refused unless the caller chooses the part.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.torch_layers import RECURRENT_NAME, RecurrentLayers, read_layers
from streamrnn.model.file import METADATA_KEY
from streamrnn.model.model import Model
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.model.tensor_file import TensorFile, read_tensor_file

__all__ = ["ImportedModel", "TorchOptions", "import_torch"]

_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class TorchOptions:
    """Options for what a state dict does not hold.

    Attributes
    ----------
    prefix : str or None
        Names of the recurrent layers up to ``weight_ih_l0``; None takes the only ones. Given,
        tensors that belong to no part of the model are left out.
    head : str or None
        Name of the linear layer, ``none`` for no head; None finds it.
    embedding : str or None
        Name of the embedding, ``none`` for no embedding; None finds it.
    activation : str
        Activation after the linear layer.
    nonlinearity : str or None
        ``tanh`` or ``relu`` for ``nn.RNN``; None is tanh, PyTorch's default.
    inputs, outputs : sequence of str or None
        Names; None numbers them: ``x0``, ``x1``, ... and ``y0``, ``y1``, ...
    """

    prefix: str | None = None
    head: str | None = None
    embedding: str | None = None
    activation: str = "identity"
    nonlinearity: str | None = None
    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None


@dataclass
class ImportedModel:
    """An imported model, and notes for its user."""

    model: Model  # ready to be saved
    # what was converted, assumed or left out, one sentence each
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Roles:
    """Roles of the tensors; names end before ``.weight``."""

    embedding: str | None
    head: str | None
    unused: tuple[str, ...]


def import_torch(
    path: str | os.PathLike[str], options: TorchOptions | None = None
) -> ImportedModel:
    """Read a PyTorch state dict with ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.

    Parameters
    ----------
    path : str or path
        A safetensors file, as ``safetensors.torch.save_file(model.state_dict(), path)`` writes.
    options : TorchOptions or None
        What the file cannot tell; None for the defaults.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If the file is damaged, holds no recurrent network, several, or one that cannot be
        streamed, or has tensors without a role. The message names the option that chooses.
    ModelError
        If an option does not fit the model, or a weight is not finite.
    """
    options = options or TorchOptions()
    file = read_tensor_file(path)
    if METADATA_KEY in file.metadata:
        raise ModelFileError(f"{file.path} is a model of StreamRNN already; use it as it is")
    prefix = _choose_prefix(file, options.prefix)
    recurrent = read_layers(file, prefix)
    cell = recurrent.cell
    roles = _choose_roles(file, prefix, recurrent.sizes, options)
    notes = []
    if roles.unused:
        notes.append(f"left out: {', '.join(roles.unused)}")
    if cell == "rnn":
        cell = f"rnn_{options.nonlinearity or 'tanh'}"
        if options.nonlinearity is None:
            notes.append(
                "the file does not tell the nonlinearity of nn.RNN: took tanh, PyTorch's default "
                "(--nonlinearity relu for the other)"
            )
    elif options.nonlinearity is not None:
        raise ModelError(
            f"{file.path} holds nn.{cell.upper()}, whose nonlinearity is fixed; leave "
            "--nonlinearity out"
        )
    if roles.head is None and options.activation != "identity":
        raise ModelError(
            f"{file.path} has no linear layer that --activation {options.activation} could "
            "follow; leave it out"
        )
    parameters = _read_parameters(file, prefix, recurrent, roles, notes)
    spec = _make_spec(parameters, replace(recurrent, cell=cell), roles, options)
    if roles.embedding is not None:
        name = f"embedding.{spec.inputs[0].name}.weight"
        parameters[name] = parameters.pop("embedding.weight")
    try:
        return ImportedModel(Model(spec, parameters), notes)
    except ModelError as error:
        raise ModelFileError(f"{file.path}: {error}") from error


def _choose_prefix(file: TensorFile, wanted: str | None) -> str:
    """Find the one recurrent network, or the one that was asked for."""
    found: dict[str, list[str]] = {}
    for name in file.tensors:
        match = RECURRENT_NAME.fullmatch(name)
        if match:
            found.setdefault(match["prefix"], []).append(name)
    if not found:
        names = list(file.tensors)
        raise ModelFileError(
            f"{file.path} holds no nn.RNN, nn.GRU or nn.LSTM: no tensor is named like "
            f"'...weight_ih_l0'. Its tensors: {_shortened(names)}"
        )
    if wanted is None:
        if len(found) > 1:
            raise ModelFileError(
                f"{file.path} holds {len(found)} recurrent networks; choose one with "
                + " or ".join(f"--prefix {prefix!r}" for prefix in sorted(found))
            )
        return next(iter(found))
    for prefix in (wanted, f"{wanted}."):
        if prefix in found:
            return prefix
    raise ModelFileError(
        f"{file.path} holds no recurrent network under the prefix {wanted!r}; there is "
        + " and ".join(repr(prefix) for prefix in sorted(found))
    )


def _choose_roles(
    file: TensorFile, prefix: str, sizes: Sequence[int], options: TorchOptions
) -> _Roles:
    """Give every other tensor a role: of all ways, the one that leaves the fewest out."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    others = []
    for name, stored in file.tensors.items():
        match = RECURRENT_NAME.fullmatch(name)
        if match and match["prefix"] == prefix:
            continue
        others.append(name)
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = stored.shape
    heads = _candidates(modules, options.head, "head", _is_linear, sizes[-1], file)
    embeddings = _candidates(modules, options.embedding, "embedding", _is_embedding, sizes[0], file)
    ways = []
    for embedding, head in itertools.product(embeddings, heads):
        if embedding is None or embedding != head:
            taken = {name for name in others if name.rpartition(".")[0] in {embedding, head}}
            unused = tuple(name for name in others if name not in taken)
            ways.append(_Roles(embedding, head, unused))
    fewest = min(len(way.unused) for way in ways)
    best = [way for way in ways if len(way.unused) == fewest]
    if len(best) > 1:
        raise ModelFileError(
            f"{file.path}: the recurrent network {prefix!r} can be read in {len(best)} ways; "
            "choose one: "
            + "; ".join(
                f"--embedding {_option(way.embedding)} --head {_option(way.head)}" for way in best
            )
        )
    if best[0].unused and options.prefix is None:
        raise ModelFileError(
            f"{file.path} holds more than one recurrent network with a linear layer after it: "
            f"{_shortened(best[0].unused)} would be left out. If that is right, say so with "
            f"--prefix {prefix!r}, and prove the result with --check"
        )
    return best[0]


def _candidates(
    modules: Mapping[str, Mapping[str, tuple[int, ...]]],
    wanted: str | None,
    role: str,
    fits: Any,
    size: int,
    file: TensorFile,
) -> list[str | None]:
    """List the modules that can play a role; None stands for none."""
    fitting = [name for name, tensors in modules.items() if fits(tensors, size)]
    if wanted is None:
        return [None, *fitting]
    if wanted == "none":
        return [None]
    if wanted not in fitting:
        raise ModelFileError(
            f"{file.path}: {wanted!r} cannot be the {role}; "
            + (f"{' or '.join(map(repr, fitting))} can" if fitting else "no layer here can")
            + f", or none (--{role} none)"
        )
    return [wanted]


def _is_linear(tensors: Mapping[str, tuple[int, ...]], hidden_size: int) -> bool:
    weight = tensors.get("weight", ())
    if len(weight) != 2 or weight[1] != hidden_size:
        return False
    return set(tensors) == {"weight"} or dict(tensors) == {"weight": weight, "bias": weight[:1]}


def _is_embedding(tensors: Mapping[str, tuple[int, ...]], input_size: int) -> bool:
    weight = tensors.get("weight", ())
    return set(tensors) == {"weight"} and len(weight) == 2 and weight[1] == input_size


def _read_parameters(
    file: TensorFile, prefix: str, recurrent: RecurrentLayers, roles: _Roles, notes: list[str]
) -> dict[str, NDArray[np.float32]]:
    """Read the tensors under our names; ``embedding.weight`` is renamed later."""
    names: dict[str, str] = {}
    if roles.embedding is not None:
        names["embedding.weight"] = _joined(roles.embedding, "weight")
    leaves = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    if recurrent.projection_size:
        leaves.append("weight_hr")
    for k in range(len(recurrent.sizes) - 1):
        for name in leaves:
            names[f"{name}_l{k}"] = f"{prefix}{name}_l{k}"
    if roles.head is not None:
        names["head.weight"] = _joined(roles.head, "weight")
        names["head.bias"] = _joined(roles.head, "bias")
    parameters: dict[str, NDArray[np.float32]] = {}
    converted = set()
    for name, stored_name in names.items():
        stored = file.tensors.get(stored_name)
        if stored is None:  # bias=False: adding zero changes nothing
            num_rows = parameters[name.replace("bias", "weight")].shape[0]
            parameters[name] = np.zeros(num_rows, np.float32)
            continue
        if stored.dtype not in _FLOATS:
            raise ModelFileError(
                f"{file.path}: tensor {stored_name!r} is {stored.dtype}; expected one of "
                f"{', '.join(_FLOATS)} (quantised models cannot be imported)"
            )
        if stored.dtype != "F32":
            converted.add(stored.dtype)
        with np.errstate(over="ignore"):  # float64 beyond float32: Model refuses the Inf, by name
            parameters[name] = stored.array().astype(np.float32)
    if converted:
        notes.append(
            f"converted from {' and '.join(sorted(converted))} to F32"
            + (", which rounds" if "F64" in converted else "")
        )
    return parameters


def _option(module: str | None) -> str:
    return "none" if module is None else repr(module)


def _joined(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _make_spec(
    parameters: Mapping[str, NDArray[np.float32]],
    recurrent: RecurrentLayers,
    roles: _Roles,
    options: TorchOptions,
) -> ModelSpec:
    sizes = recurrent.sizes
    layer = LayerSpec(
        recurrent.cell, recurrent.hidden_size, projection_size=recurrent.projection_size
    )
    if roles.embedding is not None:
        num_categories, embedding_size = parameters["embedding.weight"].shape
        (name,) = _names(options.inputs, 1, "input", "--inputs", ["token"])
        inputs = [
            InputSpec(
                name, kind="token", num_categories=num_categories, embedding_size=embedding_size
            )
        ]
    else:
        default = [f"x{i}" for i in range(sizes[0])]
        names = _names(options.inputs, sizes[0], "input", "--inputs", default)
        inputs = [InputSpec(name) for name in names]
    num_outputs = sizes[-1] if roles.head is None else parameters["head.weight"].shape[0]
    default = [f"y{o}" for o in range(num_outputs)]
    names = _names(options.outputs, num_outputs, "output", "--outputs", default)
    return ModelSpec(
        inputs=tuple(inputs),
        layers=(layer,) * (len(sizes) - 1),
        outputs=tuple(OutputSpec(name) for name in names),
        head=None if roles.head is None else HeadSpec(options.activation),
        training={"imported_from": "PyTorch state dict"},
    )


def _names(
    given: Sequence[str] | None, count: int, what: str, option: str, default: Sequence[str]
) -> Sequence[str]:
    if given is None:
        return default
    if len(given) != count:
        raise ModelError(
            f"{option} names {len(given)} {what}s ({', '.join(given)}); the model has {count}"
        )
    return given


def _shortened(names: Sequence[str], at_most: int = 8) -> str:
    shown = ", ".join(names[:at_most])
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown
