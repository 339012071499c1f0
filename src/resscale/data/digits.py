"""The embedded data set: 1,797 handwritten digits of 8×8 pixels.

Source: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository (1998), https://doi.org/10.24432/C50P49, licence CC BY 4.0; the 1,797 images
are its test part, the same as `sklearn.datasets.load_digits`, kept in `digits.npz`.

The last 360 images are held out for testing. The file goes form by form, one after the other,
each about 130 digits by one hand, so they come from other writers than the first 1,437: all but
the form that begins at image 1,415, whose first 22 digits are in the training part.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resscale.data.pack_samples import Split, samples_in_file

CONTAINER = "builtin:digits"
NUM_TRAIN = 1437
_MAX_INK = 16  # the source's images hold 0 (paper) to 16 (ink)


@lru_cache(maxsize=1)
def load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the images, 0 to 255, uint8 (1797, 8, 8), and the labels, uint8 (1797,)."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return np.round(images * (255 / _MAX_INK)).astype(np.uint8), labels


def digits_splits() -> list[Split]:
    """Return the splits `train` (1,437 samples) and `test` (360); keys are `<split>-<position>`."""
    images, labels = load_digits()
    _, height, width = images.shape
    splits = []
    for name, begin, end in (("train", 0, NUM_TRAIN), ("test", NUM_TRAIN, len(labels))):
        rows = np.arange(begin, end, dtype=np.int64)
        samples = samples_in_file(
            CONTAINER,
            keys=(f"{name}-{row:04d}" for row in rows.tolist()),
            labels=labels[begin:end].astype(np.int64),
            offsets=rows * (height * width),
            sizes=np.full(len(rows), height * width, np.int64),
            pixel_shape=(height, width),
        )
        splits.append(Split(name, samples, tuple("0123456789")))
    return splits
