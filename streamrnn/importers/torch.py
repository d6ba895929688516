"""Import a PyTorch state dict that was saved as safetensors. No PyTorch is needed.

A state dict holds names and shapes, not code. Kind and sizes of the recurrent layers follow from
the shapes: ``weight_hh`` has G*H rows and H columns, and G is 1 for ``nn.RNN``, 3 for ``nn.GRU``,
4 for ``nn.LSTM``. What comes before and after is found by asking that every tensor has a role:
a model that would leave something out is refused unless the caller chooses the part. What shapes
cannot say has an option, and nothing is proved before outputs were compared.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

from streamrnn.errors import ModelError, ModelFileError, listed
from streamrnn.importers.build.model import build_model
from streamrnn.importers.network import (
    Activation,
    Dense,
    Embedding,
    ImportedModel,
    Layer,
    Names,
    Network,
    note_on_first_state,
    zeros,
)
from streamrnn.importers.torch_layers import (
    RecurrentModule,
    chained,
    find_modules,
    layers_of,
    numbered_order,
    read_module,
)
from streamrnn.importers.torch_names import (
    WRAPPERS,
    refuse_parametrized,
    unwrapped,
    with_tied,
)
from streamrnn.importers.torch_roles import Roles, Wanted, choose_roles
from streamrnn.model.file import METADATA_KEY
from streamrnn.model.tensor_file import TensorFile, read_tensor_file

__all__ = ["ImportedModel", "TorchOptions", "import_state_dict", "import_torch"]

_FLOATS = ("F32", "F16", "BF16", "F64")
_MAX_FIRST_STATE_AXES = 4


@dataclass(frozen=True)
class TorchOptions:
    """Options for what a state dict does not hold.

    Attributes
    ----------
    prefix : str or None
        Names of the recurrent layers up to ``weight_ih_l0``; None takes all. Given, tensors that
        belong to no part of the model are left out.
    order : sequence of str or None
        Prefixes of several recurrent modules in the order of the data; None finds it.
    before : sequence of str or None
        Names of linear layers before the recurrent ones, ``none`` for none; None finds them.
    before_activation : sequence of str or None
        What follows each of them.
    head : str, sequence of str or None
        Names of the linear layers after them, ``none`` for no head; None finds them.
    head_input : str
        Activation between the recurrent layers and the linear ones.
    embedding : str or None
        Name of the embedding, ``none`` for no embedding; None finds it.
    activation : str or sequence of str
        Activation after each of the linear layers after the recurrent ones.
    nonlinearity : str or None
        ``tanh`` or ``relu`` for ``nn.RNN``; None is tanh, PyTorch's default.
    first_state : str or None
        ``zeros`` leaves a trained first state out.
    inputs, outputs : sequence of str or None
        Names; None numbers them: ``x0``, ``x1``, ... and ``y0``, ``y1``, ...
    """

    prefix: str | None = None
    order: Sequence[str] | None = None
    before: str | Sequence[str] | None = None
    before_activation: str | Sequence[str] | None = None
    head: str | Sequence[str] | None = None
    head_input: str = "identity"
    embedding: str | None = None
    activation: str | Sequence[str] = "identity"
    nonlinearity: str | None = None
    first_state: str | None = None
    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None


def import_torch(
    path: str | os.PathLike[str], options: TorchOptions | None = None
) -> ImportedModel:
    """Read a PyTorch state dict with ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or their cells.

    Parameters
    ----------
    path : str or path
        A safetensors file, as ``safetensors.torch.save_file(model.state_dict(), path)`` or
        ``save_model(model, path)`` writes.
    options : TorchOptions or None
        What the file cannot tell; None for the defaults.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If the file is damaged, holds no recurrent network, or one that cannot be streamed, can be
        read in several ways, or has tensors without a role. The message names the option.
    ModelError
        If an option does not fit the model, or a weight is not finite.
    """
    file = read_tensor_file(path)
    if METADATA_KEY in file.metadata:
        raise ModelFileError(f"{file.path} is a model of StreamRNN already; use it as it is")
    return import_state_dict(file, options or TorchOptions())


def import_state_dict(
    file: TensorFile, options: TorchOptions, source: str = "PyTorch state dict"
) -> ImportedModel:
    """Import a state dict that was read already; see `import_torch`."""
    notes: list[str] = []
    file = with_tied(unwrapped(file), notes)
    refuse_parametrized(file)
    order = _choose_order(file, options, notes)
    recurrent = {name for module in order for name in find_modules(file)[module.prefix]}
    others = [name for name in file.tensors if name not in recurrent]
    others = _without_first_state(file, others, order, options, notes)
    roles = choose_roles(
        file,
        others,
        (order[0].sizes[0], order[-1].sizes[-1]),
        Wanted(_listed(options.embedding), _listed(options.before), _listed(options.head)),
        may_leave_out=options.prefix is not None,
    )
    if roles.unused:
        notes.append(f"left out: {listed(roles.unused)}")
    _check_dtypes(file, recurrent | _tensors_of(file, roles), notes)
    layers = _layers(file, order, roles, options, notes)
    network = Network(file.path, source, layers, [], notes, holds_graph=False)
    return build_model(network, Names(options.inputs, options.outputs))


# --- the recurrent modules ---------------------------------------------------------------------


def _choose_order(
    file: TensorFile, options: TorchOptions, notes: list[str]
) -> tuple[RecurrentModule, ...]:
    """Find the recurrent modules, and which comes first."""
    found = sorted(find_modules(file))
    if not found:
        raise ModelFileError(
            f"{file.path} holds no nn.RNN, nn.GRU or nn.LSTM, nor their cells: no tensor is named "
            f"like '...weight_ih_l0' or '...weight_ih'. Its tensors: {listed(file.tensors)}"
        )
    if options.prefix is not None:
        return (read_module(file, _resolved(file, found, options.prefix)),)
    if options.order is not None:
        order = tuple(read_module(file, _resolved(file, found, name)) for name in options.order)
        if len({module.prefix for module in order}) < len(order) or not order:
            raise ModelFileError(f"{file.path}: --order names a module twice, or none")
        for a, b in itertools.pairwise(order):
            if a.sizes[-1] != b.sizes[0]:
                raise ModelFileError(
                    f"{file.path}: {b.prefix!r} takes {b.sizes[0]} values, but {a.prefix!r} gives "
                    f"{a.sizes[-1]}; --order is another one, or something stands between them"
                )
        return order
    modules = [read_module(file, prefix) for prefix in found]
    if len(modules) == 1:
        return (modules[0],)
    orders = chained(modules)
    by_number = numbered_order(modules)
    choices = " or ".join(f"--prefix {prefix!r}" for prefix in found)
    if by_number is not None:
        order, why = by_number, "by their numbers"
    elif len(orders) == 1:
        order, why = orders[0], "the only order that their sizes allow"
    elif orders:
        raise ModelFileError(
            f"{file.path} holds {len(modules)} recurrent networks that fit one after the other in "
            f"several orders; choose with --order {','.join(found)} (or another order), or take "
            f"one alone with {choices}"
        )
    else:
        raise ModelFileError(
            f"{file.path} holds {len(modules)} recurrent networks whose sizes make no chain; "
            f"choose one with {choices}"
        )
    names = " -> ".join(module.prefix.rstrip(".") or "(no name)" for module in order)
    notes.append(f"read {names}, one after the other: {why} (--order for another)")
    return order


def _resolved(file: TensorFile, found: Sequence[str], wanted: str) -> str:
    """Find the prefix that a name, or the end of a name, means."""
    stems = {prefix: prefix.rstrip(".") for prefix in found}
    name = WRAPPERS.sub("", wanted).rstrip(".")
    exact = [prefix for prefix in found if prefix == wanted or stems[prefix] == name]
    ends = [prefix for prefix in found if name and stems[prefix].endswith(f".{name}")]
    for matches in (exact, ends):
        if len(matches) == 1:
            return matches[0]
    raise ModelFileError(
        f"{file.path} holds no recurrent network under the prefix {wanted!r}; there is "
        + " and ".join(repr(prefix) for prefix in found)
    )


def _without_first_state(
    file: TensorFile,
    others: list[str],
    order: Sequence[RecurrentModule],
    options: TorchOptions,
    notes: list[str],
) -> list[str]:
    """Take out what looks like a trained first state, or refuse it by name."""
    counts = {
        (num_layers * size, size)
        for module in order
        for num_layers in (module.num_layers, 1)
        for size in (module.sizes[-1], module.hidden_size)
    }
    states = []
    for name in others:
        shape = file.tensors[name].shape
        leaf = name.rpartition(".")[2]
        if (
            leaf in ("weight", "bias", "running_mean", "running_var")
            or not 1 <= len(shape) <= _MAX_FIRST_STATE_AXES
        ):
            continue
        num_values = 1
        for axis in shape:
            num_values *= axis
        if (num_values, shape[-1]) in counts:
            states.append(name)
    if not states:
        return others
    if options.first_state != "zeros":
        raise ModelFileError(
            f"{file.path}: {listed(states)} "
            + ("look" if len(states) > 1 else "looks")
            + " like a trained first state (h0, c0): streams of a model begin with zeros, so it "
            "cannot be held. --first-state zeros leaves it out: then the first outputs of every "
            "stream differ from the original's, until the network has forgotten its start"
        )
    notes.append(note_on_first_state(listed(states)))
    return [name for name in others if name not in states]


# --- layers ------------------------------------------------------------------------------------


def _listed(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    return () if names == ("none",) else names


def _tensors_of(file: TensorFile, roles: Roles) -> set[str]:
    names = {*roles.before, *roles.head}
    if roles.embedding is not None:
        names.add(roles.embedding)
    return {name for name in file.tensors if name.rpartition(".")[0] in names}


def _check_dtypes(file: TensorFile, names: set[str], notes: list[str]) -> None:
    converted = set()
    for name in sorted(names):
        dtype = file.tensors[name].dtype
        if dtype not in _FLOATS:
            raise ModelFileError(
                f"{file.path}: tensor {name!r} is {dtype}; expected one of "
                f"{', '.join(_FLOATS)} (quantised models cannot be imported)"
            )
        if dtype != "F32":
            converted.add(dtype)
    if converted:
        notes.append(
            f"converted from {' and '.join(sorted(converted))} to F32"
            + (", which rounds" if "F64" in converted else "")
        )


def _layers(
    file: TensorFile,
    order: Sequence[RecurrentModule],
    roles: Roles,
    options: TorchOptions,
    notes: list[str],
) -> list[Layer]:
    """Put everything into the order of the data."""
    layers: list[Layer] = []
    if roles.embedding is not None:
        name = _joined(roles.embedding, "weight")
        weight = file.tensors[name].array()
        layers.append(Embedding(roles.embedding, weight, {"weight": name}))
    layers += _dense(file, roles.before, options.before_activation, "--before-activation")
    nonlinearity = _nonlinearity(file, order, options, notes)
    for module in order:
        layers += layers_of(module, file.tensors, nonlinearity)
    if options.head_input != "identity":
        layers.append(Activation(f"{options.head_input} before the head", options.head_input))
    activation = options.activation
    if activation in ("identity", ["identity"], ("identity",)) and len(roles.head) <= 1:
        activation = ("identity",) * len(roles.head)
    if not roles.head and (given := _listed(activation)):
        raise ModelError(
            f"{file.path} has no linear layer that --activation {','.join(given)} could follow; "
            "leave it out"
        )
    return layers + _dense(file, roles.head, activation, "--activation")


def _dense(
    file: TensorFile,
    names: Sequence[str],
    activations: str | Sequence[str] | None,
    option: str,
) -> list[Layer]:
    given = _listed(activations) or ()
    if len(given) != len(names):
        kinds = ",".join(["relu"] * (len(names) - 1) + ["identity"])
        raise ModelFileError(
            f"{file.path}: a state dict does not say what follows each of the linear layers "
            f"{', '.join(names) or '(there is none)'}: say it with {option} {kinds}, or whatever "
            f"it is ({len(names)} of identity, relu, tanh, ...), and prove it with --check"
        )
    layers: list[Layer] = []
    for name, activation in zip(names, given, strict=True):
        stored = _joined(name, "weight")
        weight = file.tensors[stored].array()
        origins, bias = {"weight": stored}, zeros(weight.shape[0])
        if (other := _joined(name, "bias")) in file.tensors:
            bias, origins["bias"] = file.tensors[other].array(), other
        layers.append(Dense(name or "(no name)", weight, bias, origins, activation))
    return layers


def _nonlinearity(
    file: TensorFile,
    order: Sequence[RecurrentModule],
    options: TorchOptions,
    notes: list[str],
) -> str:
    if any(module.cell == "rnn" for module in order):
        if options.nonlinearity is None:
            notes.append(
                "the file does not tell the nonlinearity of nn.RNN: took tanh, PyTorch's default "
                "(--nonlinearity relu for the other)"
            )
        return options.nonlinearity or "tanh"
    if options.nonlinearity is not None:
        raise ModelError(
            f"{file.path} holds {order[0].kind}, whose nonlinearity is fixed; leave "
            "--nonlinearity out"
        )
    return "tanh"


def _joined(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf
