"""simplejpeg's decoder: Pillow's pixels before the resize, and Pillow for all that is not usual."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from odd_images import HEIGHT, WIDTH, damaged, sound

from resscale.data.augment import Box, CenterCrop, Cut
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decode_simplejpeg import SimpleJpegDecoder, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Whole:
    """A crop that takes a square at its own size: nothing is resized."""

    size = 150
    num_uniforms = 0

    def box(self, width: int, height: int, uniform: np.ndarray) -> Box:
        return Cut(1, 2, 151, 152)


def decoded(decoder: SimpleJpegDecoder | PillowDecoder, raw: bytes) -> Pixels:
    out = np.empty((150, 150, decoder.channels), dtype=np.uint8)
    decoder.decode(raw, Whole(), np.empty(0), out)
    return out


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:4:4", "grey", "progressive", "cmyk", "png"])
@pytest.mark.parametrize("channels", [3, 1])
def test_decoded_pixels_are_pillows(kind: str, channels: int) -> None:
    assert min(WIDTH, HEIGHT) > 152
    raw = sound()[kind]
    found, expected = (decoded(d(channels), raw) for d in (SimpleJpegDecoder, PillowDecoder))
    assert np.array_equal(found, expected)


def test_damage_is_told_in_pillows_words() -> None:
    with pytest.raises(DecodeError, match="image file is truncated"):
        decoded(SimpleJpegDecoder(), damaged()["cut-at-50%"])


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(DecodeError, match="DecompressionBombError"):
        decoded(SimpleJpegDecoder(), damaged()["bomb"])


def test_a_copy_through_pickle_decodes_alike() -> None:
    decoder = SimpleJpegDecoder(1)
    copy = pickle.loads(pickle.dumps(decoder))
    raw = sound()["4:2:0"]
    assert np.array_equal(decoded(copy, raw), decoded(decoder, raw))


def test_what_lies_outside_the_image_is_black() -> None:
    class Beside(Whole):
        def box(self, width: int, height: int, uniform: np.ndarray) -> Box:
            return Box(WIDTH + 5, 0, WIDTH + 155, 150)

    out = np.full((150, 150, 3), 77, dtype=np.uint8)
    SimpleJpegDecoder().decode(sound()["4:2:0"], Beside(), np.empty(0), out)
    assert (out == 0).all()


def test_the_centre_is_that_of_pillow() -> None:
    crop = CenterCrop(64, 80)
    found, expected = (np.empty((64, 64, 3), dtype=np.uint8) for _ in range(2))
    SimpleJpegDecoder().decode(sound()["4:4:4"], crop, np.empty(0), found)
    PillowDecoder().decode(sound()["4:4:4"], crop, np.empty(0), expected)
    assert np.array_equal(found, expected)
