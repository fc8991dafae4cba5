"""A real Slurm on this machine for the tests: a CPU node, two nodes with fake GPUs, no systemd, no accounting.

Slurm looks for its configuration in /etc/slurm, whatever SLURM_CONF says (the executor plugin drops that variable). So
two files are written there and removed at the end; a machine that has a configuration of its own is left alone.
"""

import ctypes
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

ETC = Path("/etc/slurm")
MARK = "# Written by labelloop's tests. Remove it if no test is running.\n"
NODES = ("cpu01", "gpu01", "gpu02")

FLAGS = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "6", "--latency-wait", "10"]
"""What a Snakemake run here needs besides the profile: no accounting, hence squeue; short waits.

A first look at a job finds it finished after 6 s; 2 s would be too early, and the next look comes 10 s later."""

CONFIG = """\
ClusterName=labelloop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
AuthType=auth/munge
# a job of a lost node is put back for as long as its credential is valid
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# a job over its memory is killed
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# nodes may claim more CPUs and memory than this machine has
SlurmdParameters=config_overrides
DefMemPerCPU=1000
ReturnToService=2
# squeue must remember finished jobs
MinJobAge=3600
KillWait=30
# a node whose jobs end late, as on a busy machine, is not taken out of service
UnkillableStepTimeout=600
MailProg=/bin/true
GresTypes=gpu
NodeName=cpu01 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=8 RealMemory=64000 State=UNKNOWN
NodeName=gpu01 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=8 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
# for what gpu01 cannot take
NodeName=gpu02 NodeHostname={host} NodeAddr=127.0.0.1 Port=17003 CPUs=8 RealMemory=64000 Gres=gpu:2 Weight=9
PartitionName=cpu Nodes=cpu01 Default=YES MaxTime=7-00:00:00 State=UP
PartitionName=gpu Nodes=gpu0[1-2] MaxTime=7-00:00:00 State=UP
"""
GRES = "NodeName=gpu0[1-2] Name=gpu File=/dev/tty[0-1]\n"  # any two character devices pass for GPUs


def why_not() -> str | None:
    """Return why Slurm cannot be started here, or None if it can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    if not all(Path(f"/dev/tty{i}").is_char_device() for i in range(2)):
        return "no /dev/tty0 and /dev/tty1 to pass for GPUs"
    for name in ("slurm.conf", "gres.conf"):
        if (ETC / name).exists() and not (ETC / name).read_text().startswith(MARK):
            return f"this machine has its own {ETC / name}"
    return None


class Slurm:
    """Slurm's daemons, and what can happen to them. The kernel ends them, too, if the tests are killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}

    def start_munge(self) -> None:
        """Start an authentication service with key and socket of its own; the machine's munge is not touched."""
        key, socket = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={socket}", *files)
        _wait(socket.exists, 10, self.folder, "munge's socket")

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def wait_for_nodes(self) -> None:
        idle = ["idle"] * len(NODES)
        _wait(lambda: _ask("sinfo", "-h", "-N", "-o", "%T").split() == idle, 60, self.folder, "idle nodes")

    def kill_controller(self) -> None:
        _kill([self._daemons.pop("slurmctld")])

    def lose(self, node: str) -> None:
        """Let a node lose its power: its daemon and its jobs' processes end by kill -9; Slurm notes it as down."""
        jobs = _ask("squeue", "-h", "-w", node, "-t", "running", "-o", "%i").split()
        _kill([self._daemons.pop(node)])
        of_jobs = tuple(f"slurmstepd: [{job}." for job in jobs)
        for process in [p for p in psutil.process_iter() if of_jobs and _command(p).startswith(of_jobs)]:
            _kill([process, *process.children(recursive=True)])
        _ask("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def bring_back(self, node: str) -> None:
        """Switch a lost node on again."""
        self.start_node(node)
        _ask("scontrol", "update", f"nodename={node}", "state=resume")

    def close(self) -> None:
        """End all daemons, the last one first."""
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                _kill([process])

    def _start(self, name: str, *command: str) -> None:
        def end_with_parent() -> None:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG

        with (self.folder / f"{name}.out").open("a") as output:
            self._daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip


@contextmanager
def one_machine_slurm() -> Iterator[Slurm]:
    """Run Slurm for the block; two of these at once, in two test runs, take turns."""
    with ExitStack() as stack:
        lock = stack.enter_context((Path(tempfile.gettempdir()) / "labelloop-slurm.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="labelloop-slurm-", ignore_cleanup_errors=True))
        )
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        stack.enter_context(
            _file(ETC / "slurm.conf", MARK + CONFIG.format(folder=folder, host=platform.node().split(".")[0]))
        )
        stack.enter_context(_file(ETC / "gres.conf", MARK + GRES))
        slurm = Slurm(folder)
        stack.callback(slurm.close)
        slurm.start_munge()
        slurm.start_controller()
        for node in NODES:
            slurm.start_node(node)
        stack.callback(_end_jobs)
        slurm.wait_for_nodes()
        yield slurm


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(processes: Sequence[psutil.Process | subprocess.Popen]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for process in processes:
        if isinstance(process, subprocess.Popen):
            process.wait()


@contextmanager
def _file(path: Path, text: str) -> Iterator[None]:
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _end_jobs() -> None:
    """Cancel what still runs, so that no job outlives the daemons."""
    subprocess.run(["scancel", "--user=root"], capture_output=True)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and _ask("squeue", "-h", "-t", "pending,running,completing"):
        time.sleep(0.2)


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _wait(ready, limit_s: float, folder: Path, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"one-machine Slurm: no {what} after {limit_s} s\n{logs}")
        time.sleep(0.2)
