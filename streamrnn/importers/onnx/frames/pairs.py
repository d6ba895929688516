"""Which output of a graph is which input at the next step: told, or by names, or by shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from streamrnn.errors import ModelError, listed
from streamrnn.importers.onnx.inputs import Graph, state_names, trace_moves
from streamrnn.importers.onnx.recurrent import RECURRENT

__all__ = ["pair_states"]

_MAX_STATES = 64
# Words of a name, and numbers: "lstm_h1_out", "stateN", "next.h.1".
_WORDS = re.compile(r"\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_WHEN = "in out input output next new updated prev previous old last past present init initial n"
_AFFIXES = frozenset(_WHEN.split())
_ALIASES = {"hn": "h", "cn": "c", "hin": "h", "cin": "c", "hout": "h", "cout": "c"}


def pair_states(
    graph: Graph, nodes: Sequence[Any], fixed: Mapping[str, float], told: Mapping[str, str]
) -> None:
    """Find the pairs of states that are no recurrent operator's: the graph itself pairs those.

    What was told is all of them. Else names decide; and shapes, where one pairing alone fits.
    """
    main = graph.file.model.graph
    trace_moves(graph, nodes)
    constants = {item.name for item in main.initializer} | set(fixed)
    inputs = [item for item in main.input if item.name not in constants]
    outputs = list(main.output)
    if told:
        _check_told(graph, inputs, outputs, told)
        graph.pairs, graph.paired_by, graph.is_told = dict(told), "as --state says", True
        return
    if not 1 < len(inputs) <= _MAX_STATES or not 1 < len(outputs) <= _MAX_STATES:
        return
    named = _by_names(inputs, outputs)
    begun = state_names(main, nodes, ())
    final = {
        name
        for node in nodes
        if node.op_type in RECURRENT
        for name in list(node.output)[1:]
        if name
    }
    rest_in = [item for item in inputs if item.name not in begun | named.keys()]
    rest_out = [
        item
        for item in outputs
        if item.name not in named.values() and not graph.roots.get(item.name, {item.name}) <= final
    ]
    own = [name for name in named if name not in begun]
    if not rest_in and len(own) == 1:  # the data and the answer have one name
        del named[own[0]]
    elif not rest_in or (
        # The first input is the data, as a rule; and a state may be among the others.
        inputs[0].name in own and any(_are_alike(a, b) for a in rest_in for b in rest_out)
    ):
        graph.unclear = _question(inputs, outputs)
        return
    graph.pairs, graph.paired_by = named, "by their names"
    if 1 < len(rest_in) == len(rest_out):
        shaped, is_unclear = _by_shapes(rest_in, rest_out)
        if shaped:
            graph.pairs = named | shaped
            graph.paired_by = "by their names and shapes" if named else "by their shapes"
        elif is_unclear:
            graph.unclear = _question(rest_in, rest_out)


def _check_told(
    graph: Graph, inputs: Sequence[Any], outputs: Sequence[Any], told: Mapping[str, str]
) -> None:
    given, made = ({item.name: item for item in each} for each in (inputs, outputs))
    for name, output in told.items():
        if name not in given or output not in made:
            raise ModelError(
                f"{graph.file.path}: --state {name}={output} names no input and output; it has "
                f"{listed(list(given))} and {listed(list(made))}"
            )
        if not _are_alike(given[name], made[output]):
            raise ModelError(
                f"{graph.file.path}: --state {name}={output}: they differ in type or shape"
            )
    if len(set(told.values())) < len(told) or len(told) == len(inputs):
        raise ModelError(
            f"{graph.file.path}: --state says {len(told)} states of {len(inputs)} inputs; one "
            "input is the data, and no output is two states"
        )


def _by_names(inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, str]:
    """Pair those whose names are the same without what says when they are."""
    given, made = ([_stem(item.name) for item in each] for each in (inputs, outputs))
    return {
        a.name: outputs[made.index(stem)].name
        for a, stem in zip(inputs, given, strict=True)
        if stem
        and given.count(stem) == made.count(stem) == 1
        and _are_alike(a, outputs[made.index(stem)])
    }


def _stem(name: str) -> tuple[str, ...]:
    words = [word.lower() for word in _WORDS.findall(name)]
    words = [_ALIASES.get(word, word) for word in words]
    words = [word for word in words if word not in _AFFIXES]
    # h0 and hn are what PyTorch calls the first and the last one.
    return tuple(words[:1] if words in (["h", "0"], ["c", "0"]) else words)


def _by_shapes(inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[dict[str, str], bool]:
    """Pair all inputs but one, the data; return also whether several pairings may fit."""
    alike = [[b.name for b in outputs if _are_alike(a, b)] for a in inputs]
    fits = [
        {a.name: names for k, (a, names) in enumerate(zip(inputs, alike, strict=True)) if k != data}
        for data in range(len(inputs))
    ]
    fits = [fit for fit in fits if all(fit.values())]
    pairs = {name: names[0] for name, names in fits[0].items()} if len(fits) == 1 else {}
    is_one = bool(pairs) and all(len(names) == 1 for names in fits[0].values())
    if is_one and len(set(pairs.values())) == len(pairs):
        return pairs, False
    return {}, bool(fits)


def _question(inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    return (
        f"neither names nor shapes tell which of its inputs "
        f"{listed([item.name for item in inputs])} are states, if any, and which of its outputs "
        f"{listed([item.name for item in outputs])} these are at the next step: say it with "
        "--state INPUT=OUTPUT, once for each state"
    )


def _are_alike(a: Any, b: Any) -> bool:
    """Whether two values have the same type and shape; an output need not say its own."""
    kind, other = a.type.tensor_type, b.type.tensor_type
    if kind.elem_type not in (1, 10, 11) or other.elem_type != kind.elem_type:
        return False
    if not other.HasField("shape"):
        return True
    sizes, wanted = (
        [axis.dim_param or axis.dim_value for axis in each.shape.dim] for each in (kind, other)
    )
    return sizes == wanted
