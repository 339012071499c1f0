"""What a plan comes to, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from resscale.data.batching import BatchPlan
from resscale.report.plan_data import DataPlan
from resscale.report.plan_memory import MemoryPlan
from resscale.report.plan_request import Known, Machines, Training
from resscale.report.plan_speed import Rate
from resscale.report.plan_step import StepTime


@dataclass(frozen=True)
class Phase:
    """Epochs at one image size.

    Args:
        image_size: pixels per side.
        epochs: so many.
        macs: multiply-accumulates of an image's forward pass.
        rate: of one GPU that nothing keeps waiting.
        step: seconds of an optimizer step.
        images_per_s: of all GPUs together.
        mfu: share of the GPUs' peak that is used.
    """

    image_size: int
    epochs: int
    macs: int
    rate: Rate
    step: StepTime
    images_per_s: float
    mfu: float


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Args:
        training: what is trained.
        machines: where.
        known: what the user knows.
        num_parameters: learned values.
        batches: micro-batch, ranks and accumulation.
        steps_per_epoch: optimizer steps.
        phases: one for each image size, in the order of training.
        memory: of one GPU, for the largest images.
        data: what the images ask for.
        train_s: seconds of optimizer steps.
        eval_s: seconds of evaluations.
        mtbf_s: mean seconds between failures of the job.
        save_every_s: best interval between checkpoints, by Daly.
        lost_share: of all time, by saves and failures.
    """

    training: Training
    machines: Machines
    known: Known
    num_parameters: int
    batches: BatchPlan
    steps_per_epoch: int
    phases: tuple[Phase, ...]
    memory: MemoryPlan
    data: DataPlan
    train_s: float
    eval_s: float
    mtbf_s: float
    save_every_s: float
    lost_share: float

    @property
    def largest(self) -> Phase:
        """The phase with the largest images."""
        return max(self.phases, key=lambda phase: phase.image_size)

    @property
    def hours(self) -> float:
        """Of the whole run, with evaluations, saves and failures; waiting in a queue left out."""
        return (self.train_s + self.eval_s) / (1 - self.lost_share) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.machines.num_ranks

    @property
    def cost_usd(self) -> float | None:
        """Price of the GPU-hours; None where no price was given."""
        price = self.known.usd_per_gpu_hour
        return None if price is None else price * self.gpu_hours
