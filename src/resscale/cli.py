"""The command line: a table of commands, imported when they are called; errors become exit codes.

Help answers without importing torch, so `resscale fit --help` takes a fraction of a second.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from resscale import __version__
from resscale.cluster.environment import read_slurm
from resscale.errors import ResscaleError, UserInputError, nearest
from resscale.training.startup import STARTUP

# A rank of srun that is told to end at once does so when it can tell the others: when torch is
# there and its run directory is known, which takes a minute on a busy file system. Where SLURM has
# told all ranks, it kills them before that; they have nothing to lose.
_TELL_RANKS_S = 120.0

# command -> (what it does, module:function taking the arguments behind the command)
COMMANDS = {
    "fit": ("train a network", "resscale.cli_train:run_fit"),
    "validate": (
        "measure a checkpoint on the validation shards",
        "resscale.cli_train:run_validate",
    ),
    "test": ("measure a checkpoint on the test shards", "resscale.cli_train:run_test"),
    "predict": ("write the likeliest classes of images", "resscale.cli_train:run_predict"),
    "submit": ("send a SLURM job: checked, shown, recorded", "resscale.cli_submit:run_submit"),
    "runs": ("list runs: state, epoch, accuracy, job, restarts", "resscale.cli_runs:run_runs"),
    "doctor": (
        "find what would end a run or slow it down, before it starts",
        "resscale.cli_doctor:run_doctor",
    ),
    "plan": (
        "memory, images/s, hours and cost of a run, before it is queued",
        "resscale.cli_plan:run_plan",
    ),
    "bench": ("measure this machine, and say what bounds it", "resscale.cli_bench:run_bench"),
    "pack": ("turn a data set into WebDataset shards", "resscale.cli_data:run_pack"),
    "index": ("make or verify the manifest of existing shards", "resscale.cli_data:run_index"),
    "inspect": ("look at shards: counts, sizes, faults, pictures", "resscale.cli_data:run_inspect"),
    "models": ("list the named nets: parameters, cost, source", "resscale.cli_models:run_models"),
    "report": (
        "draw runs together: curves, results, differences",
        "resscale.cli_report:run_report",
    ),
    "export": (
        "write weights as .safetensors, .pth or .onnx",
        "resscale.cli_export:run_export",
    ),
}

_OPTIONS = """\
options (all may also stand in the YAML file, without the dashes):
  --config FILE           YAML file; repeatable, later ones win
  --run_dir DIR           run directory (default: runs/<config>-<date>-<hash>)
  --ckpt_path PATH|auto|best   where weights come from; auto: the run's newest valid checkpoint
  --weights FILE|URL      weights to begin with, such as torchvision's; --skip_classifier true: but
                          for the last layer
  --data.global_batch_size N   samples per optimizer step over all ranks
  --data.micro_batch_size N    samples per forward pass of a rank
  --model.model NAME      a network, such as resnet50
  --trainer.devices N     ranks on this node
  --trainer.strategy S    auto, ddp, deepspeed_1, deepspeed_2 or deepspeed_3
  --trainer.precision P   32-true, bf16-mixed or 16-mixed
  --ema.decay D           also average the weights, such as by 0.9999
  --profile               record some steps: a trace, and a table of what costs most
  --hang_timeout_s S      end a run whose ranks stand still for so long (default: 1800)
  --print_config          show the configuration that results, and stop
  --help_all              every option there is (takes some seconds)
"""

HELP = {
    "fit": f"""\
usage: resscale fit --config FILE [--OPTION VALUE ...]

Train a network. Ctrl-C or SIGTERM saves a checkpoint at the next step; the same command with
--ckpt_path auto goes on with the very next sample.

example:
  resscale fit --config configs/demo.yaml --trainer.max_epochs 5

{_OPTIONS}""",
    "validate": f"""\
usage: resscale validate --run_dir DIR [--ckpt_path PATH|auto|best] [--OPTION VALUE ...]

Measure a checkpoint on the validation shards; each sample is visited exactly once.

example:
  resscale validate --run_dir runs/demo-20261123-101500-1a2b3c --ckpt_path best

{_OPTIONS}""",
    "test": f"""\
usage: resscale test --run_dir DIR [--ckpt_path PATH|auto|best] [--OPTION VALUE ...]

Measure a checkpoint on the test shards; each sample is visited exactly once.

example:
  resscale test --run_dir runs/demo-20261123-101500-1a2b3c --data.test builtin:digits/test

{_OPTIONS}""",
    "predict": f"""\
usage: resscale predict --run_dir DIR --data.predict SHARDS|IMAGES [--output FILE]

Write key, the five likeliest classes and their probabilities for shards, a folder of images or one
image. The ending of --output says the format: .csv or .jsonl (default: predictions.csv).

example:
  resscale predict --run_dir runs/demo-20261123-101500-1a2b3c --data.predict photos/ \\
      --output predictions.jsonl

{_OPTIONS}""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code (0, 1, 2, 70 or 75; see `resscale.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        # Here, where a reader that has gone is expected, and not at the interpreter's end.
        sys.stdout.flush()
        return code
    except ResscaleError as error:
        if error.exit_code == 1:
            raise
        print(f"resscale: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `resscale inspect ... | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("resscale: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"resscale {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserInputError(
            f"{name!r} is not a command; there are {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}"
        )
    if name in HELP and any(argument in ("-h", "--help") for argument in rest):
        print(HELP[name])
        return 0
    if name == "fit":
        # Before the seconds that importing torch takes.
        slurm = read_slurm()
        STARTUP.watch(_TELL_RANKS_S if slurm is not None and slurm.starts_ranks else 0.0)
    module, function = COMMANDS[name][1].split(":")
    try:
        code: int = getattr(importlib.import_module(module), function)(rest)
    finally:
        STARTUP.over()
    return code


def _overview() -> str:
    rows = "\n".join(f"  {name:<10} {what}" for name, (what, _) in COMMANDS.items())
    return (
        f"resscale {__version__}: ResNets at scale\n\n"
        f"usage: resscale <command> ...    (resscale <command> --help says more)\n\n"
        f"commands:\n{rows}\n\n"
        f"example:\n  resscale fit --config configs/demo.yaml"
    )
