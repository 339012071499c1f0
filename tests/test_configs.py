"""Every shipped configuration: it parses, builds, says what to expect, and refuses misspelt keys.

All go through the real parser, the one that `resscale fit` uses.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from resscale import ImageClassifier
from resscale.cli_lightning import TrainCli
from resscale.data import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.schedule import lr_at

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

REPOSITORY = Path(__file__).resolve().parents[1]
# What describes a cluster is no training: tests/cluster/test_site.py loads it.
ALL = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "configs").rglob("*.y*ml")
    if path.parent.name != "cluster"
)
# A part of a configuration, laid over a whole one.
OVERLAYS = [path for path in ALL if path.startswith(("configs/paper/data/", "configs/strategy/"))]
CONFIGS = [path for path in ALL if path not in OVERLAYS]
PAPER = [path for path in CONFIGS if path.startswith("configs/paper/")]
IMAGENET = [path for path in CONFIGS if path.startswith("configs/imagenet/")]
PUBLISHED_TOP1 = {18: 69.758, 34: 73.314, 50: 76.130, 101: 77.374, 152: 78.312}
STEPS_PER_EPOCH = 1_281_167 // 256


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in the headers are for the root of the checkout."""
    monkeypatch.chdir(REPOSITORY)


def parse(path: str | Path) -> TrainCli:
    """Parse a configuration as `resscale fit --config PATH` does."""
    return TrainCli("fit", ["--config", str(path)])


