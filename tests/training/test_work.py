import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import tiny_training
import torch
from tiny_training import LONG, contents, make_job

from labelloop.base.errors import UserError
from labelloop.base.seals import look
from labelloop.training.nnunet import OUTPUTS, train
from labelloop.training.setup import precision_of
from labelloop.training.trainers import TRAINERS
from labelloop.training.work import Work


@pytest.fixture
def copied(model, tmp_path):
    """A copy of the finished model that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("end", "code", "resumed"),  # in the middle of epoch 4
    [("kill", -signal.SIGKILL, "resuming after epoch 2 of 4, update 0"),  # where the last checkpoint is of
     ("stop", 128 + signal.SIGTERM, "resuming after epoch 3 of 4, update 2")],
)  # fmt: skip
def test_ended_and_resumed_equals_uninterrupted(data, tmp_path, caplog, end, code, resumed):
    script = [sys.executable, tiny_training.__file__, str(data), str(tmp_path / "ended"), "11", end]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.returncode == code, done.stderr
    assert not (tmp_path / "ended" / "weights.pt").exists()
    caplog.set_level(logging.INFO)
    train(make_job(data, tmp_path / "ended", settings=LONG))
    assert resumed in caplog.text
    train(make_job(data, tmp_path / "whole", settings=LONG))
    assert contents(tmp_path / "ended") == contents(tmp_path / "whole")


LOADING = """
import os
import signal
import sys
import torch
from labelloop.training.loading import ahead

class Processes(torch.utils.data.Dataset):
    def __getitem__(self, draw):
        return os.getpid()

stream = ahead(Processes(), range(1000), workers=1)
print(next(stream), flush=True)
for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(next(stream), number)
for _ in range(100):
    next(stream)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
stream.close()
"""


@pytest.mark.parametrize(("end", "code"), [("close", 0), ("kill", -signal.SIGKILL)])
def test_loaders_outlive_a_stop_of_the_job_but_not_its_process(end, code):
    done = subprocess.run([sys.executable, "-c", LOADING, end], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    deadline = time.monotonic() + 30
    while _runs(int(done.stdout)):
        assert time.monotonic() < deadline, "the loader still runs"
        time.sleep(0.2)


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", ["supervised", "partial", "mean_teacher", "cross_pseudo"])
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 5)])
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(kind, number, step, data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    states = {} if kind in ("supervised", "partial") else {3: {}}
    settings = {"kind": kind} | ({"optimizer": "adamw"} if kind == "partial" else {})
    jobs = [make_job(data, tmp_path / n, states=states, settings=settings) for n in ("stopped", "whole")]
    with signalled_at(TRAINERS[kind], step, number), pytest.raises(SystemExit) as ended:
        train(jobs[0])
    assert ended.value.code == 128 + number
    assert not (tmp_path / "stopped" / "weights.pt").exists()
    train(jobs[0])
    assert f"resuming after epoch {step // 3} of 2, update {step % 3}" in caplog.text
    train(jobs[1])
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@contextmanager
def signalled_at(trainer, step, number):
    """Send this process a signal within training step ``step``, counted from 1."""
    original, count = trainer.train_step, [0]

    def counting(self, batch):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), number)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:  # which leaves no method of its own in a class that inherits it
        patch.setattr(trainer, "train_step", counting)
        yield


def test_work_in_another_precision_is_not_mixed(data, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("labelloop.training.setup.choose_precision", lambda *args, **options: "bf16")
    with signalled_at(TRAINERS["supervised"], 2, signal.SIGTERM), pytest.raises(SystemExit):
        train(make_job(data, tmp_path / "moved"))
    monkeypatch.setattr("labelloop.training.setup.choose_precision", lambda *args, **options: "fp32")
    for folder in ("moved", "stayed"):
        train(make_job(data, tmp_path / folder))
    assert "computes in" in caplog.text and "is in bf16" in caplog.text
    assert contents(tmp_path / "moved") == contents(tmp_path / "stayed")


def test_a_finished_training_stays_whatever_the_machine_computes_in(copied, data, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr("labelloop.training.setup.choose_precision", lambda *args, **options: "fp16")
    monkeypatch.setattr(TRAINERS["supervised"], "of", lambda job: pytest.fail("trained again"))
    train(make_job(data, copied))
    assert contents(copied) == before


def test_finished_training_is_published_again_without_training(copied, data, caplog, monkeypatch):
    before = contents(copied)
    for name in OUTPUTS:
        (copied / name).unlink()
    monkeypatch.setattr(TRAINERS["supervised"], "of", lambda job: pytest.fail("trained again"))
    caplog.set_level(logging.INFO)
    started = (copied / "work").stat().st_mtime
    train(make_job(data, copied))
    assert contents(copied) == before
    assert "nothing changed" in caplog.text
    assert all((copied / name).stat().st_mtime >= started for name in OUTPUTS)


def test_licenses_are_told_and_may_be_stated_anew_without_training(copied, data, monkeypatch):
    monkeypatch.setattr(TRAINERS["supervised"], "of", lambda job: pytest.fail("trained again"))
    before, licenses = contents(copied), {"datasets": {"btcv": "own"}, "models": {"zoo": "Apache-2.0"}}
    train(make_job(data, copied, licenses=licenses))
    after = contents(copied)
    assert json.loads(after["model.json"])["licenses"] == licenses
    assert {name for name in before if after[name] != before[name]} == {"model.json"}


def test_other_settings_train_anew_and_keep_the_former_work(copied, data, caplog):
    before = (copied / "weights.pt").read_bytes()
    train(make_job(data, copied, settings={"learning_rate": 0.02}))
    assert "training starts anew" in caplog.text
    assert (copied / "weights.pt").read_bytes() != before
    assert (copied / "work.superseded" / "finished" / "weights.pt").read_bytes() == before


def test_settings_changed_and_changed_back_find_the_finished_training_again(copied, data, caplog, monkeypatch):
    before = contents(copied)
    train(make_job(data, copied, settings={"learning_rate": 0.02}))
    other = contents(copied)
    monkeypatch.setattr(TRAINERS["supervised"], "of", lambda job: pytest.fail("trained again"))
    train(make_job(data, copied))
    assert contents(copied) == before
    assert "set aside before" in caplog.text
    train(make_job(data, copied, settings={"learning_rate": 0.02}))
    assert contents(copied) == other


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_kill_between_two_trainings_that_change_places_loses_neither(tmp_path, monkeypatch, killed_at):
    for name in ("old", "new"):
        Work(tmp_path / "work", name, "fp32").begin()
        (tmp_path / "work" / "checkpoint.pth").write_text(name)
    renames, rename = [], Path.rename

    def killed(self, target):
        if len(renames) == killed_at:
            raise KeyboardInterrupt
        renames.append(rename(self, target))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        Work(tmp_path / "work", "old", "fp32").begin()
    for name in ("old", "new"):
        assert not Work(tmp_path / "work", name, "fp32").begin()
        assert (tmp_path / "work" / "checkpoint.pth").read_text() == name


def test_lost_checkpoint_is_an_error_not_a_restart(data, tmp_path):
    job = make_job(data, tmp_path)
    (tmp_path / "work").mkdir()
    state = {"fingerprint": job.fingerprint, "precision": precision_of(job), "epochs": 7, "finished": False}
    (tmp_path / "work" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"7 epochs are done, but .*checkpoint.pth is gone"):
        train(job)


def test_damaged_checkpoint_is_an_error(data, tmp_path):
    job = make_job(data, tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint.pth").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read"):
        train(job)


def test_altered_weights_of_a_finished_training_are_an_error(copied, data):
    (copied / "work" / "finished" / "weights.pt").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"weights.pt altered"):
        train(make_job(data, copied))


JOB = """
import sys
from pathlib import Path
from labelloop.base.files import sha256, write_json, write_text
from labelloop.training.work import Work

