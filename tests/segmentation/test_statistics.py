"""Statistics of comparisons: against simulated experiments, statsmodels' mixed model, and by hand."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats

from dnnlib.errors import UserError
from helpers.commands import ROOT
from segmentation.scores import Target
from segmentation.statistics import (
    ALPHA,
    CONTRADICTED,
    DIFFERENT,
    HIGHER,
    LOWER,
    NO_DIFFERENCE,
    NON_INFERIOR,
    NOT_SHOWN,
    NOT_TESTED,
    SHOWN,
    SUPERIOR,
    Claim,
    chance_of,
    compare,
    compare_all,
    detectable_difference,
    family,
    p_value,
    power,
    with_holm,
)

BETTER = Claim("F+R", "R", SUPERIOR)
SIMILAR = Claim("F", "R", NON_INFERIOR, 0.03)
UNLIKE = Claim("R (2)", "R", DIFFERENT)


def simulate(shape, runs=0.0, interaction=0.0, residual=0.03, patients=0.1, shift=0.0, seed=0):
    """Two arms of shape [..., S, n] that differ by `shift`, with SDs of patients, runs, patient × arm and the rest.

    S, runs: a pair, if the arms differ in them.
    """
    random = np.random.default_rng(seed)
    *many, S, n = shape
    of_patients = random.normal(0.8, patients, (*many, 1, n))
    first, second = (
        of_patients
        + random.normal(0, interaction, (*many, 1, n))
        + random.normal(0, runs, (*many, S, 1))
        + random.normal(0, residual, (*many, S, n))
        for S, runs in zip(np.broadcast_to(S, 2), np.broadcast_to(runs, 2), strict=True)
    )
    return first + shift, second


def rejections(first, second, alpha=ALPHA):
    """Share of experiments [..., S, n] in which the arms differ at level alpha, in the direction of first > second."""
    difference, chance = first.mean((-2, -1)) - second.mean((-2, -1)), chance_of(first, second)
    return ((p_value(difference, chance) < alpha) & (difference > 0)).mean()


# --- the test keeps its level, and Wilcoxon's doesn't -----------------------------------------------------------------


@pytest.mark.parametrize("runs", (0, 0.01, 0.02))
@pytest.mark.parametrize("S", (3, 5))
def test_equal_arms_rarely_differ(S, runs):
    first, second = simulate((1000, S, 21), runs)
    assert rejections(first, second) + rejections(second, first) <= 0.075


@pytest.mark.parametrize("S", (3, 5))
def test_wilcoxon_calls_noise_of_training_significant(S):
    first, second = simulate((1000, S, 21), runs=0.02)
    p = stats.wilcoxon(first.mean(1) - second.mean(1), axis=1).pvalue
    assert (p < ALPHA).mean() > 0.2


def test_arms_of_unequal_noise_and_number_rarely_differ():
    first, second = simulate((1000, (3, 6), 21), runs=(0.03, 0.002))
    assert (first.shape, second.shape) == ((1000, 3, 21), (1000, 6, 21))
    assert rejections(first, second) + rejections(second, first) <= 0.075


def test_one_comparison_and_many_at_once_agree():
    first, second = simulate((5, 3, 14), runs=0.01)
    chance = chance_of(first, second)
    p = p_value((first - second).mean((1, 2)), chance)
    for i in range(5):
        one = compare(first[i], second[i], BETTER)
        assert (one.se, one.df, one.p) == pytest.approx((chance.se[i], chance.df[i], p[i]), rel=1e-12)
        assert one.wilcoxon_p == stats.wilcoxon(first[i].mean(0) - second[i].mean(0)).pvalue


# --- the standard error -----------------------------------------------------------------------------------------------


def test_standard_error_by_hand():
    """Two runs and two patients an arm: all mean squares are squares of one difference."""
    first, second = np.array([[0.9, 0.7], [0.8, 0.4]]), np.array([[0.6, 0.5], [0.6, 0.4]])
    # d = (.25, .10): variance .01125. Runs' means: .8, .6 and .55, .5. Residuals: ±.05, and ±.025.
    of_patients = 0.01125 / 2
    V, M = np.array([0.02, 0.00125]), np.array([4 * 0.05**2, 4 * 0.025**2])
    trainings = np.maximum(V - M / 2, 0) / 2
    assert trainings.tolist() == pytest.approx([0.0075, 0])
    variance = of_patients + trainings.sum()
    spread = of_patients**2 + (V[0] / 2) ** 2 + (M[0] / 4) ** 2
    one = compare(first, second, BETTER)
    assert (one.se, one.df) == pytest.approx((variance**0.5, max(1, variance**2 / spread)))
    assert (one.difference, *one.means) == pytest.approx((0.175, 0.7, 0.525))


def test_variance_components_are_found():
    """The mean of SE² over many experiments is the true variance of the difference."""
    first, second = simulate((4000, 5, 21), runs=0.02, interaction=0.04)
    truth = (2 * 0.04**2 + 2 * 0.03**2 / 5) / 21 + 2 * 0.02**2 / 5
    assert (chance_of(first, second).se ** 2).mean() == pytest.approx(truth, rel=0.03)
    assert (first - second).mean((1, 2)).var() == pytest.approx(truth, rel=0.06)


def test_agrees_with_a_mixed_model():
    """statsmodels' crossed random effects: patients, patients within arms, and runs within arms."""
    import pandas
    from statsmodels.regression.mixed_linear_model import MixedLM

    first, second = simulate((4, 12), runs=0.03, interaction=0.06, shift=0.05, seed=3)
    cells = [
        {"dice": dice, "arm": arm, "patient": i, "run": f"{arm}{s}", "both": f"{arm}{i}", "all": 0}
        for arm, scores in enumerate((second, first))
        for (s, i), dice in np.ndenumerate(scores)
    ]
    effects = {name: f"0 + C({name})" for name in ("patient", "both", "run")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optimizer
        model = MixedLM.from_formula("dice ~ arm", pandas.DataFrame(cells), groups="all", vc_formula=effects)
        fit = model.fit()
    one = compare(first, second, BETTER)
    assert fit.fe_params["arm"] == pytest.approx(one.difference, abs=1e-6)
    assert fit.bse_fe["arm"] == pytest.approx(one.se, rel=0.05)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", (ALPHA, ALPHA / 6))
@pytest.mark.parametrize("runs", (0, 0.01, 0.02))
def test_power_is_what_simulations_find(runs, alpha):
    S, n, interaction, residual = 5, 21, 0.04, 0.03
    V, M = runs**2 + residual**2 / n, residual**2
    of_patients, trainings = (2 * interaction**2 + 2 * residual**2 / S) / n, 2 * runs**2 / S
    spread = (V / S) ** 2 / (S - 1) + (M / n / S) ** 2 / ((S - 1) * (n - 1)) if runs else 0
    se = (of_patients + trainings) ** 0.5
    df = se**4 / (of_patients**2 / (n - 1) + 2 * spread)
    for shift in (2 * se, detectable_difference(se, df, alpha)):
        found = rejections(*simulate((2000, S, n), runs, interaction, residual, shift=shift), alpha)
        assert found == pytest.approx(power(shift, se, df, alpha), abs=0.05)


@pytest.mark.parametrize("interaction", (0, 0.03))
@pytest.mark.parametrize("runs", (0, 0.01, 0.02))
def test_the_detectable_difference_that_is_printed_is_found(runs, interaction):
    """Its median over experiments, made of each one's own standard error."""
    printed = [
        compare(first, second, BETTER).detectable
        for first, second in zip(*simulate((150, 5, 21), runs, interaction, seed=7), strict=True)
    ]
    found = rejections(*simulate((2000, 5, 21), runs, interaction, shift=np.median(printed)))
    assert found == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("df", (1, 1.3, 2, 5.5, 20, 300))
@pytest.mark.parametrize("alpha", (ALPHA, ALPHA / 12, ALPHA / 60))
def test_detectable_difference_inverts_power(alpha, df):
    assert power(detectable_difference(0.02, df, alpha), 0.02, df, alpha) == pytest.approx(0.8, abs=1e-6)


def test_detectable_difference_of_a_z_test():
    assert detectable_difference(1, 1e6) == pytest.approx(stats.norm.isf(0.025) + stats.norm.isf(0.2), rel=1e-4)


# --- one comparison ---------------------------------------------------------------------------------------------------


def made(differences, spread=0.01, base=0.6):
    """Arms of three replicates whose patients differ by `differences`, with runs at ± spread around them."""
    runs = spread * np.array([[-1.0], [0.0], [1.0]])
    second = np.full((3, len(differences)), base) + np.linspace(0, 0.2, len(differences))
    return second + differences + runs, second + runs[::-1]


def test_interval_and_p_belong_together():
    """The interval's end is the margin at which p is .05."""
    first, second = simulate((3, 14), runs=0.01, shift=0.02, seed=5)
    one = compare(first, second, UNLIKE, "WT")
    assert one.target == "WT" and one.replicates == (3, 3) and one.patients == 14
    low, high = one.interval
    assert (low + high) / 2 == pytest.approx(one.difference)
    assert p_value(one.difference, chance_of(first, second), low) == pytest.approx(0.05)
    assert compare(first, second, Claim("F", "R", NON_INFERIOR, 0.01)).interval == one.interval


def test_ratio_and_difference_say_the_same():
    """Fieller's interval holds the ratios r at which first − r · second may be 0, by the same t and variances."""
    first, second = simulate((3, 14), runs=0.02, shift=-0.05, seed=5)
    one = compare(first, second, BETTER)
    assert one.ratio == pytest.approx(first.mean() / second.mean())
    t = stats.t.isf(0.025, one.df)
    for end in one.ratio_interval:
        scaled = chance_of(first, end * second)
        assert abs(first.mean() - end * second.mean()) == pytest.approx(t * scaled.se)
    for shift in np.linspace(-0.1, 0.1, 41):
        one = compare(first + shift, second, BETTER)
        assert (one.interval[0] > 0) == (one.ratio_interval[0] > 1)
        assert (one.interval[1] < 0) == (one.ratio_interval[1] < 1)


def test_a_ratio_to_nothing_has_no_ends():
    first, second = simulate((3, 14), patients=0.1)
    one = compare(first, second - second.mean() + 0.001, BETTER)
    assert one.ratio == pytest.approx(first.mean() / 0.001) and one.ratio_interval is None and one.p is not None
    assert compare(first, np.zeros((3, 14)), BETTER).ratio is None


def test_effect_and_patients_improved():
    one = compare(*made(np.array([0.02, 0.01, 0.0, 0.0, -0.01, 0.04])), BETTER)
    assert (one.improved, one.tied, one.patients, one.share_improved) == (3, 2, 6, 0.5)
    assert one.effect == pytest.approx(0.01 / np.std([0.02, 0.01, 0, 0, -0.01, 0.04], ddof=1))
    assert one.differences == pytest.approx((0.02, 0.01, 0, 0, -0.01, 0.04))


@pytest.mark.parametrize(
    "shift, verdict",
    [
        *[(0.05, SHOWN), (0.0, SHOWN), (-0.02, SHOWN)],
        *[(-0.0299, NOT_SHOWN), (-0.03, NOT_SHOWN), (-0.0301, NOT_SHOWN)],
        *[(-0.04, CONTRADICTED), (-0.3, CONTRADICTED)],
    ],
)
def test_non_inferiority(shift, verdict):
    """Runs that vary by a thousandth. Losing less than the margin is shown, losing more contradicts."""
    first, second = made(shift + np.array([0.001, -0.001] * 7), 0.001)
    one = compare(first, second, SIMILAR)
    assert one.verdict == verdict
    t, above = (one.difference + 0.03) / one.se, one.difference > -0.03
    assert one.p == pytest.approx(2 * stats.t.sf(t if above else -t, one.df))  # twice the one-sided p
    assert (verdict == SHOWN) == (one.interval[0] > -0.03)  # as there is no other claim in the family


@pytest.mark.parametrize("shift, verdicts", [(0.1, (SHOWN, HIGHER)), (0, (NOT_SHOWN, NO_DIFFERENCE))])
def test_verdicts(shift, verdicts):
    first, second = made(shift + np.array([0.001, -0.001] * 7))
    assert (compare(first, second, BETTER).verdict, compare(first, second, UNLIKE).verdict) == verdicts


def test_verdicts_on_what_is_lower():
    first, second = made(-0.1 + np.array([0.001, -0.001] * 7))
    assert (compare(first, second, BETTER).verdict, compare(first, second, UNLIKE).verdict) == (CONTRADICTED, LOWER)


def test_wilcoxon_needs_six_differences_that_are_not_zero():
    d = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.0, 0.0])
    assert compare(*made(d), BETTER).wilcoxon_p is None
    d[4:6] = -0.05, 0.06
    by_pratt, without_zeros = (stats.wilcoxon(d, zero_method=method).pvalue for method in ("pratt", "wilcox"))
    assert compare(*made(d), BETTER).wilcoxon_p == pytest.approx(by_pratt) != pytest.approx(without_zeros)


