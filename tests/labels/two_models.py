"""A results folder in which two models have predicted labeled and unlabeled cases, as the steps find it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from labelloop.base.classes import load_classes
from labelloop.base.paths import manifest_of
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.annotation import to_table
from labelloop.images.volume import Geometry, read, write
from labelloop.steps.common import SurveyTables
from labelloop.steps.held_out import held_out
from labelloop.steps.labels import agree
from survey_files import tables_of

SCHEME = load_classes("flare")
GRID = Geometry((30, 24, 16), (4.0, 4.0, 5.0))
CLASSES = ("liver", "spleen")
SHARD = "train-000"
RULES = SCHEME.model_dump(mode="json") | {"rules": []}
"""No anatomy here: of two blocks in a void no rule can approve."""


def label_map(liver: int, spleen: int = 4) -> np.ndarray:
    """Return a map with a liver and a spleen of these widths (voxels)."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 6:18, 2 : 2 + liver] = SCHEME.ids["liver"]
    labels[5:9, 6:12, 20 : 20 + spleen] = SCHEME.ids["spleen"]
    return labels


@dataclass
class Loop:
    """A results folder in which two models have predicted some labeled and unlabeled cases."""

    results: Path
    rows: list[dict] = field(default_factory=list)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    predictions: dict[str, list[dict]] = field(default_factory=lambda: {"m": [], "n": []})
    patients: dict[str, str] = field(default_factory=dict)
    learned: dict[str, list[str]] = field(default_factory=lambda: {"m": [], "n": []})
    spec: dict = field(default_factory=dict)
    reviewed: list[dict] = field(default_factory=list)

    def add(self, case: str, truth: np.ndarray | None, by_m: np.ndarray, by_n: np.ndarray, **states: str) -> None:
        image, label = self.results / "images" / f"{case}.nii.gz", self.results / "truth" / f"{case}.nii.gz"
        write(image, np.full(GRID.shape, 60, np.float32), GRID)
        if truth is not None:
            write(label, truth, GRID)
        row = dict.fromkeys(TABLES["cases"], "") | {"case": case, "image": str(image), "dataset": "phantom"}
        row |= {"patient": self.patients.get(case, case), "label": str(label) if truth is not None else ""}
        self.rows.append(row | {"modality": "CT"})
        known = dict.fromkeys(CLASSES, "present") if truth is not None else {}
        self.states[case] = dict.fromkeys(SCHEME.names, "unknown") | known | states
        for model, array in (("m", by_m), ("n", by_n)):
            folder = self.results / "models" / model / "predictions"
            write(folder / f"{case}.nii.gz", array, GRID)
            entry = {"case": case, "status": "done", "file": f"{case}.nii.gz", "sha256": "", "key": "", "reason": ""}
            self.predictions[model].append(entry | {"sha256": f"{model}{array.sum()}{case}"})

    def table(self, settings: dict, **more) -> pd.DataFrame:
        """Run the steps, with ``more`` for the last; return the table of held-out labels."""
        survey, given = self.agreed(settings)
        out = self.labels / "held_out" / f"{SHARD}.csv"
        given |= {"table": out, "manifest": Path(manifest_of(out.parent, SHARD))} | more
        held_out(survey, rules=RULES, version=1, **given)
        return read_table(out, "held_out").set_index(["case", "class"])

    def carry(self, **maps: np.ndarray | None) -> dict[str, Path]:
        """Carry labels of another sequence to cases, or refuse to (None); return what steps are given of it."""
        folder = self.labels / "transferred"
        entries, rows = [], []
        for case, array in maps.items():
            found = (
                {"file": "", "sha256": ""} if array is None else {"file": f"{case}.nii.gz", "sha256": f"{array.sum()}"}
            )
            entries.append({"case": case, "status": "done", "key": "", "reason": ""} | found)
            if array is not None:
                write(folder / f"{case}.nii.gz", array, GRID)
                sizes = {name: float((array == SCHEME.ids[name]).sum()) for name in CLASSES}
                rows += [{"case": case, "class": n, "volume_ml": v, "confidence": None} for n, v in sizes.items()]
        carried, manifest = folder / "confidence.csv", Path(manifest_of(folder, SHARD))
        write_table(carried, pd.DataFrame(rows), "confidence")
        write_table(manifest, pd.DataFrame(entries), "manifest")
        return {"transferred": manifest, "carried": carried}

    def provenance(self, *unlabeled: tuple[str, str]) -> Path:
        """Write who labeled what: annotators what they know, models the rest, but for what nobody labeled."""
        rows = []
        for case, states in self.states.items():
            for name in CLASSES:
                source = "none" if (case, name) in unlabeled else "m+n" if states[name] == "unknown" else "truth"
                rows.append((case, name, source, "fuse", 0, 1.0))
        path = self.labels / "provenance" / f"{SHARD}.csv"
        write_table(path, pd.DataFrame(rows, columns=list(TABLES["provenance"])), "provenance")
        return path

    @property
    def labels(self) -> Path:
        return self.results / "labels" / "pseudo"

    def agreed(self, settings: dict) -> tuple[SurveyTables, dict]:
        """Write what comes before; return the survey, and what steps are given that ask about held-out labels."""
        self._survey()
        self.spec = {"predict": ["m", "n"], "classes": list(CLASSES), "fuse": "truth_first", "clean": []}
        self.spec |= {"check": "anatomy", "select": settings}
        known = {"m": ["organs"], "n": ["organs"]}
        volumes = [self._volumes(model) for model in ("m", "n")]
        predictions = [self.results / f"models/{model}/predictions/shards/{SHARD}.csv" for model in ("m", "n")]
        agreement = self.labels / "disagreement" / f"{SHARD}.csv"
        agree(predictions, ["m", "n"], [], known, "flare", agreement, Path(manifest_of(agreement.parent, SHARD)), 1)
        given = {
            "predictions": predictions,
            "disagreement": agreement,
            "volumes": volumes,
            "reviewed": self._reviewed(),
        }
        given |= {"learned": [self._learned(model) for model in ("m", "n")], "relatives": [self._relatives()]}
        return tables_of(self.results, SHARD, rows=self.rows), given | {"spec": self.spec, "known": known}

    def _reviewed(self) -> Path:
        rows = [dict.fromkeys(TABLES["reviewed"], "") | row for row in self.reviewed]
        write_table(self.results / "reviewed.csv", rows, "reviewed")
        return self.results / "reviewed.csv"

    def _relatives(self) -> Path:
        """Write the case table of all shards: patients may have cases in others, too."""
        own = {row["case"] for row in self.rows}
        others = {case: patient for case, patient in self.patients.items() if case not in own}
        rows = [self.rows[0] | {"case": case, "patient": patient} for case, patient in others.items()]
        write_table(self.results / "all_cases.csv", [*self.rows, *rows], "cases")
        return self.results / "all_cases.csv"

    def _survey(self) -> None:
        survey = self.results / "survey"
        write_table(survey / f"{SHARD}.annotation.csv", to_table(self.states, SCHEME.names), "annotation")
        empty = dict.fromkeys(TABLES["geometry"], 0) | {"image_sha256": "", "label_sha256": ""}
        rows = [empty | {"case": case} for case in self.states]
        write_table(survey / f"{SHARD}.geometry.csv", pd.DataFrame(rows), "geometry")

    def _volumes(self, model: str) -> Path:
        folder = self.results / "models" / model / "predictions"
        write_table(folder / "shards" / f"{SHARD}.csv", pd.DataFrame(self.predictions[model]), "manifest")
        found = []
        for case in self.states:
            array = read(folder / f"{case}.nii.gz").array
            sizes = {name: float((array == SCHEME.ids[name]).sum()) for name in CLASSES}
            found += [{"case": case, "class": n, "volume_ml": v, "confidence": 1.0} for n, v in sizes.items()]
        path = folder / "confidence" / f"{SHARD}.csv"
        write_table(path, pd.DataFrame(found), "confidence")
        return path

    def _learned(self, model: str) -> Path:
        split = dict.fromkeys(self.states, "validation") | dict.fromkeys(self.learned[model], "train")
        rows = [{"case": case, "split": s, "key": ""} for case, s in split.items()]
        path = self.results / "models" / model / "cases.csv"
        write_table(path, pd.DataFrame(rows), "training_cases")
        return path
