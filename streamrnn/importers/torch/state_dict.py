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

from streamrnn.errors import ModelError, ModelFileError, listed
from streamrnn.importers.build.model import build_model
from streamrnn.importers.network import ImportedModel, Names, Network, note_on_first_state
from streamrnn.importers.torch.chain import Chain, Item
from streamrnn.importers.torch.first_state import first_states, like_first_states
from streamrnn.importers.torch.items import (
    activation_item,
    convolution_item,
    given_items,
    norms_of,
    with_norms,
)
from streamrnn.importers.torch.names import WRAPPERS, refuse_parametrized, unwrapped, with_tied
from streamrnn.importers.torch.options import TorchOptions, names_of
from streamrnn.importers.torch.recurrent import (
    RecurrentModule,
    chained,
    find_modules,
    numbered_order,
    read_module,
)
from streamrnn.importers.torch.roles import Wanted, choose_roles
from streamrnn.model.file import METADATA_KEY
from streamrnn.model.tensor_file import TensorFile, read_tensor_file

__all__ = ["import_state_dict", "import_torch"]


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
    items = _given(file, options) if options.layers else _found(file, options, notes)
    order = [item.module for item in items if item.module is not None]
    chain = Chain(file, _nonlinearity(file, order, options, notes), notes)
    names = names_of(options.first_state)
    chain.extend(items, {} if names in (None, ("zeros",)) else first_states(chain, names, order))
    if options.skip is not None:
        chain.add_skip(options.skip)
    if options.layers:
        _note_left_out(chain, order, options)
    network = Network(file.path, source, chain.layers, [], notes, holds_graph=False)
    network.num_inputs = chain.num_inputs
    return build_model(network, Names(options.inputs, options.outputs))


# --- what stands where -------------------------------------------------------------------------


def _given(file: TensorFile, options: TorchOptions) -> list[Item]:
    """Return what ``--layers`` says; nothing else may say it again."""
    others = (
        *("prefix", "order", "between", "causal_conv", "before", "before_activation"),
        *("head", "head_input", "embedding", "activation"),
    )
    default = TorchOptions()
    given = [name for name in others if getattr(options, name) != getattr(default, name)]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ModelError(f"{file.path}: --layers says everything; leave out {named}")
    items = given_items(file, options.layers or ())
    if not any(item.module is not None for item in items):
        raise ModelFileError(
            f"{file.path}: --layers names no recurrent module; there is "
            f"{listed([prefix.rstrip('.') or '(no name)' for prefix in find_modules(file)])}"
        )
    return items


def _note_left_out(chain: Chain, order: Sequence[RecurrentModule], options: TorchOptions) -> None:
    """Name the tensors that ``--layers`` leaves out; a first state must be spoken of."""
    left = [name for name in chain.file.tensors if name not in chain.used]
    left = _without_first_state(chain.file, left, order, options, chain.notes)
    if left:
        chain.notes.append(f"left out: {listed(left)}")


def _found(file: TensorFile, options: TorchOptions, notes: list[str]) -> list[Item]:
    """Find what stands where by the tensors' names and shapes, and what the options say."""
    order = _choose_order(file, options, notes)
    taken = {name for module in order for name in find_modules(file)[module.prefix]}
    first: list[Item] = []
    if options.causal_conv is not None:
        first.append(convolution_item(file, options.causal_conv))
    between = _activations(file, options.between, len(order) - 1, "--between")
    head_input = activation_item(file, options.head_input)
    named = [*first, *between, head_input]
    for texts in (options.before_activation, options.activation):
        named += [activation_item(file, text) for text in names_of(texts) or ()]
    modules = {item.name for item in first} | {item.argument for item in named if item.argument}
    others = [
        name
        for name in file.tensors
        if name not in taken and name.rpartition(".")[0] not in modules
    ]
    others = _without_first_state(file, others, order, options, notes)
    norms = {} if options.prefix is not None else norms_of(file, others)
    roles = choose_roles(
        file,
        [name for name in others if name.rpartition(".")[0] not in norms],
        (order[0].sizes[0], order[-1].sizes[-1]),
        Wanted(names_of(options.embedding), names_of(options.before), names_of(options.head)),
        may_leave_out=options.prefix is not None,
    )
    if roles.unused:
        notes.append(f"left out: {listed(roles.unused)}")
    items = [*first]
    if roles.embedding is not None:
        items.append(Item("embedding", roles.embedding))
    items += _linear(file, roles.before, options.before_activation, "--before-activation")
    for module, activation in itertools.zip_longest(order, between):
        items.append(Item("recurrent", module.prefix.rstrip("."), module=module))
        items += [] if activation is None else [activation]
    items.append(head_input)
    items += _head(file, roles.head, options)
    items = [item for item in items if (item.kind, item.name) != ("activation", "identity")]
    return with_norms(file, items, norms) if norms else items


def _activations(
    file: TensorFile, given: str | Sequence[str] | None, count: int, option: str
) -> list[Item]:
    names = names_of(given)
    if names is None:
        return []
    if len(names) != count:
        raise ModelFileError(
            f"{file.path}: {option} names {len(names)} activations ({listed(names)}); there is "
            f"room for {count} of them"
        )
    return [activation_item(file, name) for name in names]


def _head(file: TensorFile, names: Sequence[str], options: TorchOptions) -> list[Item]:
    activation = options.activation
    if activation in ("identity", ["identity"], ("identity",)) and len(names) <= 1:
        activation = ("identity",) * len(names)
    if not names and (given := names_of(activation)):
        raise ModelError(
            f"{file.path} has no linear layer that --activation {','.join(given)} could follow; "
            "leave it out"
        )
    return _linear(file, names, activation, "--activation")


def _linear(
    file: TensorFile, names: Sequence[str], activations: str | Sequence[str] | None, option: str
) -> list[Item]:
    """Return linear layers with what follows each of them."""
    given = names_of(activations) or ()
    if len(given) != len(names):
        kinds = ",".join(["relu"] * (len(names) - 1) + ["identity"])
        raise ModelFileError(
            f"{file.path}: a state dict does not say what follows each of the linear layers "
            f"{', '.join(names) or '(there is none)'}: say it with {option} {kinds}, or whatever "
            f"it is ({len(names)} of identity, relu, tanh, ...), and prove it with --check"
        )
    items = []
    for name, activation in zip(names, given, strict=True):
        items += [Item("linear", name), activation_item(file, activation)]
    return items


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
    """Take out the tensors of a trained first state; it must be spoken of."""
    states = like_first_states(file, others, order)
    names = names_of(options.first_state) or ()
    if not options.zero_state:
        unnamed = [name for name in states if not _ends(name, names)]
        if unnamed:
            unnamed.sort(key=lambda name: "h" not in name.rpartition(".")[2])  # h0, and then c0
            raise ModelFileError(
                f"{file.path}: {listed(unnamed)} "
                + ("look" if len(unnamed) > 1 else "looks")
                + " like a trained first state (h0, c0). Name the tensors with --first-state "
                f"{','.join(unnamed[:2])}, h0 and then c0, to begin every stream with them; or "
                "leave them out with --first-state zeros: then the first outputs of every stream "
                "differ from the original's, until the network has forgotten its start"
            )
    elif states:
        notes.append(note_on_first_state(listed(states)))
    return [name for name in others if name not in states and not _ends(name, names)]


def _ends(name: str, names: Sequence[str]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in names)


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
