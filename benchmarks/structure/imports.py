"""What a module of labelloop imports from: for the counts of this folder, and for the test of the packages."""

import ast
from pathlib import Path


def imported(file: Path) -> set[str]:
    """Return the folders of the package, and modules beside them, that a module imports from, also in functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = node.module or ""
            names += [f"{found}.{alias.name}" for alias in node.names] if found == "labelloop" else [found]
    return {name.split(".")[1] for name in names if name.startswith("labelloop.")}
