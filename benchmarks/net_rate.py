"""Training rate of nets side by side: images per second of CPU time, and the ratio to the first.

    python benchmarks/net_rate.py resnet20_cifar resnet29_bottleneck_cifar --image_size 8
    python benchmarks/net_rate.py resnet20_cifar resnet20_cifar:shortcut=B resnet20_cifar:shortcut=C

One thread, bf16 autocast, channels_last, forward and backward of one batch. The nets take turns,
round by round, and the median over rounds is printed: CPU time, not wall time, so that other
processes on the machine disturb little.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from resscale.models import count_macs, create_model


def build(text: str, channels: int) -> nn.Module:
    """Return the net of `name` or `name:option=value,...`."""
    name, _, options = text.partition(":")
    pairs = dict(option.split("=", 1) for option in options.split(",") if option)
    net = create_model(name, num_classes=10, in_channels=channels, **pairs)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def step(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Run a training step without the optimizer."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(net(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]


def cpu_s(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> float:
    """Return the CPU seconds of some steps."""
    started = time.process_time()
    for _ in range(steps):
        step(net, images, labels)
    return time.process_time() - started


def main() -> None:
    """Read the command line, measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Training rates of nets, side by side.")
    parser.add_argument("nets", nargs="+", help="name, or name:option=value,option=value")
    parser.add_argument("--image_size", type=int, default=32, help="pixels (%(default)s)")
    parser.add_argument("--channels", type=int, default=1, help="of the images (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="per round (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (options.batch_size, options.channels, options.image_size, options.image_size)
    images = torch.randn(size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch_size,))
    nets = {text: build(text, options.channels) for text in options.nets}
    for net in nets.values():
        step(net, images, labels)
    seconds: dict[str, list[float]] = {text: [] for text in nets}
    for _ in range(options.rounds):
        for text, net in nets.items():
            seconds[text].append(cpu_s(net, images, labels, options.steps))
    rates = {
        text: options.steps * options.batch_size / statistics.median(times)
        for text, times in seconds.items()
    }
    first = rates[options.nets[0]]
    print("| net | parameters | MMACs | images per CPU second | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for text, net in nets.items():
        macs = count_macs(net, options.image_size, options.channels) / 1e6
        parameters = sum(p.numel() for p in net.parameters())
        rate = rates[text]
        print(f"| {text} | {parameters:,} | {macs:.2f} | {rate:,.0f} | {rate / first:.2f} |")


if __name__ == "__main__":
    main()
