"""Which arrays of a file belong to which layer of Keras."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from numpy.typing import NDArray

from streamrnn.importers.keras.config import Graph, leaves_of, read_graph
from streamrnn.importers.keras.files import KerasFile

__all__ = ["Weights"]

Arrays = list[NDArray[Any]]


class Weights:
    """The arrays of one model's layers.

    Keras 3 counts the layers of a class and ignores their names, Keras 2 goes by names. Layers of
    a model within the model lie below its place in files of Keras 3; in those of Keras 2 they lie
    together under the outermost model's name.
    """

    def __init__(
        self, graph: Graph, file: KerasFile, before: str = "", outermost: str = ""
    ) -> None:
        self._file, self._graph, self._outermost = file, graph, outermost
        self._by_place = bool(file.weights.by_place)
        self._stored = file.weights.by_place or file.weights.by_name
        self._taken: set[str] = set()
        if not outermost and not self._by_place:
            self._spread()
        counts: Counter[str] = Counter()
        self._places: dict[str, str] = {}
        for entry in graph.entries.values():
            if entry.kind.startswith("ops."):
                continue  # no layer
            snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", entry.kind))
            snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
            self._places[entry.name] = f"{before}{snake}" + f"_{counts[snake]}" * bool(
                counts[snake]
            )
            counts[snake] += 1

    def of(self, name: str) -> Arrays:
        """Return the arrays of a layer."""
        place = self._places.get(name, "")
        if not self._by_place:
            place = f"{self._outermost}/{name}" if self._outermost else name
        self._taken.add(place)
        return self._stored.get(place, [])

    def within(self, name: str) -> Weights:
        """Return those of a layer that is a model."""
        entry = self._graph.entries[name]
        assert entry.model is not None
        outermost = self._outermost or name
        inner = Weights(
            read_graph(entry.model), self._file, f"{self._places.get(name, '')}/", outermost
        )
        inner._taken = self._taken
        return inner

    def unused(self) -> list[str]:
        """Return where arrays lie that no layer took."""
        return [place for place, own in self._stored.items() if own and place not in self._taken]

    def _spread(self) -> None:
        """Give the layers of models within the model their own arrays.

        The last part of a weight's name that is a layer's says whose it is.
        """
        by_name = self._file.weights.by_name
        for entry in self._graph.entries.values():
            if entry.model is None:
                continue
            names = set(leaves_of(entry.model))
            rest: Arrays = []
            weight_names = self._file.weights.weight_names.get(entry.name, [])
            for weight, array in zip(weight_names, by_name.pop(entry.name, []), strict=True):
                owner = next((part for part in weight.split("/")[-2::-1] if part in names), None)
                own = rest if owner is None else by_name.setdefault(f"{entry.name}/{owner}", [])
                own.append(array)
            if rest:
                by_name[entry.name] = rest  # nobody's, which is refused
