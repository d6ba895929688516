"""Asks a server's HTTP address, and reads what it says."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 30


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    """Return status and body."""
    request = urllib.request.Request(url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Scrape:
    """All metrics of one moment."""

    def __init__(self, url: str) -> None:
        status, self.text = get(url, "/metrics")
        assert status == 200
        self.families = {each.name: each for each in text_string_to_metric_families(self.text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self._values = {(each.name, frozenset(each.labels.items())): each.value for each in samples}

    def __call__(self, name: str, **labels: str) -> float:
        """Return a sample's value; 0 if it is not there."""
        return self._values.get((f"streamrnn_{name}", frozenset(labels.items())), 0)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples that have some labels."""
        return sum(
            value
            for (other, has), value in self._values.items()
            if other == f"streamrnn_{name}" and labels.items() <= dict(has).items()
        )

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Return a histogram's bounds and cumulative counts."""
        return [
            (float(dict(has)["le"]), value)
            for (other, has), value in self._values.items()
            if other == f"streamrnn_{name}_bucket" and labels.items() <= dict(has).items()
        ]
