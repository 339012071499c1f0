"""Class names from a file: one per line, the first for label 0."""

from __future__ import annotations

from pathlib import Path

from resscale.errors import DataFormatError

_FASHION_MNIST = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KNOWN_NAMES = {"fashion-mnist": _FASHION_MNIST}


def read_class_names(file: str | None) -> tuple[str, ...]:
    """Return the names in a file, or of a known data set (`fashion-mnist`); empty for None.

    Raises:
        DataFormatError: no such file, no names, or one that is there twice.
    """
    if file is None:
        return ()
    if file in KNOWN_NAMES:
        return KNOWN_NAMES[file]
    try:
        lines = Path(file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(KNOWN_NAMES)
        raise DataFormatError(
            f"--classes {file} cannot be read ({error}). Give a text file with a name per line, "
            f"or {known}."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise DataFormatError(
            f"--classes {file} holds {f'{twice!r} twice' if twice else 'no names'}; "
            f"each class needs a name of its own, one per line."
        )
    return names
