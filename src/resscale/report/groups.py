"""Groups of runs that differ in nothing but the seed, named by what sets them apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.data.locations import without_secrets
from resscale.errors import UserInputError
from resscale.report.metrics import CurveName
from resscale.report.runs import Config, Run

# Where a run lies and what it is called decides nothing; the seed is what a group averages over.
_NOT_COMPARED = frozenset(
    ("seed_everything", "config", "run_dir", "runs_dir", "ckpt_path", "output")
) | {"trainer.default_root_dir"}
# What a reader looks at first, when one key is enough to tell two groups apart.
_TELLING = (
    "model.model",
    "model.model_options",
    "data.train",
    "model.optimizer",
    "model.schedule",
    "model",
    "data",
    "trainer",
)
_VALUE_CHARACTERS = 32
ABSENT = "not set"
DEFAULT = "default"  # what an option that is not set amounts to, in a name


@dataclass(frozen=True)
class Spread:
    """A curve over several runs: at each epoch the runs that have a value there.

    Args:
        epochs: epochs done, ascending.
        mean: over the runs.
        low: the least of them.
        high: the greatest of them.
    """

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Group:
    """Runs drawn as one curve.

    Args:
        name: short, for a legend.
        runs: at least one.
    """

    name: str
    runs: tuple[Run, ...]

    def spread(self, curve: CurveName) -> Spread:
        """Return mean, least and greatest value per epoch."""
        curves = [run.curves[curve] for run in self.runs]
        epochs = sorted({epoch for values in curves for epoch in values})
        columns = [[values[epoch] for values in curves if epoch in values] for epoch in epochs]
        return Spread(
            epochs,
            [statistics.fmean(column) for column in columns],
            [min(column) for column in columns],
            [max(column) for column in columns],
        )


@dataclass(frozen=True)
class Difference:
    """A configuration key whose value is not the same everywhere.

    Args:
        key: with dots.
        values: the text of each group's value, in the order of the groups.
    """

    key: str
    values: tuple[str, ...]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups in the order in which their first runs come.

    Runs with the same label form one group; without a label, runs whose configurations are equal
    apart from seed and place do.

    Raises:
        UserInputError: runs of one label were trained with different `model` options.
    """
    members: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        members.setdefault(_identity(run), []).append(run)
    groups = list(members.values())
    for group in groups:
        _refuse_mixed_models(group)
    automatic = iter(_names([group[0].config for group in groups if group[0].label is None]))
    names = [group[0].label or next(automatic) for group in groups]
    return [
        Group(_alone(name, names, group[0]), tuple(group))
        for name, group in zip(names, groups, strict=True)
    ]


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Return the keys whose values differ between the runs of different groups.

    Where the runs of a label differ among themselves, their values stand beside each other.
    """
    runs = [run for group in groups for run in group.runs]
    return [
        Difference(
            key,
            tuple(
                " / ".join(dict.fromkeys(_full(run.config, key) for run in group.runs))
                for group in groups
            ),
        )
        for key in _differing([run.config for run in runs])
    ]


def _identity(run: Run) -> tuple[str, str]:
    """Return what two runs of one group have in common."""
    if run.label is not None:
        return "label", run.label
    if not run.config:  # nothing says that it is the same as another
        return "path", str(run.path.resolve())
    return "config", repr(sorted(_compared(run.config).items()))


def _compared(config: Config) -> Config:
    """Return what decides the group; null and a key that an older version lacks are the same."""
    return {k: v for k, v in config.items() if k not in _NOT_COMPARED and v is not None}


def _refuse_mixed_models(group: Sequence[Run]) -> None:
    models = [{k: v for k, v in run.config.items() if k.startswith("model.")} for run in group]
    keys = _differing(models)
    if not keys:
        return
    first, other = next(
        (group[0], run)
        for run, model in zip(group, models, strict=True)
        if model.get(keys[0]) != models[0].get(keys[0])
    )
    raise UserInputError(
        f"the label {group[0].label!r} stands for {first.path} and {other.path}, which differ in "
        f"{keys[0]} ({_full(first.config, keys[0])} and {_full(other.config, keys[0])}); a curve "
        f"averages runs of one model. Give them different labels."
    )


def _differing(configs: Sequence[Config]) -> list[str]:
    """Return the keys with more than one value, those that tell most first."""
    compared = [_compared(config) for config in configs if config]
    keys = list(dict.fromkeys(key for config in compared for key in config))
    found = [key for key in keys if len({repr(config.get(key)) for config in compared}) > 1]
    return sorted(found, key=_rank)


def _rank(key: str) -> int:
    for rank, prefix in enumerate(_TELLING):
        if key == prefix or key.startswith(f"{prefix}."):
            return rank
    return len(_TELLING)


def _names(configs: Sequence[Config]) -> list[str]:
    """Name each configuration by as few keys as set all of them apart."""
    names = [_text(config.get("model.model", "")) for config in configs]
    if len(configs) < 2:
        return names
    chosen: list[str] = []
    for key in _differing(configs):
        wider = _named_by([*chosen, key], configs)
        if not chosen or len(set(wider)) > len(set(names)):
            chosen, names = [*chosen, key], wider
    # A key that was added first may say nothing that the later ones do not.
    for key in chosen[1:]:
        fewer = _named_by([other for other in chosen if other != key], configs)
        if len(set(fewer)) == len(set(names)):
            chosen.remove(key)
            names = fewer
    return names


def _alone(name: str, names: Sequence[str], run: Run) -> str:
    """Return a group's name, with its directory's where the name is empty or not the only one."""
    if name and names.count(name) == 1:
        return name
    folder = run.path.resolve().name
    return f"{name} ({folder})" if name else folder


def _named_by(keys: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """Return a name per configuration; an empty one where there is no configuration."""
    leaves = [key.rpartition(".")[2] for key in keys]
    columns = []
    for key, leaf in zip(keys, leaves, strict=True):
        # Two keys with the same last part need the one before it too.
        title = leaf if leaves.count(leaf) == 1 else ".".join(key.split(".")[-2:])
        values = [_text(config[key]) if key in config else DEFAULT for config in configs]
        prefix = "" if key == "model.model" else f"{title}="
        columns.append([f"{prefix}{value}" for value in _brief(values)])
    return [
        ", ".join(parts) if config else ""
        for config, parts in zip(configs, zip(*columns, strict=True), strict=True)
    ]


def _brief(values: Sequence[str]) -> list[str]:
    """Return values for a legend: of paths the parts that differ, of long texts both ends."""
    parts = [value.split("/") for value in values]
    while all(len(p) > 1 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    kept = 1
    while len({tuple(p[-kept:]) for p in parts}) < len(set(values)):
        kept += 1
    half = _VALUE_CHARACTERS // 2
    texts = ["/".join(p[-kept:]) for p in parts]
    return [t if len(t) <= 2 * half else f"{t[:half]}…{t[1 - half :]}" for t in texts]


def _full(config: Config, key: str) -> str:
    return _text(config[key]) if key in config else ABSENT


def _text(value: object) -> str:
    """Return a value as it would stand in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(_text(entry) for entry in value)}]"
    # Addresses of shards may be signed; a report is passed on.
    return without_secrets(str(value))
