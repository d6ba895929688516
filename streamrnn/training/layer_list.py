"""The list of layers as it is written in a configuration: cells, sizes and feedback."""

from __future__ import annotations

import re
from dataclasses import replace

from streamrnn.errors import TrainingError, suggestion
from streamrnn.model.checks import shown
from streamrnn.model.graph import HEAD
from streamrnn.model.layers.base import BEFORE, INPUT
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = ["parse_layers"]


def parse_layers(layers: tuple[str, ...], feedback: tuple[str, ...] = ()) -> tuple[LayerSpec, ...]:
    """Parse a stack such as ``("lstm:32", "gru:16")``, from the input to the output.

    ``feedback`` names what a layer reads beside: of ``head`` or a later layer the output of the
    step before. ``("head", "layer2")`` go into the first layer, ``("head:layer2",)`` into the
    second.

    Raises `TrainingError` if one cannot be read.
    """
    stack = []
    for text in layers:
        cell, _, size = text.strip().partition(":")
        if cell not in CELLS:
            raise TrainingError(
                f"layer {shown(text)}: unknown cell {shown(cell)}{suggestion(cell, CELLS)}; "
                f"known are {', '.join(CELLS)}"
            )
        if not re.fullmatch("0*[1-9][0-9]{0,8}", size):
            raise TrainingError(f"layer {shown(text)}: write cell and hidden size, such as lstm:32")
        stack.append(LayerSpec(cell, int(size)))
    if not stack:
        raise TrainingError("layers is empty; a network needs at least one, such as lstm:32")
    return _with_feedback(stack, feedback)


def _with_feedback(stack: list[LayerSpec], feedback: tuple[str, ...]) -> tuple[LayerSpec, ...]:
    """Name the layers that others read, and let those who get feedback read it."""
    names = [f"layer{k}" for k in range(1, len(stack) + 1)]
    sources = [*names, HEAD]
    reads: dict[int, tuple[str, ...]] = {}
    for text in feedback:
        source, _, target = text.strip().partition(":")
        target = target or names[0]
        if source not in sources or target not in names:
            wrong, known = (source, sources) if source not in sources else (target, names)
            raise TrainingError(
                f"feedback {shown(text)}: unknown {shown(wrong)}{suggestion(wrong, known)}; write "
                f"SOURCE or SOURCE:LAYER with {', '.join(known)}, such as head or layer2:layer1"
            )
        k = names.index(target)
        if sources.index(source) <= k:
            raise TrainingError(
                f"feedback {shown(text)}: it goes from a later layer or the head to an earlier "
                "one; a layer reads its own output of the step before in any case"
            )
        read = source + BEFORE
        if read in reads.setdefault(k, ()):
            raise TrainingError(f"feedback {shown(text)} stands there twice")
        reads[k] += (read,)
    used = {read.removesuffix(BEFORE) for more in reads.values() for read in more}
    used |= {names[k - 1] for k in reads if k}
    return tuple(
        replace(
            layer,
            name=names[k] if names[k] in used else "",
            reads=(names[k - 1] if k else INPUT, *reads[k]) if k in reads else (),
        )
        for k, layer in enumerate(stack)
    )