def header(path: str) -> str:
    """Return the comment that a configuration begins with, without its marks."""
    lines = []
    for line in Path(path).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def test_the_recipes_that_are_promised_are_there() -> None:
    imagenet = [f"configs/imagenet/resnet{depth}.yaml" for depth in PUBLISHED_TOP1]
    others = ["configs/demo.yaml", "configs/debug.yaml", "configs/fashion_mnist/resnet20.yaml"]
    assert {*imagenet, *others} <= set(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_builds_the_model_and_the_data_module_it_names(path: str) -> None:
    cli = parse(path)
    built = cli.parser.instantiate_classes(cli.config)
    assert isinstance(built.model, ImageClassifier)
    assert isinstance(built.data, ShardDataModule)
    written = yaml.safe_load(Path(path).read_text())
    assert built.model.num_classes == written["model"]["num_classes"]
    assert built.data.locations["train"] == written["data"]["train"]
    assert built.model.global_batch_size == built.data.global_batch_size
    assert len(built.model.pixel_scale) == built.model.in_channels == built.data.channels


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_s_trainer_section_makes_a_trainer(path: str, tmp_path: Path) -> None:
    written = yaml.safe_load(Path(path).read_text())["trainer"]
    trainer = Trainer(
        **written,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    assert trainer.max_epochs == written["max_epochs"]


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("field", ["command", "hardware", "time", "expected", "source"])
def test_a_header_says_how_on_what_how_long_and_to_what_end(path: str, field: str) -> None:
    assert re.search(rf"^{field}: +\S", header(path), re.M)


@pytest.mark.parametrize("path", ALL)
def test_a_header_s_commands_name_the_config_itself(path: str) -> None:
    named = re.findall(r"resscale fit\b.*--config (\S+)", header(path))
    assert named
    assert set(named) == {path}


def test_the_paper_s_experiments_are_there() -> None:
    names = ["degradation", "shortcuts", "depths", "bottleneck", "layer_responses"]
    assert {f"configs/paper/{name}.yaml" for name in names} == set(PAPER)


@pytest.mark.parametrize("path", PAPER)
def test_every_command_of_a_paper_s_header_parses(path: str) -> None:
    commands = re.findall(r"resscale fit (.+)", header(path))
    assert commands
    for command in commands:
        cli = TrainCli("fit", command.split())
        assert cli.parser.instantiate_classes(cli.config).model.num_parameters > 0


def test_the_paper_s_experiments_differ_in_the_net_alone() -> None:
    first, *others = (yaml.safe_load(Path(path).read_text()) for path in PAPER)
    for other in others:
        for config in (first, other):
            config["model"] = {k: v for k, v in config["model"].items() if k[:5] != "model"}
        assert other == first


@pytest.mark.parametrize("path", PAPER)
@pytest.mark.parametrize(
    ("overlay", "channels", "size", "classes"),
    [("cifar10", 3, 32, 10), ("imagenet", 3, 224, 1000)],
)
def test_another_data_set_is_one_more_config(
    path: str, overlay: str, channels: int, size: int, classes: int
) -> None:
    over = f"configs/paper/data/{overlay}.yaml"
    assert over in OVERLAYS
    built = TrainCli("fit", ["--config", path, "--config", over])
    model = built.parser.instantiate_classes(built.config).model
    data = ShardDataModule(**vars(built.config.data))
    assert (model.in_channels, model.num_classes, len(model.pixel_scale)) == (channels, classes, 3)
    assert (data.channels, data.train_crop.size, data.eval_crop.size) == (channels, size, size)
    assert not any("fashion" in str(location) for location in data.locations.values())


# Section 4.2: 64k steps of 128 images, the rate divided by 10 at 32k and 48k.
@pytest.mark.parametrize(("step", "lr"), [(31_900, 0.1), (32_000, 0.01), (48_000, 0.001)])
def test_cifar_10_has_the_paper_s_schedule(step: int, lr: float) -> None:
    overlay = "configs/paper/data/cifar10.yaml"
    cli = TrainCli("fit", ["--config", PAPER[0], "--config", overlay])
    model = cli.parser.instantiate_classes(cli.config).model
    steps_per_epoch = 50_000 // model.global_batch_size
    total = cli.config.trainer.max_epochs * steps_per_epoch
    assert total == pytest.approx(64_000, abs=steps_per_epoch)
    found = lr_at(
        step,
        model.schedule_config,
        base_lr=model.optimizer_config.scaled_lr(model.global_batch_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
    )
    assert found == pytest.approx(lr)
    optimizer = model.optimizer_config
    assert (optimizer.weight_decay, optimizer.momentum, optimizer.nesterov) == (1e-4, 0.9, False)


@pytest.mark.parametrize("path", IMAGENET)
def test_an_imagenet_header_says_what_was_published_and_that_it_is_not_measured(path: str) -> None:
    text = header(path)
    depth = int(Path(path).stem.removeprefix("resnet"))
    assert f"top-1 {PUBLISHED_TOP1[depth]:.3f}%" in text
    assert f"ResNet{depth}_Weights.IMAGENET1K_V1" in text
    assert text.count("not yet measured here") == 2
    assert "--trainer.devices 8 --trainer.strategy ddp" in text


@pytest.mark.parametrize("path", IMAGENET)
def test_an_imagenet_config_is_torchvision_s_first_recipe(path: str) -> None:
    config = parse(path).config
    assert config.model.model == Path(path).stem
    optimizer: dict[str, Any] = vars(config.model.optimizer)
    for not_of_sgd in ("trust_coefficient", "eps", "betas", "implementation"):
        del optimizer[not_of_sgd]
    assert optimizer == {
        "name": "sgd",
        "lr": 0.1,
        "lr_batch_size": 256,
        "lr_scaling": "linear",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
        "decay_norm_and_bias": True,
    }
    assert config.model.label_smoothing == 0.0
    assert config.trainer.max_epochs == 90
    assert config.data.global_batch_size == 256


@pytest.mark.parametrize("path", IMAGENET)
@pytest.mark.parametrize(
    ("world_size", "plan"),
    [
        (1, "32/rank × 1 rank × 8 accum = 256 global"),
        (8, "32/rank × 8 ranks × 1 accum = 256 global"),
    ],
)
def test_batchnorm_sees_32_images_on_one_gpu_and_on_eight(
    path: str, world_size: int, plan: str
) -> None:
    cli = parse(path)
    data = ShardDataModule(**vars(cli.config.data))
    assert str(data.plan(world_size)) == plan


@pytest.mark.parametrize(
    ("epoch", "lr"), [(0, 0.1), (29, 0.1), (30, 0.01), (60, 0.001), (89, 0.001)]
)
def test_resnet50_s_learning_rate_falls_to_a_tenth_every_30_epochs(epoch: int, lr: float) -> None:
    cli = parse("configs/imagenet/resnet50.yaml")
    model = cli.parser.instantiate_classes(cli.config).model
    found = lr_at(
        epoch * STEPS_PER_EPOCH,
        model.schedule_config,
        base_lr=model.optimizer_config.scaled_lr(model.global_batch_size),
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=cli.config.trainer.max_epochs * STEPS_PER_EPOCH,
    )
    assert found == pytest.approx(lr)


@pytest.mark.parametrize(
    ("section", "right", "wrong"),
    [
        ("model", "label_smoothing", "label_smothing"),
        ("data", "global_batch_size", "global_batchsize"),
        ("trainer", "max_epochs", "max_epoch"),
        ("model.optimizer", "weight_decay", "wieght_decay"),
        ("model.schedule", "step_epochs", "step_epoch"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_valid_name(
    tmp_path: Path, section: str, right: str, wrong: str
) -> None:
    config = yaml.safe_load(Path("configs/imagenet/resnet50.yaml").read_text())
    where = config
    for part in section.split("."):
        where = where[part]
    where[wrong] = where.pop(right)
    path = tmp_path / "misspelt.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserInputError) as refused:
        parse(path)
    assert wrong in str(refused.value)
    assert f"Did you mean '{section}.{right}'?" in str(refused.value)
