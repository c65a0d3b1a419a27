"""Class areas: counts checked by hand, and sums."""

import numpy as np
import pytest

from helpers.drawn import write_archive
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.class_areas import ClassAreas
from slices.schema import BRATS, Schema


def test_areas_are_counted_per_class():
    classes = np.zeros((3, 4, 5), np.uint8)
    classes[0, :2] = 2  # 10 pixels of ED
    classes[0, 3, 3] = 3  # one of ET
    classes[2, 0, 0] = 2
    areas = ClassAreas.of(classes, BRATS)
    assert areas == ClassAreas(
        num_slices=3,
        num_lesion_free=1,
        num_pixels=60,
        class_pixels={"NCR": 0, "ED": 11, "ET": 1},
        class_slices={"NCR": 0, "ED": 2, "ET": 1},
    )
    assert areas.num_with_lesion == 2
    assert areas.shares == {"NCR": 0, "ED": 11 / 60, "ET": 1 / 60}


def test_areas_of_slices_add_up():
    classes = np.random.default_rng(0).integers(0, 4, (6, 8, 8)).astype(np.uint8)
    classes[4] = 0
    whole = ClassAreas.of(classes, BRATS)
    assert ClassAreas.of(classes[:2], BRATS) + ClassAreas.of(classes[2:], BRATS) == whole
    assert ClassAreas.none(BRATS) + whole == whole
    assert ClassAreas.of(classes[:0], BRATS) == ClassAreas.none(BRATS)


def test_without_classes_every_slice_is_free_of_lesions():
    areas = ClassAreas.of(np.zeros((2, 4, 4), np.uint8), Schema(contrasts=("t1",)))
    assert areas == ClassAreas(2, 2, 32, {}, {}) and areas.shares == {}


def test_areas_of_an_archive(tmp_path):
    archive = ArchiveReader(write_archive(tmp_path / "a.zip", count=4))
    classes = np.stack([archive.schema.split(archive.read(i))[1] for i in range(4)])
    areas = ClassAreas.of_archive(archive)
    assert areas == ClassAreas.of(classes, BRATS)
    for index, name in enumerate(BRATS.class_names, start=1):
        assert areas.shares[name] == pytest.approx((classes == index).mean()) and areas.shares[name] > 0


def test_slices_of_an_archive_with_a_lesion_and_without(tmp_path):
    path = write_archive(tmp_path / "a.zip", count=4)
    with ArchiveWriter(tmp_path / "b.zip", BRATS, 16, {}) as writer:
        blank = BRATS.join(np.zeros((4, 16, 16), np.uint8), np.zeros((16, 16), np.uint8))
        for i, stored in enumerate([ArchiveReader(path).read(0), blank, blank]):
            writer.add(stored, patient=f"p{i}")
    areas = [ClassAreas.of_archive(ArchiveReader(p)) for p in (path, writer.path)]
    counts = [[a.num_slices, a.num_with_lesion, a.num_lesion_free] for a in areas]
    assert counts == [[4, 4, 0], [3, 1, 2]]
