"""The cases of a run, dealt out to shards: what the rules ask of one of them. No image is opened here."""

from collections.abc import Collection, Sequence
from functools import cached_property

from labelloop.base.files import digest, stamp
from labelloop.base.sequences import flat
from labelloop.base.shards import assign_shards
from labelloop.cases.table import Case
from labelloop.images.datasets import read_dataset
from labelloop.images.detached import known_parts


class Shards:
    """Fixed blocks of cases, each handled by one job.

    Args:
        cases: usable rows of the case table.
        size: cases in a shard, at most.
        final_roles: roles (train, test) whose cases get final label maps; all cases when there is none of them.
    """

    def __init__(self, cases: Sequence[Case], size: int, final_roles: Collection[str]):
        self.cases: dict[str, list[Case]] = {}
        self._final_roles = final_roles
        shard_of = assign_shards([(case.case, case.role) for case in cases], size)
        for case in cases:
            self.cases.setdefault(shard_of[case.case], []).append(case)

    @cached_property
    def all(self) -> list[str]:
        """Names of all shards."""
        return sorted(self.cases)

    @cached_property
    def train(self) -> list[str]:
        """Shards whose cases models learn from."""
        return [shard for shard in self.all if shard.startswith("train-")]

    @cached_property
    def test(self) -> list[str]:
        """Shards whose truth is hidden from the loop and used for evaluation only."""
        return [shard for shard in self.all if shard.startswith("test-")]

    @cached_property
    def final(self) -> list[str]:
        """Shards that get final label maps."""
        return [shard for shard in self.all if shard.split("-")[0] in self._final_roles] or self.all

    def size(self, shard: str) -> int:
        """Return the number of cases of a shard."""
        return len(self.cases[shard])

    def rows(self, shard: str) -> list[dict[str, str]]:
        """Rows of the case table of one shard, as plain dictionaries; the survey writes them down for all steps."""
        return [case.model_dump() for case in self.cases[shard]]

    def files(self, shard: str) -> list[str]:
        """Image and label files of a shard that exist; the survey sets aside the cases of those that do not."""
        named = flat(case.files for case in self.cases[shard])
        return [str(part) for part in flat(map(known_parts, named)) if part.is_file()]

    def stamps(self, shard: str) -> str:
        """Fingerprint of size and date of a shard's files, as Snakemake takes no notice of files with older dates."""
        return digest({path: stamp(path) for path in self.files(shard)})

    def datasets(self, shard: str) -> dict[str, str]:
        """Fingerprint of what each data set file says that a shard's cases name."""
        return {name: self._datasets[name] for name in sorted({case.dataset for case in self.cases[shard]})}

    @cached_property
    def _datasets(self) -> dict[str, str]:
        named = {case.dataset for case in flat(self.cases.values())}
        return {name: digest(read_dataset(name).content) for name in named}

    def of_same_patients(self, shard: str) -> list[str]:
        """Return the shards that hold cases of a shard's patients, the shard itself among them."""
        patients = {case.patient for case in self.cases[shard]}
        return sorted(set().union(*(self._of_patient[patient] for patient in patients)))

    @cached_property
    def _of_patient(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for shard, cases in self.cases.items():
            for case in cases:
                found.setdefault(case.patient, set()).add(shard)
        return found
