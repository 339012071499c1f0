"""Training steps on plain torch: `python torch_steps.py timm --batch_size 256`.

Each as its project writes it, with its fastest flags, on the same random batches, which lie on the
device: `plain` the loop that one writes by hand, `timm` that of timm's train.py (channels_last, amp
in bfloat16, torch.compile), `torchvision` that of its reference (amp, float images made by its
loader; it has neither channels_last nor torch.compile). timm's script waits for the loss at each
step, and torchvision's for three numbers; here timm waits only where it logs, each 50th step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from step_turns import BlockTurns, step_parser
from torch import Tensor, nn
from torch.nn import functional

Step = Callable[[int], None]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LR, _MOMENTUM, _DECAY = 1e-4, 0.9, 1e-4
_LOG_EVERY = 50


def random_batches(options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Return four batches on the device: uint8 (N, 3, H, W) in channels_last memory, and labels."""
    generator = torch.Generator().manual_seed(0)
    size = (options.batch_size, options.image_size, options.image_size, 3)
    made = []
    for _ in range(4):
        image = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        label = torch.randint(0, options.num_classes, size[:1], generator=generator)
        made.append((image.to(options.device).permute(0, 3, 1, 2), label.to(options.device)))
    return made


def amp(options: argparse.Namespace) -> torch.autocast:
    """Return the autocast of a step."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16")


def compiled(net: nn.Module, options: argparse.Namespace) -> nn.Module:
    """Return the net, compiled where that is asked for."""
    if options.compile == "false":
        return net
    made: nn.Module = torch.compile(net, mode=options.compile_mode)
    return made


def normalise(options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Return what makes float32 images of uint8 ones, on the device."""
    mean, std = (
        torch.tensor([255 * value for value in values], device=options.device).view(-1, 1, 1)
        for values in (_MEAN, _STD)
    )
    return lambda image: image.float().sub_(mean).div_(std)


def plain(options: argparse.Namespace) -> Step:
    """Return the step of a loop of ten lines on our net."""
    from resscale.models import create_model

    net: Any = create_model(options.model, num_classes=options.num_classes).to(options.device)
    net = net.to(memory_format=torch.channels_last).train()
    run, batches, prepare = compiled(net, options), random_batches(options), normalise(options)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
    fused = options.device == "cuda" or None
    optimizer = torch.optim.SGD(groups, _LR, _MOMENTUM, nesterov=True, fused=fused)

    def step(number: int) -> None:
        image, label = batches[number % len(batches)]
        with amp(options):
            loss = functional.cross_entropy(run(prepare(image)), label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def timm_step(options: argparse.Namespace) -> Step:
    """Return timm's step: its net, its optimizer, its prefetcher's normalisation."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    net: Any = timm.create_model(options.model, num_classes=options.num_classes)
    net = net.to(options.device).to(memory_format=torch.channels_last).train()
    fused = {"fused": True} if options.device == "cuda" else {}
    optimizer = create_optimizer_v2(
        net, opt="sgd", lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY, **fused
    )
    run, batches, prepare = compiled(net, options), random_batches(options), normalise(options)
    criterion, losses = nn.CrossEntropyLoss().to(options.device), AverageMeter()

    def step(number: int) -> None:
        image, label = batches[number % len(batches)]
        images = prepare(image).contiguous(memory_format=torch.channels_last)
        with amp(options):
            loss = criterion(run(images), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number % _LOG_EVERY == 0:
            losses.update(loss.item(), len(image))

    return step


def torchvision_step(options: argparse.Namespace) -> Step:
    """Return the step of torchvision's reference: its net, its meters' three waits."""
    import torchvision

    net: Any = torchvision.models.get_model(options.model, num_classes=options.num_classes)
    net = net.to(options.device).train()
    optimizer = torch.optim.SGD(net.parameters(), _LR, _MOMENTUM, weight_decay=_DECAY)
    prepare, criterion = normalise(options), nn.CrossEntropyLoss()
    # Its loader normalises on the host: float images come.
    batches = [(prepare(image).contiguous(), label) for image, label in random_batches(options)]

    def step(number: int) -> None:
        image, label = batches[number % len(batches)]
        with amp(options):
            output = net(image)
            loss = criterion(output, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.inference_mode():
            best = output.topk(min(5, options.num_classes), dim=1).indices
            right = best == label.unsqueeze(1)
            loss.item()
            (right[:, :1].sum() / len(image)).item()
            (right.sum() / len(image)).item()

    return step


LOOPS: dict[str, tuple[Callable[[argparse.Namespace], Step], str]] = {
    "plain": (plain, "resscale"),
    "timm": (timm_step, "timm"),
    "torchvision": (torchvision_step, "torchvision"),
}


def main() -> None:
    """Read the command line and train blocks of steps."""
    parser = step_parser()
    parser.add_argument("name", choices=LOOPS)
    options = parser.parse_args()
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    # As timm's and torchvision's scripts set it, and resscale.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    build, distribution = LOOPS[options.name]
    turns = BlockTurns(options.device, (distribution, "torch"))
    step, done = build(options), 0
    while turns.begin():
        for _ in range(options.steps):
            step(done)
            done += 1
        turns.end(options.steps * options.batch_size)


if __name__ == "__main__":
    main()
