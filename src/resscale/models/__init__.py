"""The ResNet family of He et al. 2015 (arXiv 1512.03385), one class composed by options."""

from resscale.models.macs import count_macs
from resscale.models.options import ResNetOptions
from resscale.models.resnet import ResNet
from resscale.models.variants import create_model, list_models
from resscale.models.weights import LoadedWeights, load_weights

__all__ = [
    "LoadedWeights",
    "ResNet",
    "ResNetOptions",
    "count_macs",
    "create_model",
    "list_models",
    "load_weights",
]
