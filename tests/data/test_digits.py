"""The embedded digits are scikit-learn's, and small."""

from pathlib import Path

import numpy as np
from sklearn import datasets

import resscale.data.digits as digits
from resscale.data.source_reader import SourceReader


def test_pixels_and_labels_are_those_of_scikit_learn() -> None:
    images, labels = digits.load_digits()
    theirs = datasets.load_digits()
    np.testing.assert_array_equal(labels, theirs.target)
    # 16 grades become 256: 255 / 16 = 15.9375 per grade, so dividing and rounding gives them back.
    np.testing.assert_array_equal(np.round(images / 15.9375), theirs.images)
    assert (images.min(), images.max()) == (0, 255)


def test_splits_cover_each_image_once() -> None:
    train, test = digits.digits_splits()
    assert (len(train.samples), len(test.samples)) == (1437, 360)
    assert train.samples.keys[0] == b"train-0000"
    assert test.samples.keys[-1] == b"test-1796"
    images, labels = digits.load_digits()
    with SourceReader() as reader:
        for split, start in ((train, 0), (test, 1437)):
            for row, ref in enumerate(split.samples.refs(np.arange(3))):
                assert reader.read(ref) == images[start + row].tobytes()
                assert ref.label == labels[start + row]


def test_file_is_small() -> None:
    assert Path(digits.__file__).with_name("digits.npz").stat().st_size < 60_000