# --- cases at the edge ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_warnings():
    """Nothing is divided by zero."""
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        yield


def nothing_known(one):
    return [one.df, one.interval, one.p, one.p_holm, one.detectable, one.ratio_interval] == [None] * 6


@pytest.mark.parametrize("replicates", [(1, 1), (1, 3), (3, 1)])
def test_one_replicate_gives_a_difference_and_nothing_else(replicates):
    first, second = (np.linspace(0.5, 0.9, S * 6).reshape(S, 6) for S in replicates)
    one = compare(first + 0.01, second, BETTER, "WT")
    assert one.difference == pytest.approx(first.mean() + 0.01 - second.mean()) and one.ratio is not None
    assert nothing_known(one) and one.verdict == NOT_TESTED
    assert [one.se, one.wilcoxon_p, one.effect, one.improved, one.share_improved] == [None] * 5


@pytest.mark.parametrize("value", (0.0, 0.7, 1.0))
def test_arms_without_any_variance(value):
    """As of a target that nobody has, with Dice 1 everywhere."""
    one = compare(np.full((3, 5), value), np.full((3, 5), value), BETTER)
    assert (one.difference, one.se, one.improved, one.tied) == (0, 0, 0, 5)
    assert nothing_known(one) and one.verdict == NOT_TESTED and one.effect is None and one.wilcoxon_p is None


