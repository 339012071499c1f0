"""Where a call's run lies, what it goes on from, and how its ranks come to the same answers."""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from resscale.cli_lightning import Stage
from resscale.cluster.deadline import Deadline
from resscale.cluster.doctor.cpus import CpuFacts, cpus_per_rank
from resscale.cluster.environment import Launch
from resscale.cluster.ranks import (
    HeldPort,
    Meeting,
    SlurmRanks,
    call_meeting,
    join_meeting,
    main_address,
    meeting_file,
)
from resscale.cluster.refusal import Refusal
from resscale.cluster.shape import check_gpus, check_sees_gpus, check_shape
from resscale.errors import Preempted, ResscaleError, UserInputError
from resscale.training.checkpoint import Checkpointer, find_newest_valid
from resscale.training.owner import Owner
from resscale.training.preempt import PreemptConfig, Preemption
from resscale.training.rundir import RunDir
from resscale.training.runid import choose_run_dir, refuse_used
from resscale.training.startup import STARTUP


class Start:
    """What one process knows before anything is built; the same in all ranks.

    Under srun rank 0 decides, and the others wait here until it has checked everything.

    Args:
        stage: which command.
        config: the parsed options.
        launch: how this process was started.
        digest: of the configuration.
        asks_for_weights: the user has said `--weights` in this call.

    Raises:
        UserInputError: no such run or checkpoint, or a directory that holds a run already.
        SystemExit: rank 0 has refused to begin, and said why.
    """

    def __init__(
        self, stage: Stage, config: Namespace, launch: Launch, digest: str, asks_for_weights: bool
    ) -> None:
        self._stage: Stage = stage
        self._config = config
        self._launch = launch
        self._asks_for_weights = asks_for_weights
        name = Path(str(config.config[-1])).stem if config.config else "run"
        self.run = RunDir(self._choose_run_dir(name, digest))
        self._port: HeldPort | None = None
        self._meeting: Meeting | None = None
        self._refusal = None if launch.srun is None else Refusal(self._folder(), launch.srun)
        if self._refusal is not None:
            # Also of ranks that have been told to end before they knew where to say so.
            self._refusal.watch()
            STARTUP.before_end = partial(self.refuse, Preempted.exit_code)
        self._meeting = self._meet()
        if self._meeting is not None and not launch.is_first:
            path = self._meeting.ckpt_path
            self.ckpt_path = None if path is None else Path(path)
            return
        try:
            self._refuse_used()
            self.ckpt_path = self._choose_checkpoint()
        except BaseException as error:
            # The others wait for a word.
            self.refuse(getattr(error, "exit_code", ResscaleError.exit_code))
            raise

    def environment(self) -> ClusterEnvironment:
        """Return how ranks find each other: by srun, by torchrun, or on this machine alone."""
        if self._meeting is not None:
            assert self._launch.srun is not None
            return SlurmRanks(self._launch.srun, self._meeting)
        return TorchElasticEnvironment() if self._launch.launcher else LightningEnvironment()

    def preemption(self, checkpointer: Checkpointer, config: PreemptConfig) -> Preemption:
        """Return what stops this run on request; rank 0 watches the job's time for all."""
        job = self._launch.slurm
        is_near = Deadline(job).is_near if job is not None and self._launch.is_first else None
        return Preemption(checkpointer, config, is_near, self.has_begun)

    def fit_to_job(self, trainer_config: dict[str, Any]) -> None:
        """Set the trainer's nodes and devices to SLURM's, in place.

        Args:
            trainer_config: the trainer's options.

        Raises:
            UserInputError: tasks, GPUs and what the user says do not fit.
        """
        job, accelerator = self._launch.slurm, str(trainer_config["accelerator"])
        if job is None:
            return
        visible = torch.cuda.device_count()
        check_sees_gpus(job, visible, accelerator)
        if self._launch.srun is None:
            return
        nodes, devices = check_shape(job, trainer_config["num_nodes"], trainer_config["devices"])
        check_gpus(job, devices, visible, accelerator)
        trainer_config["num_nodes"], trainer_config["devices"] = nodes, devices

    def owner(self) -> Owner:
        """Return who takes the run directory: this start of this job."""
        job = self._launch.slurm
        return Owner() if job is None else Owner(job.job_id, job.restart_count)

    def tell(self) -> None:
        """Let the other ranks begin: rank 0 has found nothing against it."""
        if self._meeting is not None and self._launch.is_first:
            path = None if self.ckpt_path is None else str(self.ckpt_path)
            self._call(Meeting(self._meeting.address, self._meeting.port, path))

    def refuse(self, code: int) -> None:
        """Let the other ranks end with the same code: this one cannot begin."""
        if self._refusal is not None:
            self._refusal.tell(code)
        if self._meeting is not None and self._launch.is_first:
            self._call(Meeting("", 0, None, code))

    def has_begun(self) -> None:
        """Training has the signals, and watches the ranks."""
        STARTUP.over()
        if self._refusal is not None:
            self._refusal.over()

    def cpus_per_rank(self, ranks_on_node: int) -> int:
        """Return the CPUs that each rank can count on: its own where SLURM has bound it to them.

        Args:
            ranks_on_node: that share the CPUs otherwise.
        """
        job = self._launch.srun
        facts = CpuFacts(len(os.sched_getaffinity(0)), os.cpu_count() or 1)
        return cpus_per_rank(facts, ranks_on_node, None if job is None else job.cpus_per_task)

    def forget(self) -> None:
        """Remove what rank 0 has told, and give the port back: the ranks have met."""
        if self._meeting is not None and self._launch.is_first:
            assert self._launch.srun is not None
            meeting_file(self._folder(), self._launch.srun).unlink(missing_ok=True)
        if self._port is not None:
            self._port.close()

    def _meet(self) -> Meeting | None:
        job = self._launch.srun
        if job is None:
            return None
        if self._launch.is_first:
            self._port = HeldPort()
            return Meeting(main_address(job), self._port.number)
        meeting = join_meeting(self._folder(), job)
        if meeting.refused is not None:
            raise SystemExit(meeting.refused)
        return meeting

    def _call(self, meeting: Meeting) -> None:
        assert self._launch.srun is not None
        call_meeting(self._folder(), self._launch.srun, meeting)

    def _folder(self) -> Path:
        """Return where ranks look: the run's folder, or that of all runs for none in particular."""
        return self.run.path if self._has_run() else Path(self._config.runs_dir)

    def _has_run(self) -> bool:
        return self.run.path != Path(os.devnull)

    def _choose_run_dir(self, name: str, digest: str) -> Path:
        launch, config = self._launch, self._config
        resume = config.ckpt_path == "auto"
        if launch.run_dir is not None:
            return Path(launch.run_dir)
        if config.run_dir is None and self._stage != "fit":
            return Path(os.devnull)
        if config.run_dir is None:
            run_dir = choose_run_dir(
                Path(config.runs_dir),
                name,
                digest,
                job_id=launch.job_id,
                resume=resume,
                is_restart=launch.is_restart,
                shared=launch.launcher is not None,
            )
        else:
            run_dir = Path(config.run_dir)
        return run_dir

    def _refuse_used(self) -> None:
        launch, resume = self._launch, self._config.ckpt_path == "auto"
        if launch.run_dir is not None or not launch.is_first or resume or launch.is_restart:
            return
        if self._stage == "fit":
            refuse_used(self.run.path)

    def _choose_checkpoint(self) -> Path | None:
        asked = self._config.ckpt_path
        if self._stage == "fit" and self._launch.is_restart:
            # What the user has named is where the first start began.
            begun = find_newest_valid(self.run)
            if begun is not None:
                return begun
        if asked is None and self._stage == "fit":
            return None
        known = self._has_run()
        if self._stage != "fit" and self._asks_for_weights and (known or asked is not None):
            other = "--run_dir" if asked is None else "--ckpt_path"
            raise UserInputError(
                f"--weights and {other} both say what {self._stage} measures: leave one out. "
                f"The setting of a run alone is --config RUN/config.yaml."
            )
        if asked in (None, "auto", "best"):
            if not known and self._config.weights is not None:
                return None
            if not known:
                raise UserInputError(
                    f"{self._stage} needs weights: name a checkpoint with --ckpt_path FILE, a run "
                    f"with --run_dir DIR, or a file of weights with --weights FILE."
                )
            return self._of_the_run(asked)
        path = Path(asked)
        if not path.is_file():
            raise UserInputError(f"--ckpt_path {path}: there is no such file.")
        return path

    def _of_the_run(self, asked: str | None) -> Path | None:
        best = self.run.checkpoints / "best.ckpt"
        if asked != "auto" and best.exists():
            return best
        newest = find_newest_valid(self.run)
        if newest is None and (self._stage != "fit" or asked == "best"):
            raise UserInputError(
                f"{self.run.checkpoints} holds no whole checkpoint; correct --run_dir, or "
                f"train first with `resscale fit`."
            )
        return newest
