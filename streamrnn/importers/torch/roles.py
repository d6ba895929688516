"""What the tensors beside the recurrent ones of a PyTorch state dict are for.

Shapes alone say it, so there may be several ways to read a file: then the caller chooses. A way
that leaves a tensor out is no way, unless the caller says that it is another network's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamrnn.errors import ModelFileError, listed
from streamrnn.model.tensor_file import TensorFile

__all__ = ["Roles", "Wanted", "choose_roles", "describe_leftovers"]

_MAX_SEARCHED = 4  # modules: more are not searched for chains
_MAX_SHOWN = 6

Shapes = dict[str, tuple[int, ...]]  # of one module, by the last part of the tensors' names


@dataclass(frozen=True)
class Roles:
    """Names of modules, which end before ``.weight``, in the order of the data."""

    embedding: str | None
    before: tuple[str, ...]  # linear layers before the recurrent ones
    head: tuple[str, ...]  # linear layers after them
    unused: tuple[str, ...] = ()  # tensors

    def options(self) -> str:
        """Write it as the command's options."""
        parts = [f"--embedding {_quoted(self.embedding)}"]
        if self.before:
            parts.append(f"--before {','.join(map(repr, self.before))}")
        heads = ",".join(map(repr, self.head)) if self.head else "none"
        return " ".join([*parts, f"--head {heads}"])


@dataclass(frozen=True)
class Wanted:
    """What the caller chose: None for what is to be found, an empty tuple for none."""

    embedding: tuple[str, ...] | None = None
    before: tuple[str, ...] | None = None
    head: tuple[str, ...] | None = None


def choose_roles(
    file: TensorFile,
    others: Sequence[str],
    sizes: tuple[int, int],
    wanted: Wanted,
    *,
    may_leave_out: bool,
) -> Roles:
    """Give every other tensor a role.

    Parameters
    ----------
    file : TensorFile
        The state dict.
    others : sequence of str
        Its tensors that are not the recurrent ones.
    sizes : (int, int)
        What the recurrent layers take and give.
    wanted : Wanted
        The caller's choice; names may be ends of names.
    may_leave_out : bool
        Whether the caller knows that some tensors are of other networks.

    Returns
    -------
    Roles

    Raises
    ------
    ModelFileError
        If there is no way, or more than one. It lists them, or all that has no role.
    """
    modules: dict[str, Shapes] = {}
    for name in others:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = file.tensors[name].shape
    chosen = (
        _resolved(file, modules, wanted.embedding, "embedding"),
        _resolved(file, modules, wanted.before, "before"),
        _resolved(file, modules, wanted.head, "head"),
    )
    ways = []
    for embedding, before, head in _ways(modules, sizes, *chosen):
        taken = {*before, *head, *embedding}
        unused = tuple(name for name in others if name.rpartition(".")[0] not in taken)
        ways.append(Roles(embedding[0] if embedding else None, before, head, unused))
    if not ways:
        raise ModelFileError(f"{file.path}: {_why_none(modules, sizes)}")
    fewest = min(len(way.unused) for way in ways)
    best = [way for way in ways if len(way.unused) == fewest]
    if best[0].unused and not may_leave_out:
        raise ModelFileError(
            f"{file.path} holds tensors that no part of a model is made of:"
            + "".join(f"\n  - {line}" for line in describe_leftovers(file, best[0].unused))
            + "\nIf they belong here, name everything in the order of the data with --layers (or "
            "--causal-conv NAME); if to other networks, name this one with --prefix; and prove the "
            "result with --check"
        )
    if len(best) > 1:
        raise ModelFileError(
            f"{file.path}: its tensors can be read in {len(best)} ways, and a state dict does not "
            "say which is right; choose one, and prove it with --check: "
            + "; ".join(way.options() for way in best[:_MAX_SHOWN])
            + ("; ..." if len(best) > _MAX_SHOWN else "")
        )
    return best[0]


