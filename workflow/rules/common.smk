"""What all rules share: the run, its results folder, wildcard patterns, resources and the words at the end."""

import time

from labelloop.run import console
from labelloop.run.claim import claim
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.gpu_lease import usable_gpus
from labelloop.base.lookup import taken
from labelloop.base.machine import memory_mb
from labelloop.base.paths import manifest_of, shard_table
from labelloop.run.moved_cases import move_cases
from labelloop.run.profiles import check_profiles
from labelloop.run.repair import Repair
from labelloop.run.round_folders import move_rounds
from labelloop.run.run import Run
from labelloop.base.scripting import quote_interpreter
from labelloop.run.slurm import be_patient, jobs_in_queue, most_of, told
from labelloop.base.stopping import pass_on_to_children

quote_interpreter()
try:
    check_profiles(sys.argv, Path(workflow.basedir))
    run = Run(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

paths, shards = run.paths, run.shards
wiring, trainings = run.wiring, run.trainings
BEGAN = time.monotonic()
GPUS = 0 if run.config.device == "cpu" else 1  # per job that runs a network
LOCAL = workflow.nodes is None  # this machine does all jobs


wildcard_constraints:
    shard=r"(train|test)-\d+",
    model=r"\w+",
    labels=r"\w+",
    plan=r"\w+",
    bank=r"\w+",
    arrays=r"labels|organs",
    name=r"\w+",


if workflow.is_main_process:
    logger.addFilter(console.without_noise)
    for line, differs in taken().items():
        (logger.warning if differs else logger.info)(line)
    for warning in run.warnings():
        logger.warning(f"{run.config.cases}: {warning}")
    for line in [
        *trainings.fewer_cards(),
        *run.external.notes(),
        *run.unused_decisions(),
        *filter(None, [run.waits_for and run.left_to_review(run.waits_for)]),
    ]:
        logger.warning(line)
    try:
        run.refuse_problems()
    except UserError as error:
        raise WorkflowError(str(error)) from None
    repair = Repair(run)
    for file, what in repair.broken.items():
        logger.warning(f"{file}: {what}; made anew")
    if LOCAL and "mem_mb" not in workflow.global_resources:
        workflow.register_resource("mem_mb", memory_mb())
    if LOCAL and "gpu" not in workflow.global_resources:  # --resources gpu=N wins
        here = max(1, len(usable_gpus()))
        workflow.register_resource("gpu", here)
        if GPUS and run.config.gpus_per_training > here:
            logger.warning(
                f"gpus_per_training: {here} can be used here, so trainings use no more"
            )


def make_broken_anew(wildcards):
    """Name no input; tell Snakemake, which calls this before it decides what to run, what to make anew."""
    workflow.dag.forcefiles.update(repair.broken)
    return []


def trigger(*content):
    """Return the fingerprint of what makes a job run again and is not handed to its step."""
    return digest(content)


def memory(megabytes, gpu=0):
    """Memory in MB, raised at each retry."""
    return lambda wildcards, attempt: at_most("mem_mb", megabytes * attempt, gpu)


def training_memory(wildcards, threads, attempt):
    """Memory in MB of a training, by the size of its data, raised at each retry."""
    asked = trainings.mb(wildcards.model, threads, page_cache=not LOCAL)
    return at_most("mem_mb", asked * attempt, GPUS)


def minutes(first, gpu=0):
    """Wall time in minutes, raised at each retry."""
    return lambda wildcards, attempt: at_most("runtime", first * attempt, gpu)


def at_most(resource, asked, gpu):
    """What a job asks for, or the most that a partition of the cluster has for it."""
    partitions = getattr(workflow.executor_settings, "partition_config", None)
    return int(min(asked, most_of(resource, partitions, gpu > 0)))


def work_to_do():
    """What this run has trained and labeled, and what it still has to."""
    dag = workflow.dag
    jobs = dag.needrun_jobs(exclude_finished=False)
    return console.work_of(jobs, dag.finished, lambda w: run.work(**w))


onstart:
    try:
        claim(run)
        repair.begin()
        for moved in [*move_rounds(run), *move_cases(run)]:
            logger.info(f"labelloop: {moved}")
    except UserError as error:
        raise WorkflowError(str(error)) from None
    pass_on_to_children()
    be_patient()
    left = jobs_in_queue(Path.cwd()) if workflow.non_local_exec else {}
    if left:
        logger.warning(f"labelloop: {told(left)}")
    print(f"labelloop: {run.summary()}")
    console.watch(work_to_do)


onsuccess:
    done, took = console.how_far(work_to_do()), time.monotonic() - BEGAN
    for line in console.ending(Path(paths.results), done, run.set_aside(), took):
        print(f"labelloop: {line}")
    if run.waits_for:
        print(f"labelloop: {run.left_to_review(run.waits_for)}")


onerror:
    print(
        f"labelloop: a step failed. Its log: {paths.logs}/<rule>/ (newest: ls -t {paths.logs}/*/* | head -3); "
        f"scheduler: {', '.join(map(str, log)) if isinstance(log, list) else log}; Slurm: .snakemake/slurm_logs/.\n"
        f"Finished cases and checkpoints are kept: type the same command again to go on where it stopped."
    )
