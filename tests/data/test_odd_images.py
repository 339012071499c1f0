"""Every decoder gives every odd file the same verdict, and the same picture, as Pillow does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_images import corrupt, damaged, sound

from resscale.data.augment import CenterCrop, Crop, RandomResizedCrop
from resscale.data.decode import DecodeError, Decoder, Pixels
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decoders import build_decoder, why_not
from resscale.data.inspect import decode_shard
from resscale.data.pack_images import BadSample, ImageRules, prepare_image
from resscale.data.shard_index import build_shard_index

WriteTar = Callable[[Path, list[tuple[str, bytes]]], Path]
FAST = ("native", "nvimgcodec", "simplejpeg")
# Large and small regions in training, the centre in evaluation.
CROPS: tuple[Crop, ...] = (
    CenterCrop(64, 72),
    CenterCrop(224, 256),
    RandomResizedCrop(64, (0.3, 0.6)),
    RandomResizedCrop(96, (0.01, 0.05)),
)
# Planes are resized before colours are made of them: other rounding, and clipping at other times.
LOWEST_DB = {"native": 45.0, "nvimgcodec": 52.0, "simplejpeg": 52.0}


def decoder_or_skip(name: str, channels: int) -> Decoder:
    if reason := why_not(name):
        pytest.skip(reason)
    return build_decoder(name, channels)


def decoded(decoder: Decoder, raw: bytes, crop: Crop, channels: int) -> Pixels | None:
    out = np.full((crop.size, crop.size, channels), 77, dtype=np.uint8)
    uniform = np.random.default_rng(5).random(crop.num_uniforms)
    try:
        decoder.decode(raw, crop, uniform, out)
    except DecodeError:
        return None
    return out


def psnr(one: Pixels, other: Pixels) -> float:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", FAST)
def test_sound_files_have_pillows_picture(name: str, channels: int) -> None:
    decoder, pillow = decoder_or_skip(name, channels), PillowDecoder(channels)
    for kind, raw in sound().items():
        for crop in CROPS:
            found = decoded(decoder, raw, crop, channels)
            expected = decoded(pillow, raw, crop, channels)
            assert found is not None, kind
            assert expected is not None, kind
            assert psnr(found, expected) > LOWEST_DB[name], (kind, crop)


@pytest.mark.parametrize("name", [*FAST, "pillow"])
def test_damaged_files_are_errors(name: str) -> None:
    decoder = decoder_or_skip(name, 3)
    for kind, raw in damaged().items():
        for crop in CROPS:
            assert decoded(decoder, raw, crop, 3) is None, kind


@pytest.mark.parametrize("name", FAST)
def test_bytes_changed_in_the_middle_get_pillows_verdict(name: str) -> None:
    decoder, pillow = decoder_or_skip(name, 3), PillowDecoder(3)
    for kind, raw in corrupt().items():
        for crop in CROPS:
            found, expected = decoded(decoder, raw, crop, 3), decoded(pillow, raw, crop, 3)
            assert (found is None) == (expected is None), (kind, crop)


def test_corrupt_files_are_of_both_verdicts_or_wrong_pictures() -> None:
    # Else the test above would compare nothing but sound files.
    whole = decoded(PillowDecoder(3), sound()["4:2:0"], CROPS[1], 3)
    assert whole is not None
    wrong = 0
    for raw in corrupt().values():
        found = decoded(PillowDecoder(3), raw, CROPS[1], 3)
        wrong += found is None or psnr(found, whole) < 40
    assert wrong >= 6


@pytest.mark.parametrize("name", ["pillow", *FAST])
def test_exif_orientation_is_not_applied(name: str) -> None:
    decoder = decoder_or_skip(name, 3)
    rotated = decoded(decoder, sound()["exif-rotated"], CROPS[0], 3)
    plain = decoded(decoder, sound()["exif-upright"], CROPS[0], 3)
    assert rotated is not None
    assert plain is not None
    assert np.array_equal(rotated, plain)


def test_inspect_and_pack_judge_as_training_does(tmp_path: Path, write_tar: WriteTar) -> None:
    files = {**sound(), **damaged(), **corrupt()}
    names = sorted(files)
    refused = {
        kind for kind in names if decoded(PillowDecoder(3), files[kind], CROPS[0], 3) is None
    }
    members = [(f"{n:03d}.jpg", files[kind]) for n, kind in enumerate(names)]
    shard, index = write_tar(tmp_path / "odd.tar", members), tmp_path / "odd.index.npz"
    build_shard_index(shard).save(index)
    found = decode_shard((str(shard), str(index), np.arange(len(names))))
    assert {names[int(key)] for _, key, _ in found.bad} == refused
    assert {kind for kind in names if not is_packed(files[kind])} == refused


def is_packed(raw: bytes) -> bool:
    try:
        prepare_image(raw, ImageRules(check="full"))
    except BadSample:
        return False
    return True