def test_patients_who_all_differ_by_the_same():
    """Without runs that vary nothing is known of chance; with them something is, though no effect in SDs."""
    still = compare(*made(np.full(8, 0.1), spread=0), BETTER)
    assert nothing_known(still) and still.difference == pytest.approx(0.1) and still.verdict == NOT_TESTED
    moving = compare(*made(np.full(8, 0.1), spread=0.001), BETTER)
    assert moving.effect is None and moving.verdict == SHOWN and moving.df == pytest.approx(4)


def test_the_same_networks_twice():
    first = simulate((3, 9), runs=0.01)[0]
    one = compare(first, first, UNLIKE)
    assert one.difference == 0 and one.p == 1 and one.verdict == NO_DIFFERENCE and one.interval[0] < 0 < one.interval[1]


@pytest.mark.parametrize("S, n", [(2, 2), (2, 14), (5, 2), (3, 3)])
def test_few_patients_and_replicates(S, n):
    """Figures are finite even where degrees of freedom are as few as they can be, and tests keep their level."""
    first, second = simulate((1000, S, n), runs=0.02, interaction=0.03)
    chance = chance_of(first, second)
    assert np.isfinite(chance.df).all() and chance.df.min() >= 1
    assert rejections(first, second) + rejections(second, first) <= 0.075
    least = chance.df.argmin()
    one = compare(first[least], second[least], BETTER)
    assert np.isfinite([*one.interval, one.p, one.detectable]).all()


