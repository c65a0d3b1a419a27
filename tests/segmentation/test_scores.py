"""Dice and HD95 of an examination, and their summary over patients."""

import numpy as np
import pytest

from helpers.evaluations import evaluation
from rings import RING, plain_dice
from segmentation.hausdorff import Stack, hd95
from segmentation.scores import (
    ExaminationDice,
    Quartiles,
    TargetDice,
    pooled_dice,
    score_examination,
    summarize,
    targets_of,
)
from slices.schema import BRATS, LesionClass, Schema


def test_dice_is_that_of_the_stacked_volume():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (6, 16, 16)) * (rng.random((6, 16, 16)) < 0.2)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 4, truth.shape))
    truth[3:], prediction[3:] = 0, 0  # half of the slices are empty, as in a real volume
    result = score_examination("p", prediction, truth, np.ones(truth.shape, bool), BRATS)
    for target in targets_of(BRATS):
        overlap = result.result(target)
        assert overlap.dice == pytest.approx(plain_dice(prediction, truth, target.classes), abs=1e-6)
        assert overlap.truth == np.isin(truth, target.classes).sum()
        assert overlap.predicted == np.isin(prediction, target.classes).sum()
        of_slices = np.mean([plain_dice(p, t, target.classes) for p, t in zip(prediction, truth, strict=True)])
        assert overlap.dice < of_slices - 0.1, "averaging slices would flatter"
    assert result.regions["ET"] == result.labels["ET"]
    assert result.regions["WT"].truth == sum(o.truth for o in result.labels.values())


@pytest.mark.parametrize("in_truth, in_prediction, expected", [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0)])
def test_dice_of_what_is_empty(in_truth, in_prediction, expected):
    truth, prediction = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    truth[0, 0, 0], prediction[0, 0, 0] = in_truth, in_prediction
    # A single target, because MONAI treats a single channel differently.
    one = Schema(("t1",), (LesionClass("MS", "lesion", 1),))
    everywhere = np.ones(truth.shape, bool)
    assert score_examination("p", prediction, truth, everywhere, one).labels["MS"].dice == expected
    assert score_examination("p", prediction, truth, everywhere, BRATS).labels["NCR"].dice == expected
    assert score_examination("p", prediction, truth, everywhere, BRATS).labels["ET"].dice == 1


def test_both_dice_and_the_voxels_between_them_by_hand():
    """Predicted: 4 voxels of core in the head; 4 of core and 2 of rim outside it. The truth has 2 of rim outside."""
    truth, prediction = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    inside = np.ones(truth.shape, bool)
    inside[1] = False
    truth[0, 0], prediction[0, 0] = 1, 1
    prediction[1, 0], prediction[1, 1, :2], truth[1, 1, :2] = 1, 2, 2
    found = score_examination("p", prediction, truth, inside, RING, volume="v", of=9)
    core, rim, whole = found.labels["core"], found.labels["rim"], found.regions["whole"]
    assert (core.dice, core.masked_dice, core.removed) == (pytest.approx(2 * 4 / (8 + 4)), 1.0, 4)
    assert (rim.dice, rim.masked_dice, rim.removed) == (1.0, 0.0, 2), "a mask may also take what is right"
    assert (whole.truth, whole.predicted, whole.removed, found.removed) == (6, 10, 6, 6)
    assert whole.dice == pytest.approx(2 * 6 / 16) and whole.masked_dice == pytest.approx(2 * 4 / 10)
    assert (found.slices, found.of, found.volume) == (2, 9, "v")


def test_summaries_are_over_patients():
    target = targets_of(RING)[0]

    def examination(dice, truth, patient):
        return ExaminationDice(
            patient, None, 1, None, None, None, {"whole": TargetDice(dice, truth, 5, 1, 7, None)}, {}
        )

    three = [examination(0.5, 9, "p"), examination(1.0, 0, "q"), examination(0.9, 3, "r")]
    summary = summarize(three, target)
    assert summary.mean == pytest.approx(0.8) and summary.empty_truth == 1
    assert summary.sd == pytest.approx(np.std([0.5, 1.0, 0.9], ddof=1))
    assert str(summary) == "0.800 ± 0.265" and summary.masked == "1.000 ± 0.000" and summary.removed == 21
    assert str(summarize([examination(0.5, 9, "p")], target)) == "0.500"
    twice = summarize([*three, examination(0.1, 0, "r"), examination(0.2, 0, "r")], target)
    assert twice.mean == pytest.approx((0.5 + 1.0 + (0.9 + 0.1 + 0.2) / 3) / 3) and twice.empty_truth == 3
    assert twice.sd == pytest.approx(np.std([0.5, 1.0, 0.4], ddof=1)), "n is the number of patients"


