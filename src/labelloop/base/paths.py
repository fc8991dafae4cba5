"""Every path below the results of a run: the rules take them from here, and hand them to the steps.

A path is a text in which braces stand for what is not given: ``Paths("results").survey("geometry")`` is Snakemake's
pattern ``results/survey/{shard}.geometry.csv``. What a step handles case by case lies beside a *manifest*, in
``<folder>/shards/<shard>.csv``, which lists the files of ``<folder>``.
"""

from dataclasses import dataclass
from pathlib import Path

SHARD, MODEL, LABELS, PLAN, ARRAYS, BANK, NAME = (
    "{shard}", "{model}", "{labels}", "{plan}", "{arrays}", "{bank}", "{name}",
)  # fmt: skip
MANIFESTS = "shards"
WEIGHTS = ("model.json", "weights.pt")
"""The files of a model that whoever uses it reads."""
OUTPUTS = ("model.json", "weights.pt", "plans.json", "dataset.json", "training.jsonl", "curve.png", "cases.csv")
"""The files that a training leaves."""
SLICE_OUTPUTS = ("model.json", "weights.pt", "training.jsonl", "scores.csv", "cases.csv")
"""Those of the training of a slice classifier."""
TRANSLATOR_OUTPUTS = ("model.json", "weights.pt", "training.jsonl", "cases.csv")
"""Those of the training of a translator. The last of each is published last."""
ALIGNED = "aligned"
"""Folder of a translator's aligned cases, in its own."""
WRITTEN = (
    "annotation.csv", "benchmarks", "cases.csv", "errors", "evaluation", "geometry.csv", "groups.csv", "inference.json",
    "labels", "logs", "models", "predictions", "prepared", "quarantine.csv", "report", "review", "survey", "upright",
    "upright.csv",
)  # fmt: skip
"""Files and folders of the results that the rules write; no input may be, or lie in, one of them."""


def manifest_of(folder: str | Path, shard: str = SHARD) -> str:
    """Return the manifest of a shard's files in a folder."""
    return f"{folder}/{MANIFESTS}/{shard}.csv"


def folder_of(manifest: str | Path) -> Path:
    """Return the folder of the files that a manifest lists."""
    return Path(manifest).parent.parent


def shard_of(manifest: str | Path) -> str:
    """Return the shard of a manifest."""
    return Path(manifest).stem


def model_of(file: str | Path) -> Path:
    """Return the folder of a model from one of its files."""
    return Path(file).parent


def models_of(file: str | Path) -> Path:
    """Return the folder of all models from a file of one."""
    return Path(file).parent.parent


def results_of(page: str | Path) -> Path:
    """Return the folder of the results from its page."""
    return Path(page).parent.parent


def journal_of(manifest: str | Path) -> str:
    """Return the journal that leads to a manifest: what each case of the shard was made from, and what was found."""
    return f"{Path(manifest).parent}/.{shard_of(manifest)}.jsonl"


def kept_beside(output: str | Path) -> list[str]:
    """Return patterns of what a job keeps beside an output for its own next try, and no other job reads.

    A ledger's journal, lock and seal; the work folder of a training, and the alignments of a translator's.
    """
    path = Path(output)
    kept = [f"{path.parent}/.{path.name}.seal"]
    if path.parent.name == MANIFESTS:
        kept += [journal_of(path), f"{path.parent}/.{path.stem}.lock"]
    if path.name == WEIGHTS[0]:
        kept += [f"{path.parent}/{name}" for name in ("work/*", "work.*", ".work.lock", f"{ALIGNED}/*")]
    return kept


def reviews_of(results: str, labels: str, reviews: str | None = None) -> str:
    """Return the folder of what people decide about a label set. It lies outside the results.

    Args:
        labels: name of the label set in the recipe.
        reviews: folder of all label sets'; None: beside the results.
    """
    return f"{reviews.rstrip('/') if reviews else f'{results}-reviews'}/{labels}"


