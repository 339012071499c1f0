"""`resscale.report.plan_gpus`: names of GPUs and links, and figures with a source."""

import pytest

from resscale.errors import UserInputError
from resscale.report.plan_gpus import GPUS, LINKS, Gpu, find_gpu, find_link


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("h100", "h100"),
        ("H100", "h100"),
        ("NVIDIA H100", "h100"),
        ("h100-sxm5", "h100"),
        ("H100 PCIe", "h100-pcie"),
        ("A100-80GB", "a100"),
        ("a100-40gb", "a100-40gb"),
        ("4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("Tesla V100", "v100"),
    ],
)
def test_a_gpu_is_known_by_the_names_that_people_use(said: str, name: str) -> None:
    assert find_gpu(said).name == name


def test_an_unknown_gpu_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserInputError, match=r"--gpu h10 is not one of .* Did you mean 'h100'\?"):
        find_gpu("h10")


def test_an_unknown_link_is_refused_with_the_nearest_one() -> None:
    assert find_link("nvlink4") == 450e9  # 900 GB/s in both directions
    with pytest.raises(UserInputError, match=r"--gpu-link nvlink is not one of .*Did you mean"):
        find_link("nvlink")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_gpu_has_a_peak_a_link_and_a_rate_or_one_to_scale(gpu: Gpu) -> None:
    assert gpu.peak_flops_per_s > 1e13
    assert gpu.link in LINKS
    assert (None in (gpu.images_per_s, gpu.images_per_s_fp32)) == (gpu.like is not None)
    if gpu.like is not None:
        assert GPUS[gpu.like].images_per_s is not None
