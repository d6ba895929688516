"""Wheels for a machine with a GPU and no network: collected on another, installed there.

``python bench/gpu/wheels.py collect DIRECTORY [--python 3.12]`` fetches what such a machine is
likely to lack. ``python bench/gpu/wheels.py install DIRECTORY TARGET``, there, unpacks into TARGET
those whose package the running Python lacks, or has in a version that does not do (with ``--all``
every one); Python finds them with ``PYTHONPATH=TARGET``. Python's own library is all it needs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 64_000_000  # of all wheels: what is carried to a machine may have a limit

# Beside what every image for machine learning has (llvmlite, numba, msgpack, rich, safetensors,
# pytest, and numba-cuda with NVIDIA's linker). What libNVVM writes that linker must read: 13.0, the
# oldest of CUDA 13.
REQUIREMENTS = {
    "isal": ">=1.7",
    "lmdb": ">=1.4",
    "numpy": ">=2,<2.5",
    "pyzmq": ">=26",
    "numba-cuda": ">=0",  # whichever is there is tried first
    "nvidia-nvvm": "==13.0.*",
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
]
SITE = """\
# Python looks here for what it runs at its start (.pth), and NVIDIA for its libraries.
import os
import site

_here, _packages = os.path.dirname(os.path.abspath(__file__)), site.getsitepackages
site.addsitedir(_here)
site.getsitepackages = lambda prefixes=None: [_here, *_packages(prefixes)]
"""
# A program of 33 MB that compiles C: the library beside it is what numba-cuda calls.
LEFT_OUT = re.compile(r"/bin/cicc$")


def collect(directory: Path, python: str) -> None:
    """Fetch the wheels; exit if they are more than can be carried."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--dest", str(directory)]
    command += [f"--python-version={python}", f"--abi=cp{python.replace('.', '')}"]
    command += ["--abi=abi3", "--abi=none", *(f"--platform={name}" for name in PLATFORMS)]
    requirements = [name + version for name, version in REQUIREMENTS.items()]
    subprocess.run([*command, *requirements], check=True)
    for wheel in sorted(directory.glob("*.whl")):
        slim(wheel)
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
    size = sum(wheel.stat().st_size for wheel in directory.glob("*.whl"))
    print(f"{size / 1e6:6.1f} MB  in all")
    if size > MAX_BYTES:
        sys.exit(f"these are {size:,} bytes, more than {MAX_BYTES:,}: leave something out")


def slim(wheel: Path) -> None:
    """Take out of a wheel what nobody needs, and out of its list of files."""
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        kept = [name for name in names if not LEFT_OUT.search(name)]
        if len(kept) == len(names):
            return
        with tempfile.NamedTemporaryFile(dir=wheel.parent, delete=False) as file:
            new = Path(file.name)
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as target:
            for name in kept:
                data = source.read(name)
                if name.endswith(".dist-info/RECORD"):
                    data = b"".join(
                        line
                        for line in data.splitlines(keepends=True)
                        if not LEFT_OUT.search(line.decode().split(",")[0])
                    )
                target.writestr(source.getinfo(name), data, zipfile.ZIP_DEFLATED)
    new.replace(wheel)


def install(directory: Path, target: Path, all_of_them: bool) -> None:
    """Unpack what is missing here, and say of each package what was done."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "sitecustomize.py").write_text(SITE)
    wheels = {
        re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower(): wheel
        for wheel in sorted(directory.glob("*.whl"))
    }
    for name, wanted in REQUIREMENTS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and satisfies(version, wanted) and not all_of_them:
            print(f"{name} {version} is there")
        elif name not in wheels:
            print(f"{name} {wanted}: {version or 'missing'} here, and no wheel in {directory}")
        else:
            with zipfile.ZipFile(wheels[name]) as file:
                file.extractall(target)
            print(f"{name} {wheels[name].name.split('-')[1]} of its wheel, for {version or 'none'}")


def satisfies(version: str, wanted: str) -> bool:
    """Tell whether a version is in a range, as far as `REQUIREMENTS` has ranges."""
    has = numbers(version)
    for part in wanted.split(","):
        operator, bound = re.match(r"(==|>=|<)(.*)", part).groups()  # type: ignore[union-attr]
        limit = numbers(bound.removesuffix(".*"))
        fits = {"==": has[: len(limit)] == limit, ">=": has >= limit, "<": has < limit}
        if not fits[operator]:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    return tuple(int(part) for part in re.match(r"[\d.]*\d", version)[0].split("."))  # type: ignore[index]


def main() -> None:
    """Collect, or install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("collect", "install"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--all", action="store_true", help="install what is there too")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU (3.12)")
    args = parser.parse_args()
    if args.action == "collect":
        collect(args.directory, args.python)
    elif args.target is None:
        parser.error("where shall it go?")
    else:
        install(args.directory, args.target, args.all)


if __name__ == "__main__":
    main()