@dataclass(frozen=True)
class Paths:
    """The paths below ``results``, a folder as the configuration spells it."""

    results: str

    def table(self, name: str) -> str:
        """Table about all cases: cases, annotation, geometry, quarantine, groups, upright."""
        return f"{self.results}/{name}.csv"

    def survey(self, table: str, shard: str = SHARD) -> str:
        """Table about the cases of a shard: cases (its rows), geometry, annotation, quarantine, profiles."""
        return f"{self.results}/survey/{shard}.{table}.csv"

    @property
    def surveyed(self) -> str:
        """Folder of the survey's manifests."""
        return f"{self.results}/survey"

    @property
    def tested(self) -> str:
        """Table of the images that are tested on."""
        return f"{self.results}/survey/tested.csv"

    @property
    def upright(self) -> str:
        """Folder of what says which images are stored upside down, a table and a manifest for each shard."""
        return f"{self.results}/upright"

    def prepared(self, plan: str = PLAN) -> str:
        """Folder of prepared images."""
        return f"{self.results}/prepared/{plan}"

    def arrays(self, plan: str = PLAN, arrays: str = ARRAYS, labels: str = LABELS) -> str:
        """Folder of prepared label arrays."""
        return f"{self.prepared(plan)}/{arrays}/{labels}"

    def objects(self, plan: str = PLAN, bank: str = BANK) -> str:
        """Folder of tumor objects; their index lies in its folder ``index``."""
        return f"{self.prepared(plan)}/objects/{bank}"

    def structure(self, file: str, plan: str = PLAN) -> str:
        """Table or picture of translated images."""
        return f"{self.prepared(plan)}/{file}"

    def model_folder(self, model: str = MODEL) -> str:
        """Folder of a model."""
        return f"{self.results}/models/{model}"

    def model(self, file: str, model: str = MODEL) -> str:
        """File of a model."""
        return f"{self.model_folder(model)}/{file}"

    def predictions(self, model: str = MODEL) -> str:
        """Folder of a model's label maps; volumes and confidence lie in its folder ``confidence``."""
        return f"{self.model_folder(model)}/predictions"

    def labels(self, labels: str = LABELS) -> str:
        """Folder of a label set."""
        return f"{self.results}/labels/{labels}"

    @property
    def errors(self) -> str:
        """Folder of what known errors in the truth look like, a table a shard."""
        return f"{self.results}/errors"

    def evidence(self, labels: str = LABELS) -> str:
        """Folder of what is known of the labels of a set, a table a shard."""
        return f"{self.labels(labels)}/evidence"

    def transferred(self, labels: str = LABELS) -> str:
        """Folder of labels carried from other sequences; volumes lie in its folder ``confidence``."""
        return f"{self.labels(labels)}/transferred"

    def label_table(self, table: str, labels: str = LABELS) -> str:
        """Table of a label set over all shards: selected, provenance, verdicts, ..."""
        return f"{self.labels(labels)}/{table}.csv"

    def trusted(self, labels: str = LABELS) -> str:
        """Folder of the label maps of a set in which only what is trusted is drawn."""
        return f"{self.labels(labels)}/trusted"

    def review(self, labels: str = LABELS) -> str:
        """Review queue of a label set; its pictures lie in the folder of the same name without extension."""
        return f"{self.results}/review/{labels}.csv"

    def desk(self, labels: str = LABELS) -> str:
        """What whoever shows a review queue needs to know, as JSON."""
        return f"{self.results}/review/{labels}.json"

    def pictures(self, labels: str = LABELS) -> str:
        """Folder of the pictures of a review queue."""
        return f"{self.results}/review/{labels}"

    @property
    def final(self) -> str:
        """Folder of the final label maps."""
        return f"{self.results}/predictions"

    def final_table(self, table: str) -> str:
        """Table about all final label maps: summary, efficiency."""
        return f"{self.final}/{table}.csv"

    @property
    def inference(self) -> str:
        """What ``labelloop infer --results`` reads."""
        return f"{self.results}/inference.json"

    def scores(self, name: str = NAME) -> str:
        """Scores of a model, or of the final label maps (``final``)."""
        return f"{self.results}/evaluation/{name}.csv"

    def lesions(self, name: str = NAME) -> str:
        """The same of tumors."""
        return f"{self.results}/evaluation/lesions/{name}.csv"

    @property
    def scored(self) -> str:
        """Folder of the manifests of what was scored."""
        return f"{self.results}/evaluation/cases"

    @property
    def page(self) -> str:
        """The report."""
        return f"{self.results}/report/index.html"

    @property
    def attention(self) -> str:
        """What of it needs attention, as a text."""
        return f"{self.results}/report/attention.txt"

    @property
    def logs(self) -> str:
        """Folder of the logs, a folder a rule; jobs note their machine there."""
        return f"{self.results}/logs"

    def log(self, rule: str, job: str = "all") -> str:
        """Log of a job."""
        return f"{self.logs}/{rule}/{job}.log"

    @property
    def benchmarks(self) -> str:
        """Folder of the times that jobs took, a folder a rule."""
        return f"{self.results}/benchmarks"

    def benchmark(self, rule: str, job: str = "all") -> str:
        """Time of a job."""
        return f"{self.benchmarks}/{rule}/{job}.tsv"

    @property
    def lock(self) -> str:
        """What the process holds that works on the results."""
        return f"{self.results}/.lock"


def shard_table(folder: str, table: str = "", shard: str = SHARD) -> str:
    """Return a table about a shard's files in a folder: of the folder itself, or in its folder ``table``."""
    return f"{folder}/{table}/{shard}.csv" if table else f"{folder}/{shard}.csv"