def test_what_is_present_missed_and_false():
    """Five examinations of four patients: found badly, found, missed, a false alarm, and nothing where nothing is."""
    target = targets_of(RING)[0]
    cases = [("p", 0.6, 9, 5, 3.0), ("q", 0.8, 9, 9, 1.0), ("q", 0.0, 4, 0, 90.0), ("r", 0.0, 0, 7, 90.0)]
    examinations = [
        ExaminationDice(patient, None, 1, None, 0, 90.0, {"whole": TargetDice(dice, t, p, dice, 0, distance)}, {})
        for patient, dice, t, p, distance in [*cases, ("s", 1.0, 0, 0, 0.0)]
    ]
    found = summarize(examinations, target)
    assert (found.present, found.misses, found.empty_truth, found.false_alarms) == (3, 1, 2, 1)
    assert found.mean == pytest.approx((0.6 + 0.4 + 0.0 + 1.0) / 4)
    assert found.present_mean == pytest.approx((0.6 + 0.4) / 2), "q counts once, r and s not at all"
    assert found.present_sd == pytest.approx(np.std([0.6, 0.4], ddof=1)) and found.where_present == "0.500 ± 0.141"
    # Of 1, 3 and 90 mm: the missed one is among them.
    assert found.hd95 == Quartiles(2.0, 3.0, 46.5) and str(found.hd95) == "3.0 [2.0, 46.5]"
    none = summarize(examinations[3:], target)
    assert (none.present, none.present_mean, none.present_sd, none.hd95) == (0, None, None, None)
    assert none.where_present == "-"


def test_hd95_is_that_of_the_slices_from_the_feet_to_the_head():
    truth, prediction = np.zeros((2, 4, 12, 12), np.uint8)
    truth[1, 3:6, 3:6] = prediction[2, 3:6, 3:6] = 2  # in the next slice
    everywhere = np.ones(truth.shape, bool)
    spacing = (3.0, 0.5, 0.5)
    shuffled = np.array([2, 0, 3, 1])  # slice i of the archive is slice shuffled[i] of the volume
    order = tuple(int(i) for i in np.argsort(shuffled))
    found = score_examination(
        "p", prediction[shuffled], truth[shuffled], everywhere, RING, "v", 9, Stack(order, 0, spacing)
    )
    expected = hd95(prediction == 2, truth == 2, spacing)
    assert found.labels["rim"].hd95 == found.regions["whole"].hd95 == expected == 3.0
    assert hd95(prediction[shuffled] == 2, truth[shuffled] == 2, spacing) != expected, "the order matters"
    assert found.labels["core"].hd95 == found.regions["core"].hd95 == 0.0, "nothing there, nothing predicted"
    assert found.diagonal == pytest.approx(np.sqrt(12**2 + 6**2 + 6**2)) and found.missing == 0
    for stack, missing in ((None, None), (Stack(order, 2, spacing), 2)):
        unknown = score_examination("p", prediction, truth, everywhere, RING, "v", 9, stack)
        assert (unknown.missing, unknown.diagonal, unknown.labels["rim"].hd95) == (missing, None, None)
        assert unknown.labels["rim"].dice == found.labels["rim"].dice


def test_pooled_dice_is_that_of_all_voxels_together():
    """As many slices of fakes: half of them have no core, and two of those have a false alarm."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, (20, 1, 8, 8))
    truth[10:][truth[10:] == 1] = 0
    prediction = np.where(rng.random(truth.shape) < 0.8, truth, 0)
    prediction[10, 0, 0, :3] = prediction[11, 0, 5, 5] = 1
    inside = np.ones((1, 8, 8), bool)
    examinations = [
        score_examination(f"f{i}", p, t, inside, RING) for i, (p, t) in enumerate(zip(prediction, truth, strict=True))
    ]
    judged = evaluation(*examinations, schema=RING)
    for target in targets_of(RING):
        assert pooled_dice(judged, target) == pytest.approx(plain_dice(prediction, truth, target.classes), abs=1e-6)
    assert abs(judged.labels["core"].mean - pooled_dice(judged, targets_of(RING)[1])) > 0.02, "another number"
    nothing = score_examination("p", *np.zeros((2, 1, 8, 8), int), inside, RING)
    assert pooled_dice(evaluation(nothing, schema=RING), targets_of(RING)[0]) == 1.0
