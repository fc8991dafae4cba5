"""The GPU lease: never two holders of one GPU, freed at any death, other people's choices kept."""

import logging
import os
import signal
import subprocess
import sys

import pytest

from labelloop import gpu_lease
from labelloop.gpu_lease import lease_gpu, list_gpus

HOLD = """
import os, sys, time
from pathlib import Path
from labelloop.gpu_lease import lease_gpu

folder = Path(sys.argv[1])
with lease_gpu("cuda", folder / "locks", ["0", "1"], poll_s=0.01) as gpu:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    mine = folder / f"in_use_{gpu}"
    mine.touch(exist_ok=False)  # fails if another process has this GPU
    time.sleep(0.1)
    mine.unlink()
"""
HOLD_FOREVER = """
import os, sys, time
from pathlib import Path
from labelloop.gpu_lease import lease_gpu

with lease_gpu("cuda", Path(sys.argv[1]), ["0"]):
    if not os.fork():  # like a data loader's worker, which may outlive its parent
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def test_six_processes_never_share_two_gpus(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(6)
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
        with lease_gpu("cuda", folder, ["0"]) as gpu:
            return gpu


def test_waiting_is_logged_once_and_names_the_holder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with lease_gpu("cuda", tmp_path, ["0"]):
        naps = iter([None, None, TimeoutError()])

        def nap(_):
            if error := next(naps):
                raise error

        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        monkeypatch.setattr(gpu_lease.time, "sleep", nap)
        with pytest.raises(TimeoutError), lease_gpu("auto", tmp_path, ["0"]):
            pass
    waits = [message for message in caplog.messages if "waits for a GPU" in message]
    assert waits == [f"process {os.getpid()} waits for a GPU: GPU 0 by process {os.getpid()}"]


@pytest.mark.parametrize(
    ("device", "environment", "gpus"),
    [
        ("cpu", {}, ["0"]),
        ("cuda", {}, []),
        ("auto", {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, ["0"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "3"}, ["0"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, ["0"]),
    ],
)
def test_nothing_to_lease_leaves_the_environment_alone(device, environment, gpus, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with lease_gpu(device, tmp_path / "locks", gpus) as gpu:
        assert gpu is None
        assert dict(os.environ) == before
    assert not (tmp_path / "locks").exists()


def test_one_of_the_users_gpus_is_chosen_and_the_environment_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with lease_gpu("cuda", tmp_path) as first:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first == "2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_DEVICE_ORDER" not in os.environ


def test_gpus_are_listed_as_nvidia_smi_prints_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho '  MIG 1g: x'\necho 'GPU 1: A (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert list_gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert list_gpus() == []
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []
