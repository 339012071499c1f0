"""`resscale.report.plan_network`: what people write for a network."""

import pytest

from resscale.errors import UserInputError
from resscale.report.plan_network import LINK_EFFICIENCY, build_cluster, parse_network


@pytest.mark.parametrize(
    ("text", "gigabits", "adapters"),
    [
        ("400Gb", 400, 1),
        ("400 Gb/s", 400, 1),
        ("8x400Gb", 400, 8),
        ("8 × 400gbps", 400, 8),
        ("100GbE", 100, 1),
        ("25g", 25, 1),
        ("ib-ndr", 400, 1),
        ("NDR", 400, 1),
        ("4xib-hdr", 200, 4),
        ("efa-p5", 3200, 1),
    ],
)
def test_a_rate_or_a_name_with_adapters_before_it(
    text: str, gigabits: float, adapters: int
) -> None:
    network = parse_network(text)
    assert (network.gigabits, network.adapters) == (gigabits, adapters)
    assert network.node_bytes_per_s == gigabits * adapters * 1e9 / 8


def test_adapters_are_said_once() -> None:
    assert parse_network("400Gb", 8) == parse_network("400Gb", 8)
    assert parse_network("400Gb", 8).adapters == 8
    assert parse_network("8x400Gb", 8).adapters == 8
    with pytest.raises(UserInputError, match="says 8 adapters and --nics-per-node 4"):
        parse_network("8x400Gb", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ib-nrd", r"Did you mean 'ib-ndr'\?"),
        ("fast", r"--network fast is neither a rate such as 400Gb"),
        ("0Gb", r"must be above 0"),
        ("0x400Gb", r"must be above 0"),
    ],
)
def test_what_is_no_network_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        parse_network(text)


def test_nodes_need_a_network_and_data_get_a_share_of_it() -> None:
    cluster = build_cluster(2, 8, 450e9, parse_network("8x400Gb"))
    assert cluster.node_bytes_per_s == pytest.approx(LINK_EFFICIENCY * 400e9)
    assert cluster.gpu_bytes_per_s == pytest.approx(LINK_EFFICIENCY * 450e9)
    build_cluster(1, 8, 450e9, None)
    with pytest.raises(UserInputError, match="--nodes 2 needs --network"):
        build_cluster(2, 8, 450e9, None)
