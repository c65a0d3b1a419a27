"""Dice of an examination, and its summary over patients."""

import numpy as np
import pytest

from rings import RING, plain_dice
from segmentation.scores import ExaminationDice, TargetDice, score_examination, summarize, targets_of
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
        return ExaminationDice(patient, None, 1, None, {"whole": TargetDice(dice, truth, 5, 1, 7)}, {})

    three = [examination(0.5, 9, "p"), examination(1.0, 0, "q"), examination(0.9, 3, "r")]
    summary = summarize(three, target)
    assert summary.mean == pytest.approx(0.8) and summary.empty_truth == 1
    assert summary.sd == pytest.approx(np.std([0.5, 1.0, 0.9], ddof=1))
    assert str(summary) == "0.800 ± 0.265" and summary.masked == "1.000 ± 0.000" and summary.removed == 21
    assert str(summarize([examination(0.5, 9, "p")], target)) == "0.500"
    twice = summarize([*three, examination(0.1, 0, "r"), examination(0.2, 0, "r")], target)
    assert twice.mean == pytest.approx((0.5 + 1.0 + (0.9 + 0.1 + 0.2) / 3) / 3) and twice.empty_truth == 3
    assert twice.sd == pytest.approx(np.std([0.5, 1.0, 0.4], ddof=1)), "n is the number of patients"
