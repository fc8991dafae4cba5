"""What every workflow script needs: Snakemake's object, also in a debugger, and a log that survives a retry."""

import faulthandler
import logging
import os
import platform
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from labelloop.base import heartbeat, machine
from labelloop.base.errors import UserError

if TYPE_CHECKING:
    from snakemake.iocontainers import Snakemake

log = logging.getLogger("labelloop")
FORMAT = "%(asctime)s %(levelname)s %(message)s"
TERMINATED = {signal.SIGTERM: "SIGTERM: time limit, scancel or another kill", signal.SIGINT: "Ctrl-C"}


def job(namespace: dict[str, Any]) -> "Snakemake":
    """Return the ``snakemake`` object of the workflow's script, with logging set up. The script's first statement.

    Started by hand, e.g. in a debugger, the script takes a rule and its wildcards from the command line, as in
    ``step.py check labels=pseudo shard=train-000``; ``configfile=FILE`` names another run than the demo's.

    Args:
        namespace: the script's ``globals()``, in which Snakemake has put its object.
    """
    if "snakemake" in namespace:
        configure_logging(namespace["snakemake"])
        return namespace["snakemake"]
    logging.basicConfig(format=FORMAT)
    log.setLevel(logging.INFO)
    rule, *pairs = sys.argv[1:]
    root = Path(namespace["__file__"]).resolve().parents[2]  # <root>/workflow/scripts/<script>.py
    return standalone(rule, root, **({"configfile": "config/demo.yaml"} | dict(pair.split("=", 1) for pair in pairs)))


def quote_interpreter() -> None:
    """Let Snakemake start Python from a path with spaces or quotes: it puts the path into shell commands as it is.

    To be called where the Snakefile is parsed, and nowhere else (snakemake#2645).
    """
    if Path(sys.executable).is_file():
        sys.executable = shlex.quote(sys.executable)


def configure_logging(snakemake: "Snakemake") -> None:
    """Log to the rule's log and, appending, to ``<log>.attempts.log`` beside it.

    Warnings go to the terminal, too, and signs of life: a line every 20 seconds.

    Snakemake deletes the rule's log when it retries a job; the attempts stay. Uncaught errors, crashes in native code
    and SIGTERM (time limit, scancel) end up in the logs, too.
    """
    rule_log = Path(snakemake.log[0])
    attempts = rule_log.with_suffix(".attempts.log")
    terminal = logging.StreamHandler()
    terminal.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == heartbeat.__name__)
    file = logging.FileHandler(rule_log)
    handlers: list[logging.Handler] = [terminal, file, logging.FileHandler(attempts)]
    logging.basicConfig(format=FORMAT, handlers=handlers, force=True)
    log.setLevel(logging.INFO)  # other libraries' chatter stays out
    logging.captureWarnings(True)
    faulthandler.enable(file.stream or terminal.stream)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda caught: _log_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)
    _log_termination()
    slurm = os.environ.get("SLURM_JOB_ID")
    where = platform.node() + (f", Slurm job {slurm}" if slurm else "")
    log.info("rule %s %s: process %d on %s", snakemake.rule, dict(snakemake.wildcards), os.getpid(), where)
    device = snakemake.resources.get("device")
    if device:
        machine.note(rule_log, device)
    heartbeat.begin("case", snakemake.params.get("number", 0))
    heartbeat.speak(" ".join([snakemake.rule, *map(str, snakemake.wildcards)]))


def standalone(rule: str, root: Path, configfile: str, **wildcards: str) -> "Snakemake":
    """Return the ``snakemake`` object that a script of ``rule`` would get, and make ``root`` the working folder.

    Snakemake has no public way to do this: the last lines lean on its internals (tested with the pinned version).
    """
    from snakemake.api import SnakemakeApi
    from snakemake.dag import DAG
    from snakemake.iocontainers import Snakemake
    from snakemake.jobs import Job
    from snakemake.settings.types import ConfigSettings, DAGSettings, ResourceSettings

    interpreter = sys.executable
    os.chdir(root)  # all paths of the workflow are relative to it
    with SnakemakeApi() as api:
        config = ConfigSettings(configfiles=[Path(configfile)])
        opened = api.workflow(
            ResourceSettings(cores=os.cpu_count()), config_settings=config, snakefile=Path("Snakefile")
        )
        opened.dag(DAGSettings())
        sys.executable = interpreter  # see quote_interpreter
        workflow = opened._workflow
        found = workflow.get_rule(rule)
        made = Job(found, DAG(workflow, rules=[found]), wildcards)
        for path in [*made.output, *made.log]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        parts = (made.input, made.output, made.params, made.wildcards, made.threads, made.resources, made.log)
        return Snakemake(*parts, workflow.config, rule, None)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, UserError):  # its message says all
        log.error("%s", error)
    else:
        log.critical("%s", kind.__name__, exc_info=error)


def _log_termination() -> None:
    """Log SIGTERM or Ctrl-C and leave through every ``finally``, so that no half-written file stays behind."""
    owner = os.getpid()

    def leave(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a worker process, ended by its parent as usual
            os._exit(128 + number)
        log.error("ended by %s", TERMINATED[signal.Signals(number)])
        sys.exit(128 + number)

    for number in TERMINATED:
        signal.signal(number, leave)
