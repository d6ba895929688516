"""What stands where in a state dict's network: what the caller says, and where norms fit."""

from __future__ import annotations

from collections.abc import Sequence

from streamrnn.errors import ModelFileError, listed
from streamrnn.importers.torch.chain import Item, joined_name, kind_of, modules_of
from streamrnn.importers.torch.recurrent import find_modules, read_module
from streamrnn.model.layers.base import LAYER_ACTIVATIONS
from streamrnn.model.tensor_file import TensorFile

__all__ = ["activation_item", "convolution_item", "given_items", "norms_of", "with_norms"]

_MAX_SHOWN = 6


def given_items(file: TensorFile, texts: Sequence[str]) -> list[Item]:
    """Read ``--layers``: modules and activations in the order of the data."""
    recurrent = {prefix.rstrip("."): prefix for prefix in find_modules(file)}
    others = {name: kind_of(shapes) for name, shapes in modules_of(file).items()}
    known = [*recurrent, *(name for name in others if others[name])]
    items: list[Item] = []
    for text in texts:
        name, _, argument = text.partition(":")
        found = [name] if name in known else []
        if not found and name in LAYER_ACTIVATIONS and text != "prelu":
            items.append(activation_item(file, text))
            continue
        found = found or [each for each in known if each.endswith(f".{name}")]
        if not found and "" in recurrent and name == read_module(file, recurrent[""]).cell:
            found = [""]
        if len(found) != 1:
            raise ModelFileError(
                f"{file.path}: --layers names {name!r}, which is "
                + (f"one of {listed(found)}" if found else "no module and no activation")
                + f"; modules are {listed([each or 'lstm, gru or rnn' for each in known])}"
            )
        if found[0] in recurrent:
            module = read_module(file, recurrent[found[0]])
            items.append(Item("recurrent", found[0], module=module))
        else:
            kind = others[found[0]]
            is_first = not any(each.kind != "activation" for each in items)
            if kind == "linear" and is_first and argument == "embedding":
                kind = "embedding"
            elif argument and kind not in ("norm", "batch norm", "convolution"):
                raise ModelFileError(f"{file.path}: --layers: {name} takes nothing after a colon")
            items.append(Item(kind, found[0], argument))
    return items


def activation_item(file: TensorFile, text: str) -> Item:
    """Read an activation: its name, and after a colon a slope or the module of the slopes."""
    kind, _, argument = text.partition(":")
    if kind not in LAYER_ACTIVATIONS:
        raise ModelFileError(
            f"{file.path}: {kind[:60]!r} is no activation; known are {', '.join(LAYER_ACTIVATIONS)}"
        )
    if kind != "prelu":
        return Item("activation", kind, argument)
    slopes = [name for name, shapes in modules_of(file).items() if kind_of(shapes) == "slopes"]
    ends = [name for name in slopes if name == argument or name.endswith(f".{argument}")]
    if len(ends) != 1:
        raise ModelFileError(
            f"{file.path}: the slopes of a prelu are a module's: write prelu:NAME; "
            + (f"there is {listed(slopes)}" if slopes else "no module here has slopes")
        )
    return Item("activation", kind, ends[0])


def convolution_item(file: TensorFile, text: str) -> Item:
    """Read ``NAME[:DILATION[:GROUPS]]``."""
    name, _, argument = text.partition(":")
    known = [each for each, shapes in modules_of(file).items() if kind_of(shapes) == "convolution"]
    found = [each for each in known if each == name] or [
        each for each in known if each.endswith(f".{name}")
    ]
    if len(found) != 1:
        raise ModelFileError(
            f"{file.path}: --causal-conv names {name!r}; "
            + (f"convolutions over one axis are {listed(known)}" if known else "none is there")
        )
    return Item("convolution", found[0], argument)


def norms_of(file: TensorFile, others: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Find the normalisations among the modules of these tensors: kind and size of each."""
    names = {name.rpartition(".")[0] for name in others}
    found = {}
    for name, shapes in modules_of(file).items():
        kind = kind_of(shapes)
        if name in names and kind in ("norm", "batch norm"):
            found[name] = (kind, shapes["bias" if kind == "norm" else "running_mean"][0])
    return found


def with_norms(
    file: TensorFile, items: Sequence[Item], norms: dict[str, tuple[str, int]]
) -> list[Item]:
    """Put every normalisation where alone its size fits.

    Raises `ModelFileError` if there are several places, or none.
    """
    sizes = _sizes(file, items)
    places = {
        name: [k for k, each in enumerate(sizes) if each == size]
        for name, (_, size) in norms.items()
    }
    chosen = [tuple(each) for each in places.values()]
    if any(len(each) != 1 for each in chosen) or len(set(chosen)) < len(chosen):
        raise ModelFileError(_refusal(file, items, norms, places))
    placed = list(items)
    for name, (place,) in sorted(places.items(), key=lambda pair: -pair[1][0]):
        placed.insert(place, Item(norms[name][0], name))
    return placed


def _sizes(file: TensorFile, items: Sequence[Item]) -> list[int]:
    """Return the size of the values at every place between the items; 0 where none may stand."""
    sizes = [0]
    for item in items:
        takes, gives = 0, sizes[-1]
        if item.module is not None:
            takes, gives = item.module.sizes[0], item.module.sizes[-1]
        elif item.kind != "activation":
            shape = file.tensors[joined_name(item.name, "weight")].shape
            takes, gives = (0, shape[1]) if item.kind == "embedding" else (shape[1], shape[0])
        if len(sizes) == 1:
            sizes[0] = takes
        sizes.append(gives)
    return sizes


def _refusal(
    file: TensorFile,
    items: Sequence[Item],
    norms: dict[str, tuple[str, int]],
    places: dict[str, list[int]],
) -> str:
    named = ", ".join(f"{name} [{size}]" for name, (_, size) in norms.items())
    texts = [_text(item) for item in items]
    lines = []
    for name, fitting in places.items():
        lines += [
            "--layers " + ",".join([*texts[:place], name, *texts[place:]]) for place in fitting
        ]
        if not fitting:
            lines.append(f"{name} fits nowhere: {','.join(texts)}")
    more = ["..."] if len(lines) > _MAX_SHOWN else []
    return (
        f"{file.path}: {named}: normalisations whose place a state dict does not say; name "
        "everything in the order of the data, and prove it with --check: "
        + "; ".join([*lines[:_MAX_SHOWN], *more])
    )


def _text(item: Item) -> str:
    if item.kind == "embedding":
        return f"{item.name}:embedding"
    if item.module is not None:
        return item.name or item.module.cell
    return f"{item.name}:{item.argument}" if item.argument else item.name
