"""Check that the docstrings of public functions name every argument, and no other.

``python tests/docstrings.py DIRECTORY...`` prints one line a finding and exits 1 if there are any.

Public is what has no leading underscore, in no module or class that has one. A class names the
arguments of its ``__init__``. Types and order are for mypy and the reader: here a section
"Parameters" in NumPy's form (``name : type``, also ``a, b : type``) must name each argument once.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: :.*)?")


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the words of everything that is wrong in a module's source."""
    yield from _in_body(ast.parse(source).body, "", in_class=False)


def _in_body(body: list[ast.stmt], prefix: str, in_class: bool) -> Iterator[tuple[int, str]]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):  # a definition that depends on the platform
            inner = [*node.body, *node.orelse]
            yield from _in_body(inner, prefix, in_class)
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = prefix + node.name
        documented = _documented(ast.get_docstring(node) or "")
        if isinstance(node, ast.ClassDef):
            yield from _in_body(node.body, f"{name}.", in_class=True)
            init = next(
                (n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None
            )
            if init is None:  # a dataclass, a NamedTuple: its attributes say it all
                continue
            documented += _documented(ast.get_docstring(init) or "")
            expected = _arguments(init, in_class=True)
        else:
            expected = _arguments(node, in_class)
        missing = [a for a in expected if a not in documented]
        unknown = [a for a in documented if a not in expected]
        if missing:
            yield node.lineno, f"{name}: Parameters does not name {', '.join(missing)}"
        if unknown:
            yield node.lineno, f"{name}: Parameters names {', '.join(unknown)}, not an argument"


def _arguments(node: Function, in_class: bool) -> list[str]:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    decorators = set()
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        decorators.add(called.id if isinstance(called, ast.Name) else "")
    if "overload" in decorators:
        return []
    # self and cls are Python's to pass, and the typing context of an intrinsic is Numba's.
    if (in_class and "staticmethod" not in decorators) or "intrinsic" in decorators:
        names = names[1:]
    names += [a.arg for a in arguments.kwonlyargs]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [name for name in names if not name.startswith("_")]


def _documented(docstring: str) -> list[str]:
    """Return the names under "Parameters": the unindented lines up to the next section."""
    names: list[str] = []
    lines = docstring.splitlines()
    rules = [i for i, line in enumerate(lines) if line and set(line) == {"-"} and i > 0]
    for rule in rules:
        if lines[rule - 1] not in ("Parameters", "Other Parameters"):
            continue
        following = next((other for other in rules if other > rule), len(lines) + 1)
        for line in lines[rule + 1 : following - 1]:
            entry = ENTRY.fullmatch(line)
            if entry:
                names += [name.lstrip("*") for name in entry[1].split(", ")]
    return names


def main(directories: list[str]) -> int:
    """Print every finding below some directories and return the exit code."""
    num_modules = num_findings = 0
    for directory in directories:
        for path in sorted(Path(directory).rglob("*.py")):
            if path.name.startswith("_") and path.name != "__init__.py":
                continue
            num_modules += 1
            for line, words in findings(path.read_text(encoding="utf-8")):
                num_findings += 1
                print(f"{path}:{line}: {words}")
    print(f"{num_findings} findings in the docstrings of {num_modules} modules")
    return 1 if num_findings or not num_modules else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