def test_one_patient_is_refused():
    with pytest.raises(UserError, match="two test patients at least, and there are 1"):
        compare(np.ones((3, 1)), np.ones((3, 1)), BETTER)


@pytest.mark.parametrize("first, second", [((3, 4), (3, 5)), ((4,), (4,)), ((0, 4), (3, 4))])
def test_scores_of_other_patients_are_a_mistake(first, second):
    with pytest.raises(ValueError, match="the same patients"):
        compare(np.ones(first), np.ones(second), BETTER)


def test_a_missing_dice_is_a_mistake():
    with pytest.raises(ValueError, match="not a number"):
        compare(np.array([[0.5, np.nan], [0.5, 0.6]]), np.ones((2, 2)), BETTER)


# --- families ---------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """p of .02, .001, .03, .5 become .06, .004, .06, .5: times 4, 3, 2, 1 in their order, and never falling."""
    one = compare(*made(0.1 + np.array([0.001, -0.001] * 7)), BETTER)
    p = (0.02, 0.001, 0.03, 0.5)
    corrected = with_holm([dataclasses.replace(one, p=value) for value in p])
    assert [c.p_holm for c in corrected] == pytest.approx([0.06, 0.004, 0.06, 0.5])
    assert [c.verdict for c in corrected] == [NOT_SHOWN, SHOWN, NOT_SHOWN, NOT_SHOWN]
    assert {c.family for c in corrected} == {4}
    assert corrected[0].detectable == detectable_difference(one.se, one.df, 0.05 / 4) > one.detectable
    assert with_holm([]) == ()


