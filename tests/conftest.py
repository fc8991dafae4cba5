"""The tiers of the tests, and what tests of all folders share.

``pytest`` alone runs the quick tier: the tests without a marker of ``SLOW``. What is named on the command line is run,
whatever its tier: ``pytest tests`` runs all tests, ``pytest -m training`` those of one tier.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: tiny arrays, and equal bytes on every machine

from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from labelloop.phantom import write_phantom

SLOW = ("slow", "training", "workflow", "slurm")
PLACES = {
    "benchmarks/test_errors.py": "slow",
    "benchmarks/test_fuzz.py": "slow",
    "benchmarks/test_planning.py": "slow",
    "inference/test_cli_infer.py": "slow",
    "inference/test_dicom_seg.py": "slow",
    "inference/test_out_of_memory.py": "slow",
    "labels/test_check.py": "slow",
    "labels/test_circumstances.py": "slow",
    "labels/test_fit.py": "slow",
    "labels/test_quality.py": "slow",
    "labels/test_registration.py": "slow",
    "phantom/test_collection.py": "slow",
    "phantom/test_mr.py": "slow",
    "report/test_page.py": "slow",
    "review/test_page.py": "slow",
    "run/test_cost.py": "slow",
    "steps/test_adaptation.py": "slow",
    "steps/test_external.py": "slow",
    "steps/test_predict.py": "slow",
    "test_mistakes.py": "slow",
    "test_stories.py": "slow",
    "test_wheel.py": "workflow",
    "training/test_channels.py": "training",
    "training/test_compiled.py": "training",
    "training/test_not_finite.py": "training",
    "training/test_planning.py": "slow",
    "training/test_slice_classifier.py": "training",
    "training/test_train.py": "training",
    "training/test_translator.py": "training",
    "training/test_work.py": "training",
    "workflow/test_slurm.py": "slurm",
    "workflow": "workflow",
}
"""The markers that all tests of a file or folder get, by its path. Single tests elsewhere carry theirs themselves."""

OF_CHANGES = (
    "test_chain.py", "test_changes.py", "test_edited_inputs.py", "test_objects.py", "test_opened.py", "test_scripts.py",
    "test_targets.py",
)  # fmt: skip
"""The files of the workflow's tests that run in one process; the others run in a second one."""

OF_THE_PHANTOM = ("steps/test_evaluation.py", "steps/test_training_inputs.py")
"""The quick tests of the `phantom`, which one process makes for them all."""

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=20, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=500, **COMMON)  # pytest --hypothesis-profile thorough
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.markexpr:
        config.option.markexpr = f"not ({' or '.join(SLOW)})"


def pytest_itemcollected(item: pytest.Item) -> None:
    place = item.path.relative_to(Path(__file__).parent).as_posix()
    for start in (place, place.partition("/")[0]):
        if start in PLACES:
            item.add_marker(PLACES[start])
            return


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: Slurm, then the workflow, also that of a wheel."""

    def turn(item: pytest.Item) -> int:
        if item.get_closest_marker("slurm"):
            return 0
        return 1 if item.get_closest_marker("workflow") else 2

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Keep in one process: tests of a file, of the phantom, of each half of the workflow, which share a finished run.

    Those of Slurm wait most of the time, so `make test` has a third worker for them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.removeprefix("tests/") in OF_THE_PHANTOM:
                return "of the phantom"
            folder, _, name = file.rpartition("/")
            if folder != "tests/workflow" or name == "test_slurm.py":
                return file
            return f"{folder}: {'changes' if name in OF_CHANGES else 'faults'}"

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the case table of eight CT cases and two MR patients on coarse grids. Not to be altered."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), cases=8, seed=3, spacing_mm=12, mr_patients=2)


@pytest.fixture
def close(monkeypatch):
    """Close the folders whose path ends so, as those of other users are: tests may run as root, who looks into all."""

    def closes(end: str) -> None:
        def look(place=".", real=None):
            if not isinstance(place, int) and Path(os.fsdecode(place)).match(end):
                raise PermissionError(13, "Permission denied", str(place))
            return real(place)

        for function in ("scandir", "listdir"):
            monkeypatch.setattr(os, function, partial(look, real=getattr(os, function)))

    return closes
