"""nvimgcodec's decoder: the region alone, from any thread and process, and nothing cut off."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from odd_images import damaged, sound

from resscale.data.augment import CenterCrop, Crop, RandomResizedCrop
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_nvimgcodec import NvimgcodecDecoder, why_not
from resscale.data.decode_simplejpeg import SimpleJpegDecoder

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TOP = RandomResizedCrop(48, (0.05, 0.1))
TOP_UNIFORM = np.full(TOP.num_uniforms, 0.5) * np.array([1.0] * (TOP.num_uniforms - 1) + [0.0])


def decoded(raw: bytes, crop: Crop = TOP, seed: int | None = None) -> Pixels:
    uniform = np.random.default_rng(seed).random(crop.num_uniforms) if seed else TOP_UNIFORM
    out = np.full((crop.size, crop.size, 3), 77, dtype=np.uint8)
    NvimgcodecDecoder().decode(raw, crop, uniform, out)
    return out


@pytest.mark.parametrize(
    "kind", ["4:2:0", "4:2:2", "4:4:4", "grey", "progressive", "restart-markers", "rgb-jpeg"]
)
def test_regions_are_those_of_the_whole_image(kind: str) -> None:
    pytest.importorskip("simplejpeg")
    for seed in range(1, 9):
        crop = RandomResizedCrop(48, (0.02, 0.9))
        uniform = np.random.default_rng(seed).random(crop.num_uniforms)
        whole = np.empty((48, 48, 3), dtype=np.uint8)
        SimpleJpegDecoder().decode(sound()[kind], crop, uniform, whole)
        assert np.array_equal(decoded(sound()[kind], crop, seed), whole)


@pytest.mark.parametrize("kind", ["cut-at-50%", "cut-at-90%", "cut-at-99%", "without-its-end"])
def test_a_cut_below_the_region_is_noticed(kind: str) -> None:
    decoded(sound()["4:2:0"])
    with pytest.raises(DecodeError, match="truncated"):
        decoded(damaged()[kind])


def test_bytes_behind_the_end_do_no_harm() -> None:
    found = decoded(sound()["trailing-bytes"], CenterCrop(48, 64))
    assert np.array_equal(found, decoded(sound()["4:2:0"], CenterCrop(48, 64)))


def test_eight_threads_decode_as_one() -> None:
    raw = sound()["4:2:0"]
    crop = RandomResizedCrop(48, (0.1, 0.9))
    expected = [decoded(raw, crop, seed).tolist() for seed in range(1, 11)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(lambda seed: decoded(raw, crop, seed).tolist(), range(1, 11)))
            assert found == expected


def test_a_forked_process_decodes_on() -> None:
    # A thread's decoder is there already when the process forks.
    expected = decoded(sound()["4:2:0"]).tolist()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if decoded(sound()["4:2:0"]).tolist() == expected else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_loads_in_silence_and_without_what_needs_a_gpu() -> None:
    code = (
        "from resscale.data.decode_nvimgcodec import why_not\n"
        "import os\n"
        "print(why_not())\n"
        "maps = open('/proc/self/maps').read() if os.path.exists('/proc/self/maps') else ''\n"
        "print('opencv_ext' in maps, 'nvjpeg_ext' in maps)\n"
        "print('NVIMGCODEC_EXTENSIONS_PATH' in os.environ)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\nFalse False\nFalse\n"
    assert done.stderr == ""


def test_a_copy_through_pickle_decodes_alike() -> None:
    copy = pickle.loads(pickle.dumps(NvimgcodecDecoder()))
    out = np.empty((48, 48, 3), dtype=np.uint8)
    copy.decode(sound()["4:2:0"], TOP, TOP_UNIFORM, out)
    assert np.array_equal(out, decoded(sound()["4:2:0"]))
