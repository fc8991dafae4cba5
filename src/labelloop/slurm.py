"""What the Slurm queue still holds of a run whose front process was ended."""

import subprocess
from pathlib import Path

COLUMNS = "%i|%T|%Z|%k"
"""Job id, state, working folder, comment."""


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
        f"jobs of this run that would do the same wait for them. To end them: scancel {' '.join(jobs)}"
    )
