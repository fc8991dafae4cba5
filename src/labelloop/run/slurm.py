"""Slurm, as Snakemake's plugin sees it: partitions, jobs of a former run, patience while the controller is away."""

import functools
import logging
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

COLUMNS = "%i|%T|%Z|%k"
"""Job id, state, working folder, comment."""
PLUGIN = "snakemake_executor_plugin_slurm"
PUT_BACK = ("PREEMPTED", "NODE_FAIL")
"""States of jobs that Slurm is to put back into the queue, for which the plugin waits."""
PAUSE_S = 10.0
"""Between two looks whether a controller that is away is back, so that a job can be submitted."""
AWAY = "Slurm does not answer. Jobs in the queue go on, and this run waits: nothing needs to be done."
BACK = "Slurm answers again."
NO_ACCOUNTS = (
    "Slurm keeps no accounts here (sacct does not answer): no report of what the jobs used of what they asked for."
)

States = dict[str, str]
"""Slurm's word for the state of each job, by its id."""
Ask = Callable[[str, logging.Logger], Awaitable[tuple[States | None, float | None]]]


def jobs_in_queue(folder: Path) -> dict[str, str]:
    """Return this user's jobs that a Snakemake in ``folder`` submitted: id to rule, wildcards and state.

    Snakemake's Slurm plugin names the rule in the comment of a job. Empty where there is no Slurm, or no answer.
    """
    try:
        answer = subprocess.run(
            ["squeue", "--me", "--noheader", "--format", COLUMNS], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        number, state, where, comment = [*line.strip().split("|", 3), "", "", ""][:4]
        if comment.startswith("rule_") and Path(where) == folder:
            rule, _, wildcards = comment.removeprefix("rule_").partition("_wildcards_")
            found[number] = f"{rule} {wildcards}".strip() + f", {state.lower()}"
    return found


def told(jobs: dict[str, str], most: int = 10) -> str:
    """Return what to tell the user of jobs that a former run left."""
    shown = "; ".join(f"{number} ({what})" for number, what in list(jobs.items())[:most])
    more = f"; and {len(jobs) - most} more" if len(jobs) > most else ""
    return (
        f"{len(jobs)} jobs of a former run of this folder are still in the Slurm queue: {shown}{more}. They go on, and "
        "jobs of this run that would do the same wait for them. They may also be of a run that goes on, with other "
        f"results. If there is none, this ends them: scancel {' '.join(jobs)}"
    )


@functools.cache
def most_of(resource: str, partitions: Path | None, gpu: bool) -> float:
    """Return the most of a resource that a partition gives to a job; infinite where nobody says.

    A job that asks for more fits into none of the partitions, and the plugin sends it to the cluster's default one,
    which may have no GPU. A job without a GPU fits into partitions that have some, too.

    Args:
        resource: ``runtime`` (minutes) or ``mem_mb``.
        partitions: the file that tells the plugin which partitions there are.
        gpu: whether the job asks for a GPU.
    """
    if partitions is None:
        return math.inf
    from snakemake_executor_plugin_slurm.partitions import read_partition_file

    limits = [partition.limits for partition in read_partition_file(partitions)]
    fitting = [limit for limit in limits if limit.max_gpu > 0 or not gpu]
    return max((getattr(limit, f"max_{resource}") for limit in fitting), default=math.inf)


def be_patient(pause_s: float = PAUSE_S) -> None:
    """Let Snakemake's Slurm plugin wait while Slurm does not answer, and understand every end of a job.

    Version 2.8.0 forgets all jobs when Slurm does not answer, and waits for them forever; a submission without an
    answer counts as a failed job. Nothing happens where the plugin is not installed.
    """
    plugin = sys.modules.get(PLUGIN)
    if plugin is None:
        return
    away = _Away()
    plugin.query_job_status = StateQuery(plugin, away)  # type: ignore[attr-defined]
    submit = plugin.Executor.run_job

    @functools.wraps(submit)
    def submit_when_slurm_answers(self: Any, job: Any) -> None:
        while not _answers():
            away.tell(self.logger)
            time.sleep(pause_s)
        submit(self, job)

    plugin.Executor.run_job = submit_when_slurm_answers
    plugin.create_efficiency_report = _where_accounts_are_kept(plugin.create_efficiency_report)  # type: ignore[attr-defined]


class StateQuery:
    """The plugin's question for the states of its jobs, with an answer for every job, in words that the plugin knows.

    - Without accounting, sacct fails: squeue is asked.
    - No answer: no state is known. The plugin keeps such jobs and asks again.
    - ``CANCELLED by 1000``, as sacct writes it, becomes ``CANCELLED``.
    - A job that stays ``PREEMPTED`` or ``NODE_FAIL`` was not put back into the queue: it is ``CANCELLED``.
    - A job that squeue listed before and does not any more has ended, longer ago than Slurm remembers (MinJobAge):
      ``UNKNOWN``, for which the plugin looks at the job's output.
    """

    def __init__(self, plugin: ModuleType, away: "_Away"):
        self._ask: Ask = plugin.query_job_status
        self._squeue: Callable[[str], str] = plugin.query_job_status_squeue
        self._away, self._before = away, States()

    async def __call__(self, command: str, log: logging.Logger) -> tuple[States, float]:
        tool, *_, run = command.split()
        answer, seconds = await self._ask(command, log)
        if answer is None and tool == "sacct":
            tool = "squeue"
            answer, seconds = await self._ask(self._squeue(run), log)
        if answer is None:
            self._away.tell(log)
            return {}, 0.0
        self._away.end(log)
        return self._translated(answer, complete=tool == "squeue"), seconds or 0.0

    def _translated(self, answer: States, complete: bool) -> States:
        states = {job: state.partition(" ")[0] for job, state in answer.items()}
        gone = dict.fromkeys(self._before.keys() - states.keys(), "UNKNOWN") if complete else {}
        before, self._before = self._before, states | gone
        stay = {job for job, state in states.items() if state == before.get(job) and state in PUT_BACK}
        return states | gone | dict.fromkeys(stay, "CANCELLED")


class _Away:
    """Tells once that Slurm does not answer, and once that it does again."""

    def __init__(self) -> None:
        self._told = False

    def tell(self, log: logging.Logger) -> None:
        if not self._told:
            log.warning(AWAY)
        self._told = True

    def end(self, log: logging.Logger) -> None:
        if self._told:
            log.warning(BACK)
        self._told = False


def _where_accounts_are_kept(report: Callable[..., None]) -> Callable[..., None]:
    """Return the plugin's report on its jobs, which tells of an error, or raises one, where there are no accounts."""

    @functools.wraps(report)
    def report_or_tell(*, logger: logging.Logger, **settings: Any) -> None:
        if _keeps_accounts():
            report(logger=logger, **settings)
        else:
            logger.info(NO_ACCOUNTS)

    return report_or_tell


def _keeps_accounts() -> bool:
    """Return whether sacct answers."""
    try:
        command = ["sacct", "--noheader", "--allocations", "--starttime", "now"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _answers() -> bool:
    """Return whether a controller answers; also where the question cannot be asked."""
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    except OSError:
        return True
