"""The names that users import: pinned, importable, and loaded only when they are used."""

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "resscale": ["ImageClassifier", "__version__", "create_model", "list_models"],
    "resscale.data": ["EpochOrder", "Manifest", "ShardDataModule", "ShardDataset"],
    "resscale.models": [
        "LoadedWeights",
        "ResNet",
        "ResNetOptions",
        "count_macs",
        "create_model",
        "list_models",
        "load_weights",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these(module: str) -> None:
    assert importlib.import_module(module).__all__ == PUBLIC[module]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names]
)
def test_a_public_name_can_be_imported(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    if name != "__version__":
        assert found.__name__ == name
        assert found.__doc__


@pytest.mark.parametrize("module", ["resscale", "resscale.data"])
def test_a_name_that_is_not_there_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        _ = importlib.import_module(module).nothing


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    import resscale

    assert resscale.__version__ == version("resscale")


def test_importing_the_package_imports_no_torch() -> None:
    script = (
        "import sys, resscale, resscale.data\n"
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
