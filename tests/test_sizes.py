"""No module and no function of the package grows past what can be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "server" / "iris_kv"
MAX_LINES = 500
SPLIT_LINES = 300
SHORT_LINES = 30

TOO_LONG: dict[str, str] = {}
"""The modules that may be longer, each with the reason."""


def module_lines() -> dict[str, int]:
    """Return the number of lines of each module, the longest first."""
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    return dict(sorted(lines.items(), key=lambda each: -each[1]))


def function_lines() -> dict[str, int]:
    """Return the number of lines of each function, its decorators and docstring left out; the longest first."""
    lines: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                signature = node.body[0].lineno - node.lineno
                name = f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
                lines[name] = signature + node.end_lineno - first.lineno + 1
    return dict(sorted(lines.items(), key=lambda each: -each[1]))


def test_no_module_is_longer_than_500_lines() -> None:
    lines = module_lines()

    over = {name for name, n in lines.items() if n > MAX_LINES}

    to_split = "\n".join(f"{n:5} {name}" for name, n in lines.items() if n > SPLIT_LINES)
    assert over == set(TOO_LONG), f"split these; over {SPLIT_LINES} lines are:\n{to_split}"


def test_nine_in_ten_functions_have_under_30_lines() -> None:
    lines = function_lines()

    long = [f"{n:5} {name}" for name, n in lines.items() if n >= SHORT_LINES]

    assert len(long) * 10 <= len(lines), f"{len(long)} of {len(lines)} functions are long:\n" + "\n".join(long)
