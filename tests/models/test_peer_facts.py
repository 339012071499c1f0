"""Every name that torchvision or timm has too: the same keys, shapes and number of parameters.

The peers are not installed here. What they have was written down by `benchmarks/model_equality.py
--write-facts`, and the same script compares outputs and gradients where they are installed.
"""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from resscale.models import create_model, list_models

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "peer_facts.json").read_text())
IN_FULL = json.loads(gzip.decompress((HERE / "peer_state_dicts.json.gz").read_bytes()))


def build(name):
    # A few of the peer's nets are ours of another name with options.
    with torch.device("meta"):
        return create_model(FACTS[name]["ours"], **FACTS[name]["options"])


def sha256(keys_and_shapes):
    """The facts' hash: of the sorted lines `key shape`, each shape a tuple."""
    lines = sorted(f"{key} {tuple(shape)}\n" for key, shape in keys_and_shapes)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def shapes_of(net):
    return {key: list(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", FACTS)
def test_a_net_has_the_keys_shapes_and_parameters_of_its_peer(name):
    net = build(name)
    shapes = shapes_of(net)

    assert sum(p.numel() for p in net.parameters()) == FACTS[name]["parameters"]
    assert len(shapes) == FACTS[name]["num_keys"]
    assert sha256(shapes.items()) == FACTS[name]["keys_sha256"]


# The same as above in a form that names the key when it fails.
@pytest.mark.parametrize("name", IN_FULL)
def test_a_state_dict_is_that_of_its_peer_key_by_key_and_in_its_order(name):
    shapes = shapes_of(build(name))

    assert shapes == dict(IN_FULL[name])
    assert list(shapes) == [key for key, _ in IN_FULL[name]]


@pytest.mark.parametrize("name", IN_FULL)
def test_the_written_keys_are_those_that_were_hashed(name):
    assert sha256(IN_FULL[name]) == FACTS[name]["keys_sha256"]
    assert len(IN_FULL[name]) == FACTS[name]["num_keys"]


def test_every_name_is_compared_unless_no_peer_has_it():
    named = {name for name in FACTS if FACTS[name]["ours"] == name}
    # torchvision and timm have no CIFAR nets, no plain ones and none with the paper's strides.
    alone = {name for name in list_models() if name.endswith(("_cifar", "_v1"))}

    assert named == set(list_models()) - alone - {"plain18", "plain34"}


def test_the_facts_cover_torchvisions_ten_and_timms():
    sources = [facts["source"].split()[0] for facts in FACTS.values()]

    # torchvision has ten ResNets; every other name is timm's.
    assert sources.count("torchvision") == 10
    assert sources.count("timm") == len(FACTS) - 10
    assert len(IN_FULL) == 10 + 4
