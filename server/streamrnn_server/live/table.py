"""The models of a running server: names, versions, aliases, and what records must fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamrnn.errors import StartError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn.model.spec import ModelSpec
from streamrnn.state.catalogue import Share, SwapRule
from streamrnn_client.protocol import ORIGINS
from streamrnn_server.config import family_of
from streamrnn_server.shard.checkpoint.packing import Templates
from streamrnn_server.shard.memory.kept_inputs import kept_bytes
from streamrnn_server.shard.model_memory import MAX_LOADED_ROW_BYTES
from streamrnn_server.shard.structs import SHARES, SwapPolicy
from streamrnn_server.storage.record_lookup import ServedModel

__all__ = ["SWAP_POLICIES", "ModelTable", "family_of"]

_TOO_NEW = " (has origins: it needs a newer client)"
SWAP_POLICIES = {
    "carry": SwapPolicy.CARRY,
    "reset": SwapPolicy.RESET,
    "replay": SwapPolicy.REPLAY,
}


class ModelTable:
    """What is served, by index: one that was unloaded keeps its own.

    It is changed by the thread of `streamrnn_server.control` alone.

    Parameters
    ----------
    models, programs, arithmetics : mapping of str
        What it begins with.
    capacity : int
        How many models there may ever be.
    history_of : callable
        Of a model the number of inputs that are kept of a stream.

    Attributes
    ----------
    models : list of Model
    named : list of (str, Model)
    served : list of ServedModel
        What records must fit; nothing fits one that was unloaded.
    of_journals : list of ServedModel
        What entries of journals are of: of those that were unloaded too.
    specs : list of (str, ModelSpec)
        Names and descriptions, for the words of errors.
    templates : Templates
    indices : dict of str to int
        Of those that are served now.
    families : dict of str to int
        The number of each, which is that of its alias; none is ever taken back.
    aliases : dict of str to str
        The version that new streams get, by family.
    shares : dict of str to Share
    swaps : dict of str to SwapRule
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        programs: Mapping[str, Program],
        arithmetics: Mapping[str, str],
        capacity: int,
        history_of: Callable[[str], int],
    ) -> None:
        self._history_of = history_of
        self.models: list[Model] = []
        self.named: list[tuple[str, Model]] = []
        self.served: list[ServedModel] = []
        self.of_journals: list[ServedModel] = []
        self.specs: list[tuple[str, ModelSpec]] = []
        self.templates = Templates([], capacity)
        self.indices: dict[str, int] = {}
        self.families: dict[str, int] = {}
        self.aliases: dict[str, str] = {}
        self.shares: dict[str, Share] = {}
        self.swaps: dict[str, SwapRule] = {}
        self.capacity = capacity
        for name, model in models.items():
            self.add(name, model, programs[name], arithmetics[name])
            self.aliases[family_of(name)] = name  # the one that is named last

    @property
    def names(self) -> list[str]:
        """Those that are served now, in order."""
        return list(self.indices)

    def add(self, name: str, model: Model, program: Program, arithmetic: str) -> int:
        """Add a model; return its index."""
        y_bytes = 4 * program.spec.output_size
        x_bytes, max_kept = 4 * program.spec.num_inputs, self.max_kept_of(name)
        num_bytes = kept_bytes(max_kept, x_bytes)
        if num_bytes > MAX_LOADED_ROW_BYTES:
            raise StartError(
                f"--history {max_kept} of {name!r} takes {num_bytes} bytes for each stream; it "
                f"may be {MAX_LOADED_ROW_BYTES}: keep fewer inputs"
            )
        sizes = program.row_bytes, y_bytes, arithmetic, x_bytes, max_kept
        served = ServedModel(name, model.fingerprint, *sizes)
        index = len(self.models)
        self.templates.set(index, name, model.fingerprint, arithmetic)
        self.models.append(model)
        self.named.append((name, model))
        self.specs.append((name, model.spec))
        self.served.append(served)
        self.of_journals.append(served)
        self.indices[name] = index
        family = family_of(name)
        self.families[family] = self.number_of(family)
        self.aliases.setdefault(family, name)
        return index

    def number_of(self, family: str) -> int:
        """Return a family's number, or the one that it will have."""
        return self.families.get(family, len(self.families))

    def max_kept_of(self, name: str) -> int:
        """Return how many inputs are kept of a version's streams: as many as of the others'."""
        return self._history_of(name)

    def remove(self, name: str) -> int:
        """Let a model be served no more; return its index."""
        index = self.indices.pop(name)
        self.served[index] = ServedModel(name, "", 0, 0, "", 0)
        self.swaps.pop(name, None)
        return index

    def alias_rows(self, held: str | None = None) -> list[tuple[str, int, int, int]]:
        """Return what shards take as their aliases; of a held one no new stream gets a version."""
        rows = []
        for family in self.families:
            index = self.indices.get(self.aliases.get(family, ""), -1)
            share = self.shares.get(family)
            other, part = (index, 0) if share is None else (self.indices[share.name], share.share)
            rows.append((family, -1, -1, 0) if family == held else (family, index, other, part))
        return rows

    def for_shard(
        self,
    ) -> tuple[list[tuple[str, int, int, int]], list[int], dict[int, tuple[int, int]]]:
        """Return what a shard begins with: aliases; of each model its family, and its rule."""
        families = [self.families[family_of(served.name)] for served in self.served]
        rules = {
            self.indices[name]: (self.indices[rule.to], int(SWAP_POLICIES[rule.policy]))
            for name, rule in self.swaps.items()
        }
        return self.alias_rows(), families, rules

    def resolve(self, name: str) -> int | None:
        """Return the index of the version that a name means; None if it means none."""
        return self.indices.get(self.aliases.get(name, name))

    def means(self, name: str, index: int) -> bool:
        """Tell whether a name is a model's, or that of its family."""
        own = self.served[index].name
        return name in (own, family_of(own))

    def describe(self, params: list[Any], precision: str, device: str) -> list[dict[str, Any]]:
        """Return what is told of each name that opens streams: of versions, and of all of them.

        A name of all versions is told as the one that new streams get.
        """
        known = params[0] if params and isinstance(params[0], list) else []
        told: list[dict[str, Any]] = []
        for name in dict.fromkeys([*self.indices, *self.families]):
            index = self.resolve(name)
            if index is None:  # all versions were unloaded
                continue
            model, served, family = self.models[index], self.served[index], family_of(name)
            rule, share = self.swaps.get(served.name), self.shares.get(family)
            # A client that would leave origins out has no name that opens such a model.
            is_told = ORIGINS in known or not model.spec.has_origins
            more: dict[str, Any] = {}
            if rule is not None:
                more |= {"swapped_to": rule.to, "policy": rule.policy}
            if share is not None and share.name == served.name:
                more["share"] = share.share / SHARES
            if served.max_kept:
                more["history"] = served.max_kept
            told.append(
                {
                    "name": name if is_told else name + _TOO_NEW,
                    "fingerprint": model.fingerprint,
                    "spec": model.spec.to_dict(),
                    "row_bytes": served.row_bytes,
                    "precision": precision,
                    "device": device,
                    "alias": family,
                    "version": served.name,
                    "is_current": served.name == self.aliases[family],
                    **more,
                }
            )
        return told
