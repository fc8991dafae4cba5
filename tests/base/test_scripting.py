"""Workflow scripts: the snakemake object in a debugger, logs that survive a retry and hold every end of a script."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

SNAKEFILE = """
configfile: "config.yaml"


rule train:
    input:
        "data.csv",
    output:
        "results/{model}/weights.pt",
    log:
        "results/logs/train/{model}.log",
    params:
        epochs=config["epochs"],
    threads: 2
    script:
        "workflow/scripts/step.py"
"""
SCRIPT = """
from labelloop.base.scripting import job

snakemake = job(globals())

print(snakemake.input[0], snakemake.output[0], snakemake.params.epochs, snakemake.wildcards.model, snakemake.rule)
"""
PREAMBLE = """
import logging, os, signal, sys, threading, time, warnings
from types import SimpleNamespace
from labelloop.base.errors import UserError
from labelloop.base.scripting import job

snakemake = SimpleNamespace(log=[sys.argv[1]], rule="train", wildcards={"model": "coarse"}, params={"number": 3},
                            resources={"device": "cpu"})
assert job(globals()) is snakemake
log = logging.getLogger("labelloop.training")
"""


@pytest.mark.slow
def test_script_runs_alone_from_any_folder(tmp_path):
    scripts = tmp_path / "workflow" / "scripts"
    scripts.mkdir(parents=True)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "config.yaml").write_text("epochs: 1000\n")
    (tmp_path / "other.yaml").write_text("epochs: 2\n")
    (scripts / "step.py").write_text(SCRIPT)
    command = [sys.executable, scripts / "step.py", "train", "model=coarse", "configfile=other.yaml"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.stdout == "data.csv results/coarse/weights.pt 2 coarse train\n", done.stderr
    assert (tmp_path / "results" / "coarse").is_dir()


def run(tmp_path: Path, body: str) -> SimpleNamespace:
    """Run a script as Snakemake would; return its exit code, its terminal output and its two logs."""
    rule_log = tmp_path / "coarse.log"
    done = subprocess.run([sys.executable, "-c", PREAMBLE + body, rule_log], capture_output=True, text=True)
    attempts = tmp_path / "coarse.attempts.log"
    return SimpleNamespace(
        code=done.returncode, terminal=done.stderr, log=rule_log.read_text(), attempts=attempts.read_text()
    )


def test_attempts_survive_the_retry(tmp_path):
    run(tmp_path, "log.info('first')")
    (tmp_path / "coarse.log").unlink()  # as Snakemake does
    second = run(tmp_path, "log.info('second'); log.warning('careful')")
    assert "second" in second.log and "first" not in second.log
    assert second.attempts.count("rule train {'model': 'coarse'}: process") == 2
    assert second.attempts.index("first") < second.attempts.index("second")
    assert "careful" in second.terminal and "second" not in second.terminal


def test_the_machine_stands_beside_the_log(tmp_path):
    run(tmp_path, "")
    about = json.loads((tmp_path / "coarse.machine.json").read_text())
    assert about["cpu"] and about["cores"] >= 1 and about["gpus"] == []
    assert datetime.fromisoformat(about["began"]).tzinfo


def test_signs_of_life_reach_the_terminal(tmp_path):
    result = run(tmp_path, "logging.getLogger('labelloop.base.heartbeat').info('case 2 of 3'); log.info('a detail')")
    assert "case 2 of 3" in result.terminal and "a detail" not in result.terminal
    assert "case 2 of 3" in result.log and "a detail" in result.log


@pytest.mark.parametrize(
    ("body", "code", "expected", "traceback"),
    [
        ("raise ValueError('bad voxel')", 1, "ValueError: bad voxel", True),
        ("raise UserError('no case table: write one')", 1, "no case table: write one", False),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 143, "ended by SIGTERM", False),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, "ended by Ctrl-C", False),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "Segmentation fault", False),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", 0, "ZeroDivisionError", True),
        ("warnings.warn('old weights')", 0, "old weights", False),
    ],
)
def test_every_end_is_in_the_rule_log(tmp_path, body, code, expected, traceback):
    result = run(tmp_path, body)
    assert result.code == code
    assert expected in result.log
    assert ("Traceback" in result.log) == traceback


def test_sigterm_runs_finally_and_does_not_log_the_end_of_workers(tmp_path):
    done = tmp_path / "done"
    result = run(
        tmp_path,
        f"""
worker = os.fork()
if not worker:
    time.sleep(60)
time.sleep(0.1)
os.kill(worker, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 143
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
finally:
    open({str(done)!r}, "w")
""",
    )
    assert result.code == 143
    assert done.exists()
    assert result.log.count("ended by SIGTERM") == 1
