"""Report of one evaluation: table, notes and picture."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.evaluations import TESTED, evaluation, examination
from segmentation.predict import Segmented
from segmentation.report import (
    DISTANCE,
    _titles,
    about_data,
    about_distances,
    about_pixels,
    describe_data,
    draw_examinations,
    evaluation_table,
    notes_on,
    slice_to_show,
    worst_median_best,
)
from slices.schema import BRATS


def test_the_table_has_a_row_for_each_region_and_class():
    judged = evaluation(
        examination(0.0, truth=0),
        examination(0.5, patient="q", removed=1500, hd95=4.0),
        examination(0.7, patient="r", hd95=2.0),
        examination(0.0, patient="s", predicted=0, hd95=90.0),
        examination(1.0, patient="t", truth=0, predicted=0, hd95=0.0),
    )
    table = evaluation_table(judged)
    assert table.header == (
        *("Dice", "mean ± SD", "if present", "false alarms", "HD95 in mm", "misses", "masked"),
        "voxels outside the head",
    )
    names = ["WT (region)", "TC (region)", "ET (region)", "NCR (label)", "ED (label)", "ET (label)"]
    assert [row[0] for row in table.rows] == names
    dice, present = "0.440 ± 0.439", "0.400 ± 0.361"
    assert table.rows[0][1:] == (dice, present, "1 of 2", "4.0 [3.0, 47.0]", "1 of 3", dice, "1,500")
    assert table.notes == ("a note",)
    assert evaluation_table(evaluation(examination(0.4))).rows[0][4] == "-", "nothing is known of distances"


def test_notes_tell_of_distances_that_are_not_known():
    measured = examination(1, hd95=1.0)
    assert about_distances(evaluation(measured)) == [DISTANCE]
    gap = replace(examination(1, patient="q", volume="q-0"), missing=3)
    assert about_distances(evaluation(measured, gap, examination(1, patient="r"))) == [
        DISTANCE,
        "no HD95 of 1 of 3 examinations: the archive lacks slices between others, such as 3 slices of q-0",
        "no HD95 of 1 of 3 examinations: the places of their slices are unknown",
    ]
    assert len(about_distances(evaluation(gap))) == 1, "what is nowhere is not explained"


@pytest.mark.parametrize(
    ("examinations", "words"),
    [
        ([("p", None)], "test.zip: 1 patient, 2 slices (2 per patient)"),
        ([("p", "p-0"), ("q", "q-0")], "test.zip: 2 patients, 4 slices (2 per patient)"),
        (
            [("p", "p-0"), ("p", "p-1"), ("q", "q-0")],
            "test.zip: 3 examinations of 2 patients, 6 slices (2 per examination)",
        ),
    ],
)
def test_what_stands_behind_the_numbers(examinations, words):
    assert describe_data(evaluation(*(examination(1, patient=p, volume=v) for p, v in examinations))) == words


def test_a_known_patient_is_told():
    known = replace(evaluation(examination(1), examination(1, patient="q")), overlap=("p",))
    assert "it knows 1 of 2 patients, so its Dice says nothing about others" in describe_data(known)


def test_notes_tell_of_whole_incomplete_and_unknown_volumes():
    whole = evaluation(examination(1, of=2), examination(1, patient="q", of=2))
    assert about_data(whole) == ["test data: 2 examinations of 2 patients, 4 slices, all that their volumes have"]
    mixed = evaluation(
        examination(1, of=7), examination(1, of=2), examination(1), tested=replace(TESTED, remarks=("x",))
    )
    assert about_data(mixed) == [
        "test data: 3 examinations of 1 patient, 6 slices; a patient counts once, with the mean of the examinations",
        "Dice of 4 of 9 slices: the archive lacks slices of 1 of 3 examinations, "
        "so this is not the Dice of whole volumes",
        "1 of 3 examinations are slices of no known volume: their Dice may not be that of whole volumes",
        "test.zip: x",
    ]
    assert any(note.startswith("one training of the U-Net, with seed 0,") for note in notes_on(mixed))


def test_notes_tell_of_pixels_that_were_not_learned_from():
    other = evaluation(examination(1), tested=replace(TESTED, pixel=(3.75, 3.75)))
    assert about_pixels(other)[0].startswith(
        "the U-Net learned from pixels of 3.12 mm and was tested on pixels of 3.75 mm"
    )
    unknown = evaluation(examination(1), tested=replace(TESTED, pixel=None, unmeasured=2))
    assert about_pixels(unknown) == ["pixel size unknown and not compared: 2 slices of test.zip"]


def test_the_picture_shows_worst_median_and_best(tmp_path):
    judged = evaluation(*(examination(dice, patient=f"p{dice}") for dice in (0.4, 0.1, 0.9, 0.6)))
    choices = worst_median_best(judged)
    assert [(c.rank, c.dice) for c in choices] == [("worst", 0.1), ("median", 0.4), ("best", 0.9)]
    assert [c.rank for c in worst_median_best(evaluation(examination(1)))] == ["only patient"]
    classes = np.arange(2 * 32 * 32, dtype=np.uint8).reshape(2, 32, 32) % 4
    one = Segmented(classes * 60, classes, classes, classes > 0, (3, None))
    draw_examinations(tmp_path / "p.png", choices, [one] * 3, BRATS)
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG" and image.width > 700 and image.height > image.width
    titles = {
        None: ("slice 1 of 2", "(of 2 slices)"),
        2: ("slice 4 of 2", "(of all 2 slices)"),
        7: ("slice 4 of 7", "(of 2 of 7 slices)"),
    }
    for of, (place, extent) in titles.items():
        (choice,) = worst_median_best(evaluation(examination(0.5, volume="v", of=of)))
        assert _titles(choice, one, 0, BRATS) == (
            f"only patient: v\n{place}, flair",
            "truth",
            f"prediction\nWT Dice 0.500 {extent}",
        )


def test_the_slice_shown_is_that_with_most_lesion():
    truth, prediction = np.zeros((5, 4, 4), np.uint8), np.zeros((5, 4, 4), np.uint8)
    assert slice_to_show(truth, prediction) == 2
    prediction[4, 0, 0] = 1
    assert slice_to_show(truth, prediction) == 4
    truth[1, :2], truth[3, :3] = 3, 1
    assert slice_to_show(truth, prediction) == 3
