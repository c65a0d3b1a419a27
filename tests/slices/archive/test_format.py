"""Records of an archive: pixel sizes, volumes, and whether a slice was cut or generated."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from helpers.archives import RESOLUTION, VOLUME, draw, refused, rewrite, write
from slices.archive.format import INDEX, pack_slice, unpack_slice
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS

OPPOSITE = str.maketrans("LPI", "RAS")


def test_pixel_sizes_are_those_of_the_volumes_and_of_what_a_generator_learned_from(tmp_path):
    plain = write(tmp_path / "plain.zip")
    assert ArchiveReader(plain).info.pixels == (1.0, 1.0) and ArchiveReader(plain).info.pixel is None
    assert "pixel" not in json.loads(zipfile.ZipFile(plain).read(INDEX)), "archives of volumes stay as they were"
    assert ArchiveReader(write(tmp_path / "x.zip", pixel=(0.5, 0.75))).info.pixels == (0.5, 1.0)
    with ArchiveWriter(tmp_path / "fake.zip", BRATS, RESOLUTION, {}) as writer:
        writer.add(draw(BRATS)[0], patient="generated", seed=0)
    assert ArchiveReader(tmp_path / "fake.zip").info.pixels is None
    for wrong in ([0.0, 1.0], [2.0, 1.0]):
        rewrite(plain, lambda content, wrong=wrong: content | {"pixel": wrong})
        refused(plain, f"pixels of {wrong[0]:g} to {wrong[1]:g} mm")


@pytest.mark.parametrize("axes, slices", [("LPS", 5), ("RAI", 5), ("SLP", 3), ("PSL", 4)])
def test_a_volume_knows_how_many_slices_it_has(axes, slices):
    columns = [{"R": (2, 0, 0.1, 0), "A": (0, 2, 0, 0), "S": (0, 0.1, 3, 0)}[a.translate(OPPOSITE)] for a in axes]
    affine = np.array([*columns, (5, 6, 7, 1)]).T
    assert replace(VOLUME, shape=(3, 4, 5), affine=tuple(map(tuple, affine.tolist()))).slices == slices
    assert replace(VOLUME, affine=((0.0,) * 4,) * 4).slices is None


def test_a_packed_slice_unpacks_to_what_it_was():
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    assert np.array_equal(unpack_slice(pack_slice(stored)), stored)
