"""The dashboard for Grafana: as provisioning takes it, and of metrics that there are."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NUM_COLUMNS = 24
TYPES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
LABELS_OF = {"_bucket": {"le"}}
# Of the process, by prometheus-client: not in our table.
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    return board


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """The names that queries may use, and the labels of each, as documented.

    Another test compares the documentation with what is exposed.
    """
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(streamrnn_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    names = {
        name + suffix: set(re.findall(r"`(\w+)`", labels)) | LABELS_OF.get(suffix, set())
        for name, kind, labels in rows
        for suffix in TYPES[kind]
    }
    return names | {name: set() for name in OF_THE_PROCESS}


def queries(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def labels_kept(query: str) -> set[str]:
    groups = re.findall(r"by \(([^)]*)\)", query)
    return {label for group in groups for label in group.split(", ")}


def test_it_can_be_provisioned(board):
    # A file of provisioning has no id of a database, no asked-for inputs, and a stable uid.
    assert board["id"] is None
    assert "__inputs" not in board
    assert re.fullmatch(r"[\w-]{1,40}", board["uid"])
    assert board["title"]
    assert board["schemaVersion"] >= 36
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval"}
    assert used == set(variables)


def test_panels_have_numbers_titles_and_places_of_their_own(board):
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids) == len({panel["title"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        assert columns[0] >= 0
        assert columns[-1] < NUM_COLUMNS
        cells = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert not cells & taken
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_queries_name_metrics_and_labels_that_there_are(board, metrics):
    for query in queries(board):
        names = re.findall(r"\b(?:streamrnn|process)_\w+", query)
        assert names
        labels = {"instance", *itertools.chain(*(metrics.get(name, ()) for name in names))}
        assert set(names) <= set(metrics), query
        by = labels_kept(query)
        selected = set(re.findall(r"(\w+)=~", query))
        assert by | selected <= labels, query
        assert query.count("(") == query.count(")")
        for name in names:
            is_counter = name.endswith(("_total", "_bucket", "_count", "_sum"))
            assert is_counter == (f"rate({name}{{" in query), query
        if "histogram_quantile" in query:
            assert "le" in by


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
def test_promtool_can_read_every_query(board, tmp_path):
    rules = [
        {
            "record": f"q{k}",
            "expr": query.replace("$__rate_interval", "1m").replace("$instance", "x"),
        }
        for k, query in enumerate(queries(board))
    ]
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_legends_name_labels_of_their_queries(board):
    for panel in board["panels"]:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= labels_kept(target["expr"])


def test_it_shows_every_metric_but_the_build(board, metrics):
    shown = set(re.findall(r"\bstreamrnn_\w+", " ".join(queries(board))))
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in metrics if name[:3] == "str"}
    base = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert ours - base == {"streamrnn_build_info"}
