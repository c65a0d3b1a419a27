"""Rows of results.csv, and what archives show."""

import dataclasses
import math
import random

import numpy as np
import pytest

from dnnlib.errors import UserError
from segmentation.archive_content import content_of, count_specks
from segmentation.results import COLUMNS, Row, by_patient, patients_of, read_rows, to_csv
from segmentation.scores import Target
from slices.archive.reader import ArchiveReader

WT = Target("region", "WT", (1, 2, 3))


def row(arm="R", replicate=1, patient="p", examination="e", dice=0.5, **fields) -> Row:
    values = {"kind": "region", "target": "WT", "masked_dice": dice, "hd95_mm": None, "truth_voxels": 3}
    values |= {"predicted_voxels": 0, "outside_voxels": 0, "truth_empty": False, "prediction_empty": True}
    values |= {"unet_seed": 7, "gan": "", "unet_sha256": "a", "real_sha256": "b", "fake_sha256": "", "test_sha256": "c"}
    return Row("arms", arm, replicate, patient, examination, **{"dice": dice, **values, **fields})


def test_rows_come_back_to_the_last_bit(tmp_path):
    dice = random.Random(0)
    odd = 'a, "b"\n; é'
    rows = [row(patient=odd, dice=dice.random(), hd95_mm=dice.random() * 99) for _ in range(50)]
    rows += [row(dice=1 / 3), row(dice=1.0, truth_empty=True, hd95_mm=0.0), row(dice=5e-324)]
    content = to_csv(rows)
    (tmp_path / "results.csv").write_bytes(content)
    assert read_rows(tmp_path / "results.csv") == tuple(rows)
    assert content.decode().splitlines()[0].split(",") == list(COLUMNS) and to_csv(rows) == content


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("arm,", "arms,", "expected the columns"),
        (",0.5,", ",half,", "line 2: could not convert"),
        (",0,1,7,", ",0,2,7,", "line 2: '2' where 0 or 1 was expected"),
        (",c\n", ",c,d\n", "line 2: "),
    ],
)
def test_other_files_are_refused(tmp_path, old, new, message):
    path = tmp_path / "results.csv"
    content = to_csv([row()]).decode()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=f"results.csv: .*{message}"):
        read_rows(path)


def test_a_patient_counts_once_with_the_mean_of_the_examinations():
    rows = [
        row(replicate=r, patient=p, examination=e, dice=d / 100 + r)
        for r in (2, 1)
        for p, e, d in [("b", "b1", 10), ("a", "a1", 20), ("b", "b2", 30)]
    ]
    rows += [row(arm="F", dice=9), row(target="TC", dice=9), dataclasses.replace(rows[0], kind="label", dice=9)]
    np.testing.assert_allclose(by_patient(rows, "R", WT), [[1.2, 1.2], [2.2, 2.2]])
    assert patients_of(rows) == ("b", "a", "p")


def test_a_measure_of_another_column():
    rows = [row(patient=p, truth_voxels=n) for p, n in [("a", 3), ("b", 5)]]
    assert by_patient(rows, "R", WT, "truth_voxels").tolist() == [[3, 5]]


def test_specks_are_small_components_of_one_class():
    classes = np.zeros((9, 9), np.uint8)
    classes[0, 0] = 1  # one pixel: a speck
    classes[2, 2] = classes[3, 3] = classes[4, 4] = classes[5, 5] = 1  # four along a diagonal: none
    classes[7, 0:3] = 2  # three pixels: a speck
    classes[7, 3] = 1  # beside it, but of another class: a speck
    assert count_specks(classes) == 3 and count_specks(np.zeros((9, 9), np.uint8)) == 0


def test_content_of_the_first_slices(tmp_path):
    from rings import write_volumes

    archive = ArchiveReader(write_volumes(tmp_path / "a.zip", {"v": "p", "w": "q"}))
    first, whole = content_of(archive, 3), content_of(archive)
    assert (first.areas.num_slices, whole.areas.num_slices) == (3, 8)
    specks = [count_specks(archive.schema.split(archive.read(i))[1]) for i in range(8)]
    assert (first.specks, whole.specks) == (sum(specks[:3]), sum(specks))
    assert math.isclose(whole.specks_per_slice, sum(specks) / 8)