def test_an_untested_claim_counts_in_its_family():
    one = compare(*made(0.1 + np.array([0.001, -0.001] * 7)), BETTER)
    none = compare(np.ones((3, 5)), np.ones((3, 5)), BETTER)
    first, second = with_holm([one, none])
    assert first.p_holm == pytest.approx(2 * one.p) and (second.p_holm, second.verdict) == (None, NOT_TESTED)


def test_all_claims_for_all_targets():
    targets = [Target("region", "WT", (1, 2)), Target("region", "TC", (1,))]
    arms = {name: simulate((3, 14), runs=0.01, seed=i)[0] for i, name in enumerate(("R", "F", "F+R"))}
    comparisons = compare_all(family("table1", tuple(arms)), targets, lambda arm, t: arms[arm] + len(t.classes) / 10)
    assert [(c.claim.first, c.target, c.family) for c in comparisons] == [
        ("F", "WT", 4),
        ("F", "TC", 4),
        ("F+R", "WT", 4),
        ("F+R", "TC", 4),
    ]
    assert comparisons[0].means[0] == pytest.approx(arms["F"].mean() + 0.2)


def test_claims_of_the_tables():
    arms = ("R", "F", "F+R", "3F+R", "3A+R")
    assert [c.sentence for c in family("table1", arms[:3], 0.02)] == [
        "F is not inferior to R by more than 0.02 Dice",
        "F+R is better than R",
    ]
    assert [c.sentence for c in family("table2", arms)] == [
        "F is better than R",
        "3F+R is better than R",
        "3F+R is better than 3A+R",
    ]
    assert all(claim.abstract for table in ("table1", "table2") for claim in family(table, arms))
    assert family("arms", ("R", "R (2)", "F")) == (Claim("R (2)", "R", DIFFERENT), Claim("F", "R", DIFFERENT))
    assert UNLIKE.sentence == "R (2) differs from R" and not UNLIKE.abstract
    assert family("arms", ("R",)) == ()


@pytest.mark.parametrize("margin", (0, -0.03, 1, 3, float("nan"), float("inf")))
def test_a_margin_that_is_none(margin):
    for experiment in ("table1", "table2", "arms"):
        with pytest.raises(UserError, match=f"margin of non-inferiority of {margin:g}: expected a Dice above 0"):
            family(experiment, ("R", "F"), margin)


def test_claims_that_make_no_sense():
    for kind, margin in (("equal", 0), (SUPERIOR, 0.03), (NON_INFERIOR, 0)):
        with pytest.raises(ValueError):
            Claim("F", "R", kind, margin)


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", (["-m", "segmentation"], [str(ROOT / "segmentation")]))
def test_it_is_not_taken_for_pythons_own_statistics(program):
    """`python <project>/segmentation` has the folder on its path, and other libraries import `statistics`."""
    question = "import statistics; print(statistics.fmean([0, 1]))\n"
    done = subprocess.run(
        [sys.executable, "-i", *program, "--help"], input=question, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "0.5", done.stderr


def test_it_needs_no_torch():
    code = "import sys, segmentation.statistics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_no_arm_is_compared_with_one_that_finds_nothing():
    """An empty answer is not inferior by more than .03 to an arm of .02: that says nothing."""
    rng = np.random.default_rng(0)
    claim = Claim("F", "R", "non-inferior", 0.03)
    for level, verdict in ((0.02, "not tested"), (0.5, "contradicted")):
        reference = np.abs(level + 0.002 * rng.standard_normal((3, 20)))
        nothing = np.abs(0.0002 * rng.standard_normal((3, 20)))
        found = compare(nothing, reference, claim)
        assert found.verdict == verdict and found.p is not None and found.p < 0.01
