"""Repair: what was deleted, altered or damaged in the results since it was made is found, told, and made anew.

To look changes nothing, so a dry run may. Snakemake is told which files to make again; it deletes them when their jobs
start, after the results folder was claimed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from labelloop.chain import Arrays, images_of
from labelloop.recipe import TRUTH
from labelloop.run import Run
from labelloop.seals import Finding, look
from labelloop.shards import look_at_manifests


class Repair:
    """What a look over the results of a run found.

    ``broken``: files to make anew, as the rules spell them, each with what is wrong.
    """

    def __init__(self, run: Run):
        self._run, self._results = run, Path(run.results)
        self.broken: dict[str, str] = {}
        self._moved: list[Finding] = []
        for file, found in self._findings():
            if found.wrong:
                name, what = next(iter(found.wrong.items()))
                more = f" and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
                self.broken[f"{run.results}/{file.relative_to(self._results).as_posix()}"] = f"{name} {what}{more}"
            elif found.moved:
                self._moved.append(found)

    def begin(self) -> None:
        """Do what needs the results folder to be claimed: note new times of copied files, remove a stale table."""
        for found in self._moved:
            found.renew()
        if not self._run.upright:  # left by another recipe; the steps would go by it
            (self._results / "upright.csv").unlink(missing_ok=True)

    def _findings(self) -> Iterator[tuple[Path, Finding]]:
        yield from look_at_manifests(self._folders())
        for model in self._run.chain.models:
            folder = self._results / "models" / model
            found = look(folder / "model.json", folder)
            if not found:
                continue
            for name, what in found.wrong.items():
                yield folder / name, Finding(found.seal, {name: what})
            if not found.wrong:
                yield folder / "model.json", found
        for labels in self._run.chain.labels:
            queue = self._results / "review" / f"{labels}.csv"
            found = look(queue, queue.parent)
            if found:
                yield queue, found

    def _folders(self) -> list[Path]:
        """Return the folders whose ``shards`` hold manifests."""
        results, chain = self._results, self._run.chain
        folders = [results / "models" / model / "predictions" for model in chain.models]
        folders += [results / "labels" / name for name in chain.labels]
        folders += [results / "labels" / name / "transferred" for name in chain.labels]
        for plan in sorted({images_of(chain, plan) for plan in chain.plans}):
            prepared = results / "prepared" / plan
            folders += [prepared, *(prepared / kind / n for kind in get_args(Arrays) for n in (TRUTH, *chain.labels))]
            folders += [prepared / "objects" / model for model in chain.models]
        return [*folders, results / "predictions"]
