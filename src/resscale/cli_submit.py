"""The command `resscale submit`: check, show, send and record a SLURM job.

torch is imported for the checks only, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resscale.cli_submit_arguments import site_of, split_arguments, submit_parser
from resscale.cli_submit_send import Submission, refuse_queued, send
from resscale.cluster.follow import LogTail, follow
from resscale.cluster.job_record import JobRecord
from resscale.cluster.site import Site, job_environment, shell_exports
from resscale.cluster.slurm import SlurmUnavailable, call
from resscale.cluster.submission import (
    NodeKind,
    Shape,
    batch_script,
    check_time,
    derive_shape,
    find_node_kinds,
    sbatch_command,
)
from resscale.cluster.sweep import SweepTask, plan_sweep
from resscale.errors import UserInputError, nearest
from resscale.training.runid import choose_run_dir, refuse_used

if TYPE_CHECKING:
    from resscale.cli_submit_check import Checked

_SWEEP_VARIABLE = "RESSCALE_SWEEP"
_INTERRUPTED = 130


def run_submit(argv: list[str]) -> int:
    """Run `resscale submit` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, a training that would be refused, or SLURM refuses.
    """
    parsed = split_arguments(argv)
    if isinstance(parsed, int):
        return parsed
    options, arguments = parsed
    site = site_of(options)
    if options.print_environment:
        print(shell_exports(site))
        return 0
    if not options.dry_run:
        # Before anything that takes seconds.
        call(["sbatch", "--version"])
    shape, hint = _shape(options, site)
    tasks = plan_sweep(options.sweep) if options.sweep else []
    checked = _check(arguments, shape, tasks, not options.no_data_check)
    submission = _plan(options, arguments, argv, site, shape, tasks, checked)
    _show(submission, shape, checked, hint)
    if options.dry_run:
        print(f"\n--- {Path(submission.record.script).name} ---\n{submission.script}", end="")
        return 0
    job_id = send(submission)
    _tell(submission, job_id)
    return _watch(submission, job_id) if options.watch else 0


def _shape(options: argparse.Namespace, site: Site) -> tuple[Shape, str | None]:
    """Return the job's shape, and what is not known of it."""
    hint: str | None = None
    kinds: list[NodeKind] = []
    try:
        kinds = find_node_kinds(site.partition, site.gpu_type)
    except SlurmUnavailable:
        if not options.dry_run:
            raise
        hint = "no SLURM here: whether a node has so many GPUs and CPUs is not known"
    if options.time is not None:
        check_time(options.time, kinds)
    shape = derive_shape(
        options.nodes,
        options.gpus_per_node or 0,
        options.tasks_per_node,
        site.cpus_per_task,
        kinds,
    )
    return shape, hint


def _check(
    arguments: list[str], shape: Shape, tasks: list[SweepTask], check_data: bool
) -> list[Checked]:
    """Check each run as `resscale fit` would."""
    from resscale.cli_submit_check import check_training

    checked = []
    for own in [task.arguments for task in tasks] or [()]:
        try:
            checked.append(check_training([*arguments, *own], shape, check_data=check_data))
        except UserInputError as error:
            raise _explained(error, own) from error
    return checked


def _explained(error: UserInputError, own: Sequence[str]) -> UserInputError:
    """Return the error with the run of the sweep it belongs to, or the option of submit meant."""
    if found := re.match(r"'([^'.]+)' is not an option", str(error)):
        known = submit_parser()._options()
        if hint := nearest(f"--{found[1]}", known):
            return UserInputError(f"--{found[1]} is no option of submit, nor of fit.{hint}")
    return UserInputError(f"{' '.join(own)}: {error}") if own else error


def _plan(
    options: argparse.Namespace,
    arguments: list[str],
    argv: list[str],
    site: Site,
    shape: Shape,
    tasks: list[SweepTask],
    checked: list[Checked],
) -> Submission:
    first = checked[0]
    name = f"{first.name}-sweep" if tasks else first.name
    folder = first.run_dir or choose_run_dir(
        first.runs_dir, name, first.digest, job_id=None, resume=first.resumes and not tasks
    )
    run_dirs = [folder / task.label for task in tasks] or [folder]
    for path in run_dirs:
        refuse_queued(path)
        if not first.resumes:
            refuse_used(path)
    environment = job_environment(site)
    if tasks:
        environment[_SWEEP_VARIABLE] = str(folder.resolve())
    elif first.run_dir is None:
        arguments = [*arguments, "--run_dir", str(folder)]
    log = folder / ("slurm-%A_%a.out" if tasks else "slurm-%j.out")
    script = folder / "train.sbatch"
    command = sbatch_command(
        shape,
        site,
        name=name,
        # A percent sign begins a pattern of SLURM's.
        log=str(log).replace(str(folder), str(folder).replace("%", "%%")),
        script=script,
        arguments=arguments,
        time_limit=options.time,
        num_tasks=len(tasks),
        max_running=options.max_running,
    )
    record = JobRecord(
        job_id="",
        submitted=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=shlex.join(["resscale", "submit", *argv]),
        sbatch=command,
        environment=environment,
        script=str(script),
        log=str(log),
        nodes=shape.nodes,
        tasks_per_node=shape.tasks_per_node,
        gpus_per_node=shape.gpus_per_node,
        cpus_per_task=shape.cpus_per_task,
        time_limit=options.time,
    )
    return Submission(folder, run_dirs, tasks, command, environment, batch_script(), record)


def _show(submission: Submission, shape: Shape, checked: list[Checked], hint: str | None) -> None:
    print(f"job: {shape}, {submission.record.time_limit or 'the default time limit'}")
    if hint:
        print(hint)
    print(f"trainer: num_nodes={shape.nodes}, devices={shape.tasks_per_node}, from SLURM's tasks")
    for line in checked[0].lines:
        print(line)
    if submission.tasks:
        print(f"{len(submission.tasks)} runs in {submission.folder}:")
        for task in submission.tasks:
            print(f"  {task.number}: {' '.join(task.arguments)}")
    else:
        print(f"run directory: {submission.folder}")
    words = [f"{name}={shlex.quote(value)}" for name, value in submission.environment.items()]
    print(f"command: {' '.join([*words, shlex.join(submission.command)])}", flush=True)


def _tell(submission: Submission, job_id: str) -> None:
    log = submission.log_of(job_id)
    print(f"submitted job {job_id}")
    if submission.tasks:
        log = str(submission.folder / f"slurm-{job_id}_0.out")
    print(f"log:     {log}")
    print(f"follow:  tail -F {shlex.quote(log)}")
    print(f"state:   resscale runs {shlex.quote(str(submission.folder.parent))}")
    print(f"cancel:  scancel {job_id}", flush=True)


def _watch(submission: Submission, job_id: str) -> int:
    tail = None if submission.tasks else LogTail(Path(submission.log_of(job_id)))

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        return follow(job_id, tail, submission.run_dirs if submission.tasks else [], say)
    except KeyboardInterrupt:
        print(f"\njob {job_id} goes on; cancel it with:  scancel {job_id}", file=sys.stderr)
        return _INTERRUPTED
