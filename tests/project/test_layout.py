"""Sizes of folders and files, imports between tests, and which of them wait for a compilation."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from tests.conftest import COMPILED

ROOT = Path(__file__).parents[2]
PRODUCT = ("streamrnn", "server", "clients", "bench")
MAX_FILES = 14  # Python files of one folder
MAX_LINES = 462  # of one file of the product


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of the modules and members that a file imports anywhere."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = list(package[: len(package) + 1 - node.level]) if node.level else []
            module = ".".join([*home, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def is_test_module(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "tests" and any(part.startswith("test_") for part in parts)


def test_no_file_imports_a_test_module():
    imports = {path: imported_modules(path) for path in sources("tests")}
    wrong = {
        str(path.relative_to(ROOT)): sorted(filter(is_test_module, names))
        for path, names in imports.items()
    }
    assert {path: names for path, names in wrong.items() if names} == {}


def test_what_needs_machine_code_waits_for_it():
    """Where the cache is empty such a test would compile for itself, for more than a minute."""
    server = {f"tests.support.program.{name}" for name in ("DurableProgram", "Program")}
    server |= {"streamrnn_server.testing", "tests.support.peer"}
    wrong = []
    for path in sources("tests"):
        name, imports = str(path.relative_to(ROOT)), imported_modules(path)
        parts = {part for part, tests in COMPILED.items() if tests.match(name)}
        needs_shard = bool(imports & server) and "pytest.mark.gpu" not in path.read_text()
        if path.name.startswith("test_") and (
            (needs_shard and "shard" not in parts) or ("streamrnn.Engine" in imports and not parts)
        ):
            wrong.append(name)
    assert wrong == []


def test_nothing_is_compiled_while_tests_are_collected():
    """Every worker would do it for itself, before the first test."""
    wrong = []
    for path in filter(lambda path: path.name.startswith("test_"), sources("tests")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                continue
            called = {node.func for node in ast.walk(statement) if isinstance(node, ast.Call)}
            names = {name.id for name in called if isinstance(name, ast.Name)}
            if names & {"Engine", "Program"}:
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def test_no_folder_has_too_many_files():
    counts = Counter(path.parent.relative_to(ROOT) for path in sources(*PRODUCT, "tests"))
    assert {str(folder): n for folder, n in counts.items() if n > MAX_FILES} == {}


def test_no_file_is_too_long():
    lengths = {path: len(path.read_text().splitlines()) for path in sources(*PRODUCT)}
    too_long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES}
    assert too_long == {}