def _ways(
    modules: dict[str, Shapes],
    sizes: tuple[int, int],
    embedding: tuple[str, ...] | None,
    before: tuple[str, ...] | None,
    head: tuple[str, ...] | None,
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    """List (embedding, before, head) whose sizes fit, no module twice unless both are chosen."""
    linear = {name: shapes["weight"] for name, shapes in modules.items() if _is_linear(shapes)}
    if len(linear) > _MAX_SEARCHED and (before is None or head is None):
        linear = {  # too many to search for chains: single layers alone
            name: shape for name, shape in linear.items() if _fits_alone(shape, sizes)
        }
        depth = 1
    else:
        depth = len(linear)
    # A head with as many outputs as there are inputs could stand before them too, and make the
    # inputs so few: nobody does that, but all predict their inputs. A square one may be both.
    plausible = {name for name, s in linear.items() if s[1] != sizes[1] or s[1] == sizes[0]}
    befores = [chain for chain in _chains(linear, depth) if not chain or chain[0] in plausible]
    befores = befores if before is None else [before]
    heads = [head] if head is not None else list(_chains(linear, depth))
    heads = [chain for chain in heads if not chain or _ends(linear, chain)[0] == sizes[1]]
    befores = [chain for chain in befores if not chain or _ends(linear, chain)[1] == sizes[0]]
    for first, last in itertools.product(befores, heads):
        if set(first) & set(last):
            continue
        size = _ends(linear, first)[0] if first else sizes[0]
        candidates: list[tuple[str, ...]] = [()]
        if embedding is not None:
            candidates = [embedding]
        else:
            candidates += [(name,) for name, shapes in modules.items() if _is_embedding(shapes)]
        for one in candidates:
            fits = not one or modules[one[0]]["weight"][1] == size
            is_free = not one or one[0] not in {*first, *last}
            # A tied decoder: both roles were chosen by name.
            if fits and (is_free or (embedding is not None and head is not None)):
                yield one, first, last


def _chains(linear: Shapes, depth: int) -> Iterator[tuple[str, ...]]:
    yield ()
    for length in range(1, depth + 1):
        for chain in itertools.permutations(linear, length):
            pairs = itertools.pairwise(chain)
            if all(linear[a][0] == linear[b][1] for a, b in pairs):
                yield chain


def _ends(linear: Shapes, chain: Sequence[str]) -> tuple[int, int]:
    """Return what a chain takes and what it gives; -1 if it does not hold together."""
    if any(linear[a][0] != linear[b][1] for a, b in itertools.pairwise(chain)):
        return -1, -1
    return linear[chain[0]][1], linear[chain[-1]][0]


def _fits_alone(shape: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    return shape[0] == sizes[0] or shape[1] == sizes[1]


def _is_linear(shapes: Shapes) -> bool:
    weight = shapes.get("weight", ())
    if len(weight) != 2 or 0 in weight:
        return False
    return set(shapes) == {"weight"} or shapes == {"weight": weight, "bias": weight[:1]}


def _is_embedding(shapes: Shapes) -> bool:
    return set(shapes) == {"weight"} and len(shapes["weight"]) == 2 and 0 not in shapes["weight"]


def _is_matrix(shapes: Shapes) -> bool:
    """Whether it holds a matrix: an embedding may be tied to a linear layer, which has a bias."""
    return len(shapes.get("weight", ())) == 2 and 0 not in shapes["weight"]


def _resolved(
    file: TensorFile, modules: dict[str, Shapes], part: tuple[str, ...] | None, role: str
) -> tuple[str, ...] | None:
    """Find the modules that names, or the ends of names, mean; check that they can be it."""
    if part is None:
        return None
    can_be = _is_matrix if role == "embedding" else _is_linear
    fitting = [name for name, shapes in modules.items() if can_be(shapes)]
    names = []
    for name in part:
        ends = [known for known in fitting if known == name or known.endswith(f".{name}")]
        exact = [known for known in ends if known == name]
        found = exact or ends
        if len(found) != 1:
            raise ModelFileError(
                f"{file.path}: {name!r} cannot be the {role}; "
                + (f"{' or '.join(map(repr, fitting))} can" if fitting else "no layer here can")
                + f", or none (--{role} none)"
            )
        names.append(found[0])
    return tuple(names)


def _why_none(modules: dict[str, Shapes], sizes: tuple[int, int]) -> str:
    named = ", ".join(
        f"{name} {list(modules[name].get('weight', ()))}"
        for name in modules
        if "weight" in modules[name]
    )
    return (
        f"the layers chosen do not fit: the recurrent ones take {sizes[0]} values and give "
        f"{sizes[1]}; there is {named or 'no other layer'}"
    )


def _quoted(module: str | None) -> str:
    return "none" if module is None else repr(module)


def describe_leftovers(file: TensorFile, names: Sequence[str]) -> list[str]:
    """Say of every tensor without a role what it seems to be: one line a module."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    lines = []
    for members in groups.values():
        text = listed([f"{name} {list(file.tensors[name].shape)}" for name in members])
        lines.append(f"{text}{_guess(file, members)}")
    return lines


def _guess(file: TensorFile, names: Sequence[str]) -> str:
    leaves = {name.rpartition(".")[2] for name in names}
    weight = next((file.tensors[n].shape for n in names if n.rpartition(".")[2] == "weight"), ())
    if "running_mean" in leaves:
        return ": a batch normalisation"
    if len(weight) >= 3:
        return f": a convolution over {len(weight) - 2} axes"
    if leaves <= {"weight", "bias"} and len(weight) == 1:
        return ": a layer or batch normalisation, or a PReLU"
    if len(weight) == 2 and leaves <= {"weight", "bias"}:
        return ": a linear layer or an embedding whose sizes do not fit here"
    return ""
