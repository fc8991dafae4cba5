"""The GPU lease: never two holders of one GPU, freed at any death, other people's choices kept."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from labelloop.base import gpu_lease
from labelloop.base.errors import UserError
from labelloop.base.gpu_lease import lease_gpus, usable_gpus

HOLD = """
import os, sys, time
from pathlib import Path
from labelloop.base.gpu_lease import lease_gpus

folder = Path(sys.argv[1])
number = int(sys.argv[2])
with lease_gpus("cuda", number, folder / "locks", ["0", "1", "2"], poll_s=0.01) as gpus:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(gpus)
    assert len(gpus) == number
    mine = [folder / f"in_use_{gpu}" for gpu in gpus]
    for file in mine:
        file.touch(exist_ok=False)  # fails if another process has this GPU
    time.sleep(0.1)
    for file in mine:
        file.unlink()
"""
HOLD_FOREVER = """
import os, sys, time
from pathlib import Path
from labelloop.base.gpu_lease import lease_gpus

with lease_gpus("cuda", 1, Path(sys.argv[1]), ["0"]):
    if not os.fork():  # like a data loader's worker, which may outlive its parent
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def test_six_processes_never_share_three_gpus_and_never_wait_for_each_other(tmp_path):
    """Two that hold one of the two that each needs would wait for ever."""
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), number], stderr=subprocess.PIPE, text=True)
        for number in "221321"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def test_kill_9_frees_the_gpu_even_if_a_worker_lives_on(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(TimeoutError):  # it is really taken
                _acquire_once(tmp_path)
            holder.kill()
            holder.wait()
            os.kill(worker, 0)  # the worker is still there
            assert _acquire_once(tmp_path) == "0"
        finally:
            os.kill(worker, signal.SIGKILL)


def _acquire_once(folder):
    def give_up(_):
        raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_lease.time, "sleep", give_up)
        with lease_gpus("cuda", 1, folder, ["0"]) as (gpu,):
            return gpu


def test_waiting_is_logged_once_and_names_the_holder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with lease_gpus("cuda", 1, tmp_path, ["0"]):
        naps = iter([None, None, TimeoutError()])

        def nap(_):
            if error := next(naps):
                raise error

        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setattr(gpu_lease.time, "sleep", nap)
        with pytest.raises(TimeoutError), lease_gpus("auto", 1, tmp_path, ["0"]):
            pass
    waits = [message for message in caplog.messages if "waits for a GPU" in message]
    (wait,) = waits
    assert wait.startswith(f"process {os.getpid()} waits for a GPU: GPU 0 by process {os.getpid()} on ")


