"""The ResNet family of He et al. 2015 (arXiv 1512.03385), one class composed by options."""

from resscale.models.blocks import ResNetOptions
from resscale.models.resnet import ResNet, count_macs
from resscale.models.variants import create_model, list_models

__all__ = ["ResNet", "ResNetOptions", "count_macs", "create_model", "list_models"]
