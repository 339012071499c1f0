"""Every shipped configuration: it parses, builds, says what to expect, and refuses misspelt keys.

All go through the real parser, the one that `resscale fit` uses.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from resscale import ImageClassifier
from resscale.cli import main
from resscale.cli_lightning import TrainCli
from resscale.data import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.schedule import lr_at

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)

REPOSITORY = Path(__file__).resolve().parents[1]
# What describes a cluster is no training: tests/cluster/test_site.py loads it.
ALL = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "configs").rglob("*.y*ml")
    if path.parent.name != "cluster" and not path.is_symlink()
)
# A part of a configuration, laid over a whole one.
OVERLAYS = [path for path in ALL if path.startswith(("configs/paper/data/", "configs/strategy/"))]
CONFIGS = [path for path in ALL if path not in OVERLAYS]
PAPER = [path for path in CONFIGS if path.startswith("configs/paper/")]
RECIPES = [path for path in CONFIGS if path.startswith("configs/imagenet/")]
PUBLISHED_TOP1 = {18: 69.758, 34: 73.314, 50: 76.130, 101: 77.374, 152: 78.312}
RESNET50 = "configs/imagenet/resnet50_90ep.yaml"
# torchvision's first recipe at each depth
IMAGENET = [
    RESNET50 if depth == 50 else f"configs/imagenet/resnet{depth}.yaml" for depth in PUBLISHED_TOP1
]
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
    names = ["a1", "a2", "a3", "tv2", "fast_16ep", "fast_40ep", "fast_88ep"]
    names += ["large_batch_8k", "large_batch_32k"]
    imagenet = [*IMAGENET, *(f"configs/imagenet/resnet50_{name}.yaml" for name in names)]
    others = ["configs/demo.yaml", "configs/debug.yaml", "configs/fashion_mnist/resnet20.yaml"]
    assert {*imagenet, *others} <= set(CONFIGS)
    assert set(RECIPES) == set(imagenet)


def test_resnet50_has_a_short_name() -> None:
    assert Path("configs/imagenet/resnet50.yaml").resolve() == (REPOSITORY / RESNET50).resolve()


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
    assert re.search(rf"^{field}: +[^@\s]", header(path), re.M)


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
    depth = int(re.findall(r"resnet(\d+)", path)[0])
    assert f"top-1 {PUBLISHED_TOP1[depth]:.3f}%" in text
    assert f"ResNet{depth}_Weights.IMAGENET1K_V1" in text
    assert "--trainer.devices 8 --trainer.strategy ddp" in text


@pytest.mark.parametrize("path", IMAGENET)
def test_an_imagenet_config_is_torchvision_s_first_recipe(path: str) -> None:
    config = parse(path).config
    assert config.model.model == Path(path).stem.removesuffix("_90ep")
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
    cli = parse(RESNET50)
    model = cli.parser.instantiate_classes(cli.config).model
    found = lr_at(
        epoch * STEPS_PER_EPOCH,
        model.schedule_config,
        base_lr=model.optimizer_config.scaled_lr(model.global_batch_size),
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=cli.config.trainer.max_epochs * STEPS_PER_EPOCH,
    )
    assert found == pytest.approx(lr)


@pytest.mark.parametrize("path", RECIPES)
@pytest.mark.parametrize("field", ["data", "memory", "protocol"])
def test_a_recipe_card_says_data_memory_and_protocol(path: str, field: str) -> None:
    assert re.search(rf"^{field}: +[^@\s]", header(path), re.M)


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_card_has_a_command_for_one_gpu_for_eight_and_for_nodes(path: str) -> None:
    text = header(path)
    assert f"resscale fit --config {path}\n" in text
    assert f"resscale fit --config {path} --trainer.devices 8 --trainer.strategy ddp\n" in text
    assert re.search(rf"resscale submit --nodes \d+ .*--config {path}\n", text)
    assert f"resscale plan --config {path} --gpu " in text
    assert "not yet measured here" in " ".join(text.split())


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_s_curve_ends_where_its_card_says(path: str) -> None:
    config = yaml.safe_load(Path(path).read_text())
    end = max(config["expected"]["top1"])
    assert end <= config["trainer"]["max_epochs"]
    top1 = 100 * config["expected"]["top1"][end]
    published = re.findall(r"(\d+\.\d+)%", header(path).split("expected:")[1].split("source:")[0])
    # Cards state one to three decimals.
    assert any(abs(top1 - float(number)) < 0.06 for number in published)


# Each recipe's rates, by its source's own formula.
@pytest.mark.parametrize(
    ("name", "epoch", "lr"),
    [
        ("a1", 0, 1e-4),  # timm's warmup_lr
        ("a1", 300, 0.5 * (5e-3 + 1e-6)),  # half of a cosine over all 600 epochs, to 1e-6
        ("a3", 0, 1e-4),
        ("a3", 50, 0.5 * (8e-3 + 1e-6)),
        ("tv2", 0, 0.005),  # 0.5 × 0.01
        ("tv2", 5, 0.5),
        ("tv2", 302.5, 0.25),  # (600 - 5)/2 epochs behind the warm-up: half of the cosine
        ("fast_16ep", 2, 1.7),
        ("fast_16ep", 9, 0.85),  # half of the 14 epochs from 2 to 16
        ("fast_88ep", 45, 0.85),
        ("large_batch_32k", 25, 31.2),
        ("large_batch_32k", 50.5, 7.8),  # half of the 51 epochs are left: 31.2 × 0.5²
        ("large_batch_8k", 5, 17.7),
    ],
)
def test_a_recipe_has_its_source_s_learning_rates(name: str, epoch: float, lr: float) -> None:
    cli = parse(f"configs/imagenet/resnet50_{name}.yaml")
    model = cli.parser.instantiate_classes(cli.config).model
    steps_per_epoch = 1_281_167 // model.global_batch_size
    found = lr_at(
        round(epoch * steps_per_epoch),
        model.schedule_config,
        base_lr=model.optimizer_config.scaled_lr(model.global_batch_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=cli.config.trainer.max_epochs * steps_per_epoch,
    )
    # Sources count warm-up steps from 0 or from 1.
    assert found == pytest.approx(lr, rel=0.02)


@pytest.mark.parametrize(
    ("name", "world_size", "plan"),
    [
        ("a2", 8, "252/rank × 8 ranks × 1 accum = 2,016 global"),
        ("tv2", 8, "128/rank × 8 ranks × 1 accum = 1,024 global"),
        ("fast_40ep", 8, "512/rank × 8 ranks × 1 accum = 4,096 global"),
        ("large_batch_8k", 64, "128/rank × 64 ranks × 1 accum = 8,192 global"),
        ("large_batch_32k", 256, "128/rank × 256 ranks × 1 accum = 32,768 global"),
    ],
)
def test_a_recipe_s_batch_fits_the_gpus_of_its_card(name: str, world_size: int, plan: str) -> None:
    cli = parse(f"configs/imagenet/resnet50_{name}.yaml")
    built = cli.parser.instantiate_classes(cli.config).data
    assert str(built.plan(world_size)).replace(",", "") == plan.replace(",", "")


@pytest.mark.parametrize("name", ["a1", "a3", "tv2", "fast_16ep", "large_batch_32k"])
def test_a_recipe_trains(name: str, tmp_path: Path) -> None:
    """All its ingredients together, on small grey images and a small net."""
    small = {
        "model": {"model": "resnet20_cifar", "num_classes": 10, "mean": [0.3], "std": [0.4]},
        "data": {
            "train": "builtin:digits/train",
            "val": "builtin:digits/test",
            "test": None,
            "channels": 1,
            "image_size": 8,
            "eval_size": 8,
            "eval_resize": 9,
            "global_batch_size": 60,
            "micro_batch_size": 30,
            "eval_batch_size": 180,
            "num_workers": 0,
        },
        "trainer": {"max_epochs": 3, "limit_train_batches": 2, "accelerator": "cpu"},
        "expected": {"top1": {}},
    }
    written = yaml.safe_load(Path(f"configs/imagenet/resnet50_{name}.yaml").read_text())
    if "policy" in written["model"]:
        small["model"]["policy"] = {"fill": [0]}
    if "progressive" in written["data"]:
        growth = {"from_size": 4, "from_epoch": 0, "until_epoch": 2, "multiple": 2}
        small["data"]["progressive"] = growth
    small["model"]["schedule"] = {"warmup_epochs": 1}
    over = tmp_path / "small.yaml"
    over.write_text(yaml.safe_dump(small))
    run = tmp_path / "run"
    configs = ["--config", f"configs/imagenet/resnet50_{name}.yaml", "--config", str(over)]
    assert main(["fit", *configs, "--run_dir", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["status"] == "done"


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
    config = yaml.safe_load(Path(RESNET50).read_text())
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
