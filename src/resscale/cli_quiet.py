"""What other libraries say that the user cannot act on is kept quiet."""

from __future__ import annotations

import logging
import sys
import warnings


def quiet_third_parties() -> None:
    """Keep Lightning's advertisements and advice out of the user's way; warnings stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.strategies.deepspeed").setLevel(logging.WARNING)
    for name in ("lightning.fabric.utilities.seed", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A rank that is killed leaves semaphores to Python's tracker process, which removes them. Its
    # warning would stand behind the line that names the rank. It takes over these options.
    sys.warnoptions.append("ignore:resource_tracker")
    # A machine that has srun is not therefore one to use it on; where it is forgotten we say so.
    warnings.filterwarnings("ignore", "The `srun` command is available")
    # A checkpoint is evaluated without the callbacks that wrote it.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
    # Training without validation shards is the user's choice.
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
    # torch 2.13 deprecates what Lightning 2.6 still calls.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    # torch 2.13 deprecates what DeepSpeed 0.19 still calls.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.*is deprecated")
    warnings.filterwarnings("ignore", ".*reduce_scatter_tensor.*is deprecated")
    # float16 may skip the very first step for an overflow; the schedule counts it all the same.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
    # Our loader reads in processes of its own and says how many.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
