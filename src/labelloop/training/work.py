"""The work folder of a training: checkpoints, resuming, and the finished files behind the published ones.

Snakemake deletes declared outputs before it runs a job again. What took days to compute therefore lives here, in
``<model>/work``, which Snakemake does not know: ``state.json`` says whose training this is and how far it came,
``checkpoint.pth`` is its last checkpoint, ``finished/`` holds the finished files. Publishing them costs no time.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelloop.base.documents import load_tensors, read_json
from labelloop.base.errors import UserError
from labelloop.base.files import atomic, link, sha256, write_json
from labelloop.base.locks import Lock, hold
from labelloop.base.paths import OUTPUTS
from labelloop.base.seals import put_seal_of_files

log = logging.getLogger(__name__)
NAMED = {"model.json": "name", "plans.json": "dataset_name"}
"""The key of each file that holds the model's name."""


class Work:
    """The work folder of the training with ``fingerprint``.

    Args:
        folder: the folder, made when needed.
        precision: what the training computes in. One that is not finished goes on in its own precision only; a finished
            one stays, whatever this machine would compute in.
        outputs: the declared outputs of the training.
    """

    def __init__(self, folder: Path, fingerprint: str, precision: str, outputs: tuple[str, ...] = OUTPUTS):
        self.folder, self.fingerprint, self.precision, self._outputs = folder, fingerprint, precision, outputs
        self.checkpoint, self.finished = folder / "checkpoint.pth", folder / "finished"
        self._state = folder / "state.json"
        self._lock: Lock | None = None

    def begin(self) -> bool:
        """Return whether this training is finished. The work of another training is set aside beside the folder.

        Work of this training that was set aside is taken back. Another job that trains this model is waited for;
        from then on the folder is this process's own until :meth:`publish`, or until it ends.

        Raises:
            UserError: when the state claims progress whose files are gone or altered.
        """
        self._lock = hold(self.folder.with_name(f".{self.folder.name}.lock"), f"training in {self.folder}")
        state = _state_of(self.folder)
        if not self._owns(state):
            state = self._exchange(state)
        if state is None:
            state = self._note(epochs=0, finished=False)
        if state["finished"]:
            self._check_finished()
            return True
        if state["epochs"] and not self.checkpoint.is_file():
            raise UserError(
                f"{self._state} says that {state['epochs']} epochs are done, but {self.checkpoint} is gone. "
                f"Put the checkpoint back, or delete {self.folder} to train from the start."
            )
        return False

    def save(self, epochs: int, content: dict[str, Any]) -> None:
        """Write a checkpoint after ``epochs`` epochs; a kill leaves the one before or this one."""
        import torch

        with atomic(self.checkpoint) as temporary:
            torch.save(content | {"fingerprint": self.fingerprint, "precision": self.precision}, temporary)
        self._note(epochs, finished=False)

    def load(self) -> dict[str, Any]:
        """Return the last checkpoint, on the CPU; nothing in it is executed.

        Raises:
            UserError: when it is damaged or belongs to another training.
        """
        content = load_tensors(self.checkpoint, f"Delete {self.folder} to train from the start.")
        if (content.get("fingerprint"), content.get("precision")) != (self.fingerprint, self.precision):
            raise UserError(f"{self.checkpoint} belongs to another training. Delete {self.folder} to start anew.")
        return content

    def write_weights(self, weights: Mapping[str, Any]) -> str:
        """Write ``weights.pt`` among the finished files, from the CPU; return its content hash."""
        import torch

        path = self.finished / "weights.pt"
        with atomic(path) as temporary:
            torch.save({"weights": {name: value.detach().cpu() for name, value in weights.items()}}, temporary)
        return sha256(path)

    def finish(self, epochs: int) -> None:
        """Note that all files are in ``finished``; the checkpoint is no longer needed."""
        self._note(epochs, finished=True)
        self.checkpoint.unlink(missing_ok=True)

    def publish(self, target: Path, name: str, licenses: Mapping[str, Mapping[str, str]]) -> None:
        """Put the finished files into ``target``, with the time of now, so that they are newer than their inputs.

        Args:
            name: of the model; it had another one when it was the last of fewer or more rounds.
            licenses: of what it learned from, for its ``model.json``; they may have been stated anew since.
        """
        told: dict[str, dict[str, Any]] = {"model.json": {"licenses": dict(licenses)}}
        for file, key in NAMED.items():
            path = self.finished / file
            content = read_json(path) if file in self._outputs else {}
            now = content | {key: name} | told.get(file, {})
            if content and now != content:
                write_json(path, now)
        for name in self._outputs:
            link(self.finished / name, target / name)
            os.utime(target / name)
        put_seal_of_files(target / "model.json", target, self._outputs)
        if self._lock:
            self._lock.release()

    def _note(self, epochs: int, finished: bool) -> dict[str, Any]:
        state = {
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "epochs": epochs,
            "finished": finished,
        }
        write_json(self._state, state)
        return state

    def _exchange(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Set the work of another training aside, take back that of this one; return its state, None without.

        A kill at any line loses nothing: the next call goes on from there.
        """
        aside, returning = (self.folder.with_name(f"{self.folder.name}.{word}") for word in ("superseded", "returning"))
        if self._owns(_state_of(aside)):
            _remove(returning)
            aside.rename(returning)
        if state:
            log.warning(
                "%s after %d epochs: training %s; the former work is kept in %s until the next change",
                self._change(state), state["epochs"],
                "goes on from work that was set aside before" if self._owns(_state_of(returning)) else "starts anew",
                aside,
            )  # fmt: skip
            _remove(aside)
            self.folder.rename(aside)
        if self._owns(_state_of(returning)) and not self.folder.exists():
            returning.rename(self.folder)
        return _state_of(self.folder)

    def _owns(self, state: dict[str, Any] | None) -> bool:
        """Say whether a state is of this training: of its fingerprint, and finished or in its precision."""
        if not state or state["fingerprint"] != self.fingerprint:
            return False
        return state["finished"] or state["precision"] == self.precision

    def _change(self, state: dict[str, Any]) -> str:
        if state["fingerprint"] != self.fingerprint:
            return f"data or settings changed (fingerprint {self.fingerprint}, was {state['fingerprint']})"
        return f"this machine computes in {self.precision}, the work so far is in {state['precision']}"

    def _check_finished(self) -> None:
        missing = [name for name in self._outputs if not (self.finished / name).is_file()]
        if not missing:
            model = read_json(self.finished / "model.json")
            if sha256(self.finished / "weights.pt") == model.get("weights_sha256"):
                return
        what = f"{', '.join(missing)} missing" if missing else "weights.pt altered"
        raise UserError(f"{self.finished}: {what} in a finished training. Delete {self.folder} to train anew.")


def _state_of(folder: Path) -> dict[str, Any] | None:
    """Return the state of a work folder; None when there is none. Raises UserError when it is damaged."""
    path = folder / "state.json"
    if not path.is_file():
        return None
    state = {"precision": ""} | read_json(path)
    kinds = {"fingerprint": str, "precision": str, "epochs": int, "finished": bool}
    if not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path}: damaged. Delete {folder} to train from the start.")
    return state


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
