"""The machine that a job runs on: when, where, which processor and which GPUs; the report says so."""

import json
import os
import platform
from datetime import datetime
from pathlib import Path

from labelloop.base.files import write_text
from labelloop.base.gpu_lease import gpu_names

SUFFIX = ".machine.json"
"""Of the file beside a job's log. Like the log, it is no result: two equal runs differ in it."""


def note(log: Path, device: str) -> None:
    """Write beside a job's log when it began, and on what.

    Args:
        device: what the job may use; on ``cpu`` no GPU is asked for.
    """
    about = {
        "began": datetime.now().astimezone().isoformat(timespec="seconds"),
        "node": platform.node(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [] if device == "cpu" else sorted(set(gpu_names())),
    }
    write_text(log.with_suffix(SUFFIX), json.dumps(about, indent=1) + "\n")


def processor() -> str:
    """Return the name of the processor; its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_mb() -> int:
    """Return the memory of this machine in MiB, or of the container that this process is in (cgroup 2)."""
    import psutil

    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    total = psutil.virtual_memory().total
    return (min(total, int(allowed)) if allowed.isdigit() else total) // 2**20
