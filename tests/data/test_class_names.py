"""Class names from a file."""

from pathlib import Path

import pytest

from resscale.data.class_names import read_class_names
from resscale.errors import DataFormatError


def test_names_by_line(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("cat\n dog \n\n")
    assert read_class_names(str(tmp_path / "names")) == ("cat", "dog")
    assert read_class_names(None) == ()


def test_known_names() -> None:
    assert read_class_names("fashion-mnist")[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no names"), ("a\nb\na\n", "holds 'a' twice")]
)
def test_unusable_names(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(DataFormatError, match=message):
        read_class_names(str(tmp_path / "names"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"--classes .* cannot be read"):
        read_class_names(str(tmp_path / "none"))
