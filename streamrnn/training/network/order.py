"""The order in which a chunk goes through the network: node by node, or step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streamrnn.model.graph import Graph, Read

__all__ = ["Group", "Source", "groups_of", "sources_of"]


class Source(NamedTuple):
    """What a node reads, and the columns of its x where that stands."""

    read: Read
    columns: slice


class Group(NamedTuple):
    """Neighbouring nodes that go through a chunk together.

    One alone goes through all steps at once, unless some node reads what itself or a later one gave
    at the step before: all between the two go step by step then.
    """

    nodes: range
    is_stepwise: bool


def sources_of(graph: Graph, num_nodes: int) -> list[tuple[Source, ...]]:
    """Return what each node reads; one more node than there are layers is the head."""
    head = (Read(num_nodes - 2),)
    all_sources = []
    for reads in [*graph.reads, head][:num_nodes]:
        start, sources = 0, []
        for read in reads:
            length, channels = graph.shape_of(read)
            sources.append(Source(read, slice(start, start + length * channels)))
            start += length * channels
        all_sources.append(tuple(sources))
    return all_sources


def groups_of(sources: Sequence[Sequence[Source]]) -> list[Group]:
    """Cut the nodes, in their order, into groups."""
    groups: list[Group] = []
    start = 0
    while start < len(sources):
        k, stop, is_stepwise = start, start + 1, False
        while k < stop:
            latest = max(source.read.layer for source in sources[k])
            if latest >= k:
                stop, is_stepwise = max(stop, latest + 1), True
            k += 1
        groups.append(Group(range(start, stop), is_stepwise))
        start = stop
    return groups