folder, outputs = Path(sys.argv[1]), ("weights.pt", "model.json")
work = Work(folder / "work", "fingerprint", "fp32", outputs)
print("begun", flush=True)
if work.begin():
    print("finished before")
else:
    print("training", flush=True)
    sys.stdin.readline()
    write_text(work.finished / "weights.pt", "weights")
    write_json(work.finished / "model.json", {"weights_sha256": sha256(work.finished / "weights.pt")})
    work.finish(7)
work.publish(folder, "m", {})
"""


def test_a_second_job_of_the_same_training_waits_and_finds_it_finished(tmp_path):
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as first:
        assert [first.stdout.readline() for _ in range(2)] == ["begun\n", "training\n"]
        with subprocess.Popen(command, text=True, **pipes) as second:
            assert f"training in {tmp_path / 'work'}: process {first.pid} on " in second.stderr.readline()
            first.communicate("the second one waits\n")
            said, _ = second.communicate()
    assert first.returncode == second.returncode == 0
    assert said.splitlines() == ["begun", "finished before"]
    found = look(tmp_path / "model.json", tmp_path)
    assert found and not found.wrong and not found.moved


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_published_file_that_was_altered_is_found_whatever_its_date(copied, name):
    train_seal = look(copied / "model.json", copied)
    assert train_seal and not train_seal.wrong
    before = (copied / name).stat()
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(copied / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(copied / "model.json", copied).wrong == {name: "altered"}


@pytest.mark.parametrize("content", ["[1]", "{", '{"fingerprint": 3}', "\x00"])
def test_a_damaged_state_is_an_error_not_a_restart(tmp_path, content):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state.json"):
        Work(tmp_path / "work", "fingerprint", "fp32").begin()


def test_a_checkpoint_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Payload:
        def __reduce__(self):
            return Path.touch, (Path("executed"),)

    work = Work(tmp_path / "work", "fingerprint", "fp32")
    work.begin()
    torch.save({"fingerprint": "fingerprint", "precision": "fp32", "network": Payload()}, work.checkpoint)
    with pytest.raises(UserError, match=r"checkpoint.pth cannot be read .* Delete .* to train from the start"):
        work.load()
    assert not (tmp_path / "executed").exists()