@pytest.mark.parametrize(
    ("device", "environment", "gpus"),
    [
        ("cpu", {}, ["0"]),
        ("cuda", {}, []),
        ("auto", {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"}, None),
        ("auto", {"SLURM_JOB_ID": "7"}, ["0"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "3"}, None),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_nothing_to_lease_leaves_the_environment_alone(device, environment, gpus, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with lease_gpus(device, 2, tmp_path / "locks", gpus) as leased:
        assert leased == ()
        assert dict(os.environ) == before
    assert not (tmp_path / "locks").exists()


def test_one_of_the_users_gpus_is_chosen_and_the_environment_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with lease_gpus("cuda", 1, tmp_path) as (first,):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first == "2"
        assert "CUDA_DEVICE_ORDER" not in os.environ, "the user's numbers would mean other GPUs"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_DEVICE_ORDER" not in os.environ


def test_an_interactive_slurm_job_shares_out_its_gpus(tmp_path, monkeypatch):
    """As ``salloc --gres=gpu:2`` gives them; another job's GPUs may go by the same numbers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with lease_gpus("auto") as (first,):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # another process of the same job
        with lease_gpus("auto") as (second,):
            monkeypatch.setenv("SLURM_JOB_ID", "8")
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
            with lease_gpus("auto") as (other,):
                assert (first, second, other) == ("0", "1", "0")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Return a function that puts an ``nvidia-smi`` in place: what it lists, and what it tells of use."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(cards, use=""):
        (tmp_path / "cards").write_text(cards)
        (tmp_path / "use").write_text(use)
        tool.write_text(f'#!/bin/sh\ncase "$1" in -L) cat {tmp_path}/cards;; *) cat {tmp_path}/use;; esac\n')
        tool.chmod(0o755)
        return tool

    return put


@pytest.fixture
def four_gpus(smi):
    """Four GPUs, none of them cut in parts."""
    return smi("".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n}{n}0-ab)\n" for n in range(4)))


CUT = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-a0b1c2d3)
"""
PARTS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]


@pytest.mark.parametrize(
    ("visible", "usable"),
    [
        (None, [*PARTS, "1"]),
        ("0", PARTS),  # CUDA would show the first part alone
        ("GPU-5d5b,GPU-a0b1c2d3", [*PARTS, "1"]),
        (PARTS[1], PARTS[1:]),
        ("1,1", ["1"]),
    ],
)
def test_each_part_of_a_gpu_that_is_cut_can_be_leased(smi, monkeypatch, visible, usable):
    smi(CUT)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == usable


def test_parts_are_leased_one_to_a_job_also_in_slurm(smi, tmp_path, monkeypatch):
    smi(CUT)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(PARTS))
    with lease_gpus("auto", 1, tmp_path) as (first,):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first == PARTS[0]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(PARTS))  # another process of the same job
        with lease_gpus("auto", 1, tmp_path) as (second,):
            assert second == PARTS[1]


def test_parts_of_a_gpu_do_not_work_together(smi, tmp_path):
    smi(CUT)
    with lease_gpus("cuda", 2, tmp_path) as leased:
        assert leased == (PARTS[0],)


@pytest.mark.parametrize(("number", "leased"), [(2, ("2", "3")), (4, ("2", "3"))])
def test_several_gpus_are_leased_at_once_as_many_as_there_are(four_gpus, tmp_path, monkeypatch, number, leased):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with lease_gpus("cuda", number, tmp_path) as found:
        assert found == leased
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_one_that_needs_two_gpus_keeps_its_turn_and_lets_go_when_it_is_stopped(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def another_comes(_):
        monkeypatch.setattr(gpu_lease.time, "sleep", stopped)
        with lease_gpus("cuda", 1, tmp_path, ["0", "1"]):  # GPU 1 is kept for the one that came first
            pass

    def stopped(_):
        raise TimeoutError

    monkeypatch.setattr(gpu_lease.time, "sleep", another_comes)
    with lease_gpus("cuda", 1, tmp_path, ["0"]):
        with pytest.raises(TimeoutError), lease_gpus("cuda", 2, tmp_path, ["0", "1"]):
            pass
        assert f"waits for a GPU: after process {os.getpid()} on" in caplog.text
        with lease_gpus("cuda", 1, tmp_path, ["0", "1"]) as leased:
            assert leased == ("1",)


def test_a_gpu_named_by_number_and_by_uuid_is_leased_once(four_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-220-ab,GPU-33")
    with lease_gpus("cuda", 1, tmp_path) as (first,):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # another run
        with lease_gpus("cuda", 1, tmp_path) as (second,):
            assert (first, second) == ("2", "3")


@pytest.mark.parametrize(
    ("use", "leased"),
    [
        ("0, Default, 5\n1, Default, 3", "0"),
        ("0, Default, 30000\n1, Default, 3", "1"),  # somebody else's training
        ("0, Exclusive_Process, 3\n1, Default, 3", "0"),
        ("0, Exclusive_Process, 900\n1, Default, 30000", "1"),  # shared rather than refused
        ("0, Prohibited, 0\n1, Default, 3", "1"),
        ("0, [N/A], [N/A]\nnvidia-smi has failed", "0"),
    ],
)
def test_a_gpu_that_others_use_is_the_last_choice_and_no_choice_in_exclusive_mode(smi, tmp_path, use, leased, caplog):
    smi("GPU 0: A (UUID: GPU-a)\nGPU 1: A (UUID: GPU-b)\n", use + "\n")
    with lease_gpus("cuda", 1, tmp_path) as (gpu,):
        assert gpu == leased
    assert ("is shared" in caplog.text) == ("Exclusive_Process, 900" in use)


def test_exclusive_gpus_of_others_are_waited_for(smi, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    cards = "GPU 0: A (UUID: GPU-a)\nGPU 1: A (UUID: GPU-b)\n"
    smi(cards, "0, Exclusive_Process, 900\n1, Exclusive_Process, 800\n")
    monkeypatch.setattr(
        gpu_lease.time, "sleep", lambda _: smi(cards, "0, Exclusive_Process, 900\n1, Exclusive_Process, 0\n")
    )
    with lease_gpus("cuda", 1, tmp_path) as (gpu,):
        assert gpu == "1"
    assert "GPU 0 by another program or user (compute mode Exclusive_Process)" in caplog.text


@pytest.mark.parametrize(
    ("visible", "usable"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2", ["2"]),
        ("2, 3", ["2", "3"]),
        ("", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("MIG-GPU-1/2/0", ["MIG-GPU-1/2/0"]),
    ],
)
def test_usable_gpus_are_those_that_the_user_or_slurm_names_else_all(four_gpus, monkeypatch, visible, usable):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == usable


def test_without_a_driver_there_is_no_gpu(four_gpus, tmp_path, monkeypatch):
    four_gpus.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert usable_gpus() == []
    four_gpus.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usable_gpus() == []


def test_a_part_of_a_gpu_is_leased_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-1/1/0,MIG-GPU-1/2/0")
    with lease_gpus("cuda", 1, tmp_path) as (gpu,):
        assert gpu == "MIG-GPU-1/1/0"


def linked(folder: Path, victim: Path) -> None:
    folder.symlink_to(victim)


def writable(folder: Path, victim: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def a_file(folder: Path, victim: Path) -> None:
    folder.touch()


def somebody_elses(folder: Path, victim: Path) -> None:
    folder.mkdir()
    os.chown(folder, 65534, 65534)


@pytest.mark.parametrize("trap", [linked, writable, a_file, somebody_elses])
def test_a_folder_that_somebody_else_prepared_is_refused(tmp_path, monkeypatch, trap):
    if trap is somebody_elses and os.getuid():
        pytest.skip("only root can make another user's folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    victim = tmp_path / "victim"
    (tmp_path / "shared").mkdir()
    victim.mkdir()
    trap(tmp_path / "shared" / f"labelloop-{os.getuid()}", victim)
    with pytest.raises(UserError, match="set TMPDIR to a folder of your own"), lease_gpus("cuda", gpus=["0"]):
        pass
    assert not list(victim.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "gpu0.lock").symlink_to(victim)
    with pytest.raises(UserError, match="Remove the symbolic link"), lease_gpus("cuda", 1, tmp_path, ["0"]):
        pass
    assert victim.read_text() == "mine"
