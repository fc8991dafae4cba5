"""Put into a wheel what a run needs and what stands at the project's root; all else is in pyproject.toml.

``labelloop.base.lookup`` finds it there, and at the root of a checkout.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BROUGHT = ("Snakefile", "config", "profiles", "workflow")


class BuildWithProject(build_py):
    """Copy ``BROUGHT`` into ``labelloop/project``. An editable install goes without: it uses the checkout's."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        packed = Path(self.build_lib, "labelloop", "project")
        shutil.rmtree(packed, ignore_errors=True)  # of an earlier build
        for name in BROUGHT:
            source = Path(name)
            (packed / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, packed / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copyfile(source, packed / name)


setup(cmdclass={"build_py": BuildWithProject})
