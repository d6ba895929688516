"""``bench/gpu``: what a machine with a GPU and no network is given, and how it is run there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU = ROOT / "bench" / "gpu"

# Stands for Python: what the stages run fails, hangs or does well.
STUB = f"""#!/bin/bash
case "$*" in
    bench/gpu/check.py) echo "kernels run" ;;
    bench/gpu/*) exec {sys.executable} "$@" ;;
    *gpu_name*) {{gpu}} ;;
    *smoke*) echo "3 of 9 checks failed"; exit 3 ;;
    *bench*step*) cp "$STUB_RESULTS" "${{{{@: -1}}}}"; exec sleep 600 ;;
    *pytest*) printf '7 passed\\n\\n' ;;
esac
"""
RESULT = '{"case": "a case", "value": 2.5, "unit": "us", "ratio": 0.75, "reference": "fma_rate"}\n'


def run(tmp_path, gpu, *part):
    stub, results = tmp_path / "python", tmp_path / "stub-gpu-step.jsonl"
    stub.write_text(STUB.format(gpu=gpu))
    stub.chmod(0o755)
    results.write_text(RESULT)
    environment = os.environ | {
        "PYTHON": str(stub),
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "STUB_RESULTS": str(results),
        "STAGE_LIMIT_S": "2",
    }
    return subprocess.run(
        [GPU / "run.sh", tmp_path / "wheels", tmp_path / "out", *part],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_without_a_gpu_it_ends_well_and_says_so(tmp_path):
    gpu = 'echo "streamrnn.errors.DeviceError: no driver; use device cpu" >&2; exit 1'
    done = run(tmp_path, gpu)
    said = "nothing was run; no GPU that can be used here: no driver; use device cpu\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert (tmp_path / "out" / "summary.txt").read_text() == said


def test_a_gpu_that_cannot_be_used_is_a_failure(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    smi.chmod(0o755)
    done = run(tmp_path, 'echo "DeviceError: no numba-cuda" >&2; exit 1')
    assert done.returncode == 1
    assert done.stdout.endswith("nothing was run; no numba-cuda\n")


def test_after_a_failure_and_at_a_limit_the_next_stage_comes(tmp_path):
    done = run(tmp_path, "echo Stub GPU")
    assert done.returncode == 1
    table = done.stdout[done.stdout.rindex("\n\ncompiler") + 2 :]
    assert table == (tmp_path / "out" / "summary.txt").read_text()
    stages = [line.split()[:2] for line in table.splitlines()[:8]]
    assert stages == [
        ["compiler", "fine"],
        ["smoke", "failed"],
        ["step", "limit"],
        ["tests", "fine"],
        ["memcheck", "failed"],  # no compute-sanitizer here
        ["racecheck", "failed"],
        ["compile", "fine"],
        ["server-cuda", "fine"],
    ]
    assert "3 of 9 checks failed" in table
    assert "7 passed" in table
    assert table.splitlines()[-1].split() == ["2.5", "us", "0.750", "of", "fma_rate", "a", "case"]
    logs = {path.name for path in (tmp_path / "out").iterdir()}
    assert logs >= {"compiler.log", "smoke.log", "tests.log", "racecheck.log", "step.log"}


@pytest.mark.parametrize(
    ("part", "stages"),
    [
        ("checks", ["compiler", "smoke", "step"]),
        ("tests", ["tests", "memcheck", "racecheck"]),
        ("server", ["compile", "server-cuda", "server-cpu"]),
    ],
)
def test_a_part_runs_its_stages(tmp_path, part, stages):
    done = run(tmp_path, "echo Stub GPU", part)
    table = (tmp_path / "out" / "summary.txt").read_text()
    assert [line.split()[0] for line in table.splitlines()[: len(stages)]] == stages, done.stdout
    # What comes back of a lent machine is eight files at most.
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_wrong_usage_is_told(tmp_path):
    done = run(tmp_path, "echo Stub GPU", "everything")
    assert done.returncode == 2
    assert "bench/gpu/run.sh WHEELS OUT [checks | tests | server]" in done.stderr


@pytest.fixture
def wheels():
    spec = importlib.util.spec_from_file_location("gpu_wheels", GPU / "wheels.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(directory, name, files):
    path = directory / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for inside, text in files.items():
            file.writestr(inside, text)
    return path


def test_only_what_is_missing_is_installed(wheels, tmp_path, monkeypatch, capsys):
    wanted = {"pytest": ">=1", "numpy": "<1", "not-there": "==13.0.*", "nowhere": ">=1"}
    monkeypatch.setattr(wheels, "REQUIREMENTS", wanted)
    for name in ("pytest", "numpy", "not_there"):
        make_wheel(tmp_path, f"{name}-13.0.1", {f"{name}_is_here.py": ""})
    wheels.install(tmp_path, tmp_path / "site", False)
    assert {path.name for path in (tmp_path / "site").iterdir()} == {
        "sitecustomize.py",
        "numpy_is_here.py",
        "not_there_is_here.py",
    }
    assert "nowhere >=1: missing here, and no wheel" in capsys.readouterr().out
    wheels.install(tmp_path, tmp_path / "site", True)
    assert (tmp_path / "site" / "pytest_is_here.py").exists()
    code = "import site; print(site.getsitepackages()[0])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert found.strip() == str(tmp_path / "site")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.4.6", ">=2,<2.5", True),
        ("2.5.0rc1", ">=2,<2.5", False),
        ("1.26.4", ">=2,<2.5", False),
        ("13.0.88", "==13.0.*", True),
        ("13.5.37", "==13.0.*", False),
        ("26.0", ">=26", True),
        ("3.10", ">=3.9", True),
    ],
)
def test_a_version_does_or_does_not(wheels, version, wanted, fits):
    assert wheels.satisfies(version, wanted) is fits


def test_what_nobody_calls_is_left_out_of_a_wheel(wheels, tmp_path):
    record = "nvidia/lib/libnvvm.so.4,,\nnvidia/nvvm/bin/cicc,sha256=x,5\nd.dist-info/RECORD,,\n"
    files = {"nvidia/lib/libnvvm.so.4": "library", "nvidia/nvvm/bin/cicc": "large"}
    wheel = make_wheel(tmp_path, "nvidia_nvvm-13.0.88", files | {"d.dist-info/RECORD": record})
    wheels.slim(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == ["nvidia/lib/libnvvm.so.4", "d.dist-info/RECORD"]
        assert file.read("nvidia/lib/libnvvm.so.4") == b"library"
        assert b"cicc" not in file.read("d.dist-info/RECORD")
    assert list(tmp_path.glob("*")) == [wheel]


def test_more_than_can_be_carried_is_refused(wheels, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "slim", lambda wheel: wheel.write_bytes(b"x" * 100))
    monkeypatch.setattr(wheels, "MAX_BYTES", 150)
    directory = tmp_path / "wheels"
    directory.mkdir()
    monkeypatch.setattr(
        wheels.subprocess,
        "run",
        lambda *args, **options: [make_wheel(directory, n, {}) for n in ("a-1", "b-1")],
    )
    with pytest.raises(SystemExit, match="200 bytes, more than 150"):
        wheels.collect(directory, "3.12")
