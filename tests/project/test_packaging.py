"""What imports load, the packaged data, and the two distributions."""

from __future__ import annotations

import csv
import datetime
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

import streamrnn
from streamrnn_server import cli

ROOT = Path(__file__).parents[2]


def python(code: str, **options) -> str:
    """Run a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What an import loads


@pytest.mark.parametrize("module", ["streamrnn", "streamrnn_client", "streamrnn_server.cli"])
def test_import_loads_no_numba(module):
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not {"numba", "llvmlite"} & set(loaded)


def test_client_knows_nothing_of_the_server():
    code = "import sys, streamrnn_client as c; [getattr(c, n) for n in dir(c)]; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(code).split()}
    assert "streamrnn_client" in loaded
    assert not {"numba", "llvmlite", "streamrnn", "streamrnn_server"} & loaded


def test_public_names_are_resolved_on_first_use():
    public = {"Engine", "Model", "__version__", "compare", "predict", "train"}
    assert set(streamrnn.__all__) == public
    assert streamrnn.Model.__module__ == "streamrnn.model.model"
    assert streamrnn.Engine.__module__ == "streamrnn.engine.engine"
    assert set(streamrnn.__all__) <= set(dir(streamrnn))
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = streamrnn.Modle


# The data


def test_co2_is_whole():
    text = (files("streamrnn") / "data" / "co2_mauna_loa.csv").read_text()
    header, *rows = csv.reader(text.splitlines())
    assert header == ["date", "co2"]
    days = [datetime.date.fromisoformat(day) for day, _ in rows]
    assert (days[0], days[-1]) == (datetime.date(1958, 3, 29), datetime.date(2001, 12, 29))
    assert {later - earlier for earlier, later in pairwise(days)} == {datetime.timedelta(days=7)}
    values = [float(value) for _, value in rows if value]
    assert len(rows) - len(values) == 59
    assert (min(values), max(values)) == (313.0, 373.9)


# The two distributions


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Build both wheels, with what is installed here and no network."""
    directory = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", directory, ROOT, ROOT / "clients")
    built = {path.name.partition("-")[0]: path for path in directory.glob("*.whl")}
    assert set(built) == {"streamrnn", "streamrnn_client"}
    return built


def pip(*arguments, target: Path | None = None) -> None:
    chosen = ["--python", target] if target else []
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "-q"]
    words = [str(word) for word in (*command, *chosen, *arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheels_share_no_file(wheels):
    assert not content(wheels["streamrnn"]) & content(wheels["streamrnn_client"])


def test_wheels_hold_what_they_need(wheels):
    whole = content(wheels["streamrnn"])
    packages = ["streamrnn", "streamrnn_server", "streamrnn_bench"]
    assert {f"{package}/py.typed" for package in packages} <= whole
    assert "streamrnn/data/co2_mauna_loa.csv" in whole
    assert "streamrnn_client/py.typed" in content(wheels["streamrnn_client"])
    modules = {command.module.replace(".", "/") + ".py" for command in cli.COMMANDS.values()}
    assert modules <= whole
    top = {name.partition("/")[0] for name in whole}
    assert {name for name in top if not name.endswith(".dist-info")} == set(packages)


def test_both_wheels_carry_the_licence(wheels):
    licence = (ROOT / "LICENSE").read_bytes()
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            [name] = [n for n in archive.namelist() if n.endswith("dist-info/licenses/LICENSE")]
            assert archive.read(name) == licence


def test_versions_agree(wheels):
    versions = {path.name.split("-")[1] for path in wheels.values()}
    assert versions == {streamrnn.__version__}
    with zipfile.ZipFile(wheels["streamrnn"]) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = archive.read(name).decode()
    major, minor, _ = streamrnn.__version__.split(".")
    assert re.search(f"^Requires-Dist: streamrnn-client<[0-9.]+,>={major}.{minor}$", metadata, re.M)


@pytest.mark.slow
def test_each_distribution_installs_and_goes_alone(wheels, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    interpreter = tmp_path / "bin" / "python"
    # The libraries of this environment, without its .pth files and so without this checkout.
    libraries = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join({sysconfig.get_path(key) for key in ("purelib", "platlib")}),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    [site] = tmp_path.glob("lib/python*/site-packages")

    def run(*words):
        return subprocess.run(
            words, cwd=tmp_path, env=libraries, capture_output=True, text=True, check=False
        )

    def installed() -> set[str]:
        return {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}

    pip("install", "--no-deps", "--no-index", *wheels.values(), target=interpreter)
    both = installed()
    done = run(tmp_path / "bin" / "streamrnn", "--version")
    assert done.stdout == f"streamrnn {streamrnn.__version__}\n", done.stderr
    done = run(interpreter, "-c", "import streamrnn_server; print(streamrnn_server.__file__)")
    assert done.stdout.startswith(str(site)), done.stderr

    pip("uninstall", "-y", "streamrnn", target=interpreter)
    client = installed()
    assert client < both
    done = run(interpreter, "-c", "import streamrnn_client; print(streamrnn_client.__file__)")
    assert done.stdout.startswith(str(site)), done.stderr
    assert run(interpreter, "-c", "import streamrnn").returncode != 0

    pip("install", "--no-deps", "--no-index", wheels["streamrnn"], target=interpreter)
    assert installed() == both
    pip("uninstall", "-y", "streamrnn-client", target=interpreter)
    done = run(interpreter, "-c", "import streamrnn; print(streamrnn.__file__)")
    assert done.stdout.startswith(str(site)), done.stderr
    assert not (site / "streamrnn_client").exists()
    pip("uninstall", "-y", "streamrnn", target=interpreter)
    assert not installed()
