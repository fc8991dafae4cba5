import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from labelloop.recipe import Recipe, load_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[..., ModuleType]:
    """Return a function that imports a module of ``benchmarks/<name>``, which finds the modules beside it."""

    def load(name: str, module: str = "run") -> ModuleType:
        folder = BENCHMARKS / name
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            spec = importlib.util.spec_from_file_location(f"{name}_{module}_benchmark", folder / f"{module}.py")
            benchmark = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, benchmark)
            spec.loader.exec_module(benchmark)
            for file in folder.glob("*.py"):
                sys.modules.pop(file.stem, None)
        return benchmark

    return load


@pytest.fixture
def load(tmp_path) -> Callable[[dict], Recipe]:
    """Return a function that loads a recipe of this content."""

    def recipe_of(content: dict) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return load_recipe(path)

    return recipe_of
