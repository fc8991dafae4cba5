"""Repair: what was deleted, altered or damaged in the results since it was made is found, told, and made anew.

To look changes nothing, so a dry run may. Snakemake is told which files to make again; it deletes them when their jobs
start, after the results folder was claimed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from labelloop.base.paths import model_of
from labelloop.base.seals import Finding, look
from labelloop.base.shards import look_at_manifests
from labelloop.recipe import TRUTH
from labelloop.run.chain import Arrays, images_of
from labelloop.run.run import Run


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
        """Do what needs the results folder to be claimed: note new times of copied files."""
        for found in self._moved:
            found.renew()

    def _findings(self) -> Iterator[tuple[Path, Finding]]:
        yield from look_at_manifests(self._folders(), set(self._run.shards.all))
        for model in (*self._run.chain.models, *self._run.external.of_nnunet):
            file = Path(self._run.paths.model("model.json", model))
            folder = model_of(file)
            found = look(file, folder)
            if not found:
                continue
            for name, what in found.wrong.items():
                yield folder / name, Finding(found.seal, {name: what})
            if not found.wrong:
                yield file, found
        for labels in self._run.chain.labels:
            queue = Path(self._run.paths.review(labels))
            found = look(queue, queue.parent)
            if found:
                yield queue, found

    def _folders(self) -> list[str]:
        """Return the folders of the files that manifests list."""
        paths, chain = self._run.paths, self._run.chain
        folders = [paths.predictions(model) for model in (*chain.models, *chain.external)]
        folders += [paths.labels(name) for name in chain.labels]
        folders += [paths.transferred(name) for name in chain.labels]
        folders += [paths.trusted(name) for name in chain.labels]
        for plan in sorted({images_of(chain, plan) for plan in chain.plans}):
            folders.append(paths.prepared(plan))
            for kind in get_args(Arrays):
                folders += [paths.arrays(plan, kind, name) for name in (TRUTH, *chain.labels)]
            folders += [paths.objects(plan, model) for model in chain.models]
        return [*folders, paths.final]
