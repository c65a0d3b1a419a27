"""Statistics of an experiment: claims about its arms, and comparisons that know chance of patients and of trainings.

Two arms are compared by the mean Dice of the same patients. If the experiment were repeated, other patients would be
tested and other networks trained. Patients are therefore random and crossed with everything, replicates are random
and nested in arms, as readers are in radiology's multi-reader multi-case analysis. A test over the patients alone,
such as Wilcoxon's, takes the networks at hand for the only ones there are, and calls noise of training significant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from dnnlib.errors import UserError
from segmentation.experiment import MARGIN

if TYPE_CHECKING:
    from segmentation.scores import Target

ALPHA = 0.05  # level of a family of claims; intervals hold 1 - ALPHA
POWER = 0.8  # with which a detectable difference is found

SUPERIOR, NON_INFERIOR, DIFFERENT = KINDS = ("superior", "non-inferior", "different")
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"  # verdicts on superior and non-inferior
HIGHER, LOWER, NO_DIFFERENCE = "higher", "lower", "no difference shown"  # verdicts on different
NOT_TESTED = "not tested"  # one replicate, or no variance at all

_EQUAL = 1e-9  # Dice; what differs by less is equal but for rounding
_FEWEST_RANKS = 6  # with fewer differences Wilcoxon's p can't fall below ALPHA, whatever they are


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A comparison of two arms that is stated before the experiment."""

    first: str  # name of an arm
    second: str
    kind: str  # one of KINDS
    margin: float = 0.0  # Dice; of non-inferiority, and 0 for other kinds
    abstract: str = ""  # what the paper's abstract claims; empty if it doesn't

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a claim of the kind {self.kind!r}, which is none of {', '.join(KINDS)}")
        if self.kind == NON_INFERIOR:
            check_margin(self.margin)
        elif self.margin:
            raise ValueError(f"a claim of the kind {self.kind!r} has no margin, and this one has {self.margin}")

    @property
    def null(self) -> float:
        """The difference that the claim is tested against."""
        return -self.margin if self.margin else 0.0

    @property
    def sentence(self) -> str:
        """The claim in words, such as "F is not inferior to R by more than 0.03 Dice"."""
        if self.kind == NON_INFERIOR:
            return f"{self.first} is not inferior to {self.second} by more than {self.margin:g} Dice"
        return f"{self.first} {'is better than' if self.kind == SUPERIOR else 'differs from'} {self.second}"


def check_margin(margin: float) -> None:
    """Refuse a margin of non-inferiority that is not above 0 and below 1."""
    if not 0 < margin < 1:
        raise UserError(
            f"a margin of non-inferiority of {margin:g}: expected a Dice above 0 and below 1, such as {MARGIN:g}. "
            "It is the loss of Dice that would still count as none, and is chosen before the experiment"
        )


def family(experiment: str, arms: Sequence[str], margin: float = MARGIN) -> tuple[Claim, ...]:
    """The claims of an experiment, which Holm's correction covers together, with each of its regions.

    experiment: table1 and table2 have the claims of the paper's tables. In any other, each arm is compared with the
    first. arms: their names. Raises UserError for a margin that is none.
    """
    check_margin(margin)
    if experiment == "table1":
        return (
            Claim("F", "R", NON_INFERIOR, margin, "fakes alone are comparable to real slices"),
            Claim("F+R", "R", SUPERIOR, abstract="fakes and real slices together are better than real slices alone"),
        )
    if experiment == "table2":
        return (
            Claim("F", "R", SUPERIOR, abstract="fakes alone are better than few real slices"),
            Claim("3F+R", "R", SUPERIOR, abstract="300 % F + 100 % R is better than few real slices"),
            Claim("3F+R", "3A+R", SUPERIOR, abstract="300 % F + 100 % R is better than 300 % A + 100 % R"),
        )
    return tuple(Claim(arm, arms[0], DIFFERENT) for arm in arms[1:])


# --- comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What an experiment says about a claim for one target. Differences are first - second, in units of Dice.

    With one replicate of an arm, or no variance at all, nothing is known about chance: what depends on it is None.
    """

    claim: Claim
    target: str  # name of a region or label
    replicates: tuple[int, int]  # of the first arm and of the second
    means: tuple[float, float]  # of both arms: over replicates and patients
    difference: float
    differences: tuple[float, ...]  # of each patient, between means over replicates
    ratio: float | None  # first / second; None if second is 0
    ratio_interval: tuple[float, float] | None = None  # 95 %, by Fieller's theorem; None if it has no ends
    se: float | None = None  # standard error of the difference
    df: float | None = None  # degrees of freedom of the standard error
    interval: tuple[float, float] | None = None  # 95 %, of the difference, for this comparison alone
    p: float | None = None  # two-sided, of the claim's null difference
    p_holm: float | None = None  # corrected for the family
    family: int = 1  # number of comparisons in the family
    detectable: float | None = None  # smallest distance from the null found with 80 % power at Holm's first step
    effect: float | None = None  # standardized: difference / SD of the patients' differences
    improved: int | None = None  # patients with a higher Dice in the first arm
    tied: int | None = None  # patients with equal Dice, who are not improved
    wilcoxon_p: float | None = None  # signed ranks of the patients' differences; its chance is of patients only
    verdict: str = NOT_TESTED  # by p_holm

    @property
    def patients(self) -> int:
        return len(self.differences)

    @property
    def share_improved(self) -> float | None:
        return None if self.improved is None else self.improved / self.patients


def compare(first: np.ndarray, second: np.ndarray, claim: Claim, target: str = "") -> Comparison:
    """Compare two arms by the Dice of the same patients, as a family of one claim.

    first, second: [S, n], replicates × patients; both arms have the same patients in the same order. Raises
    UserError for fewer than two patients.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    _check(first, second)
    differences = first.mean(0) - second.mean(0)  # [n]
    means = (float(first.mean()), float(second.mean()))
    comparison = Comparison(
        claim=claim,
        target=target,
        replicates=(len(first), len(second)),
        means=means,
        difference=float(differences.mean()),
        differences=tuple(differences.tolist()),
        ratio=means[0] / means[1] if means[1] > _EQUAL else None,
    )
    if min(comparison.replicates) > 1:
        comparison = _with_chance(comparison, first, second)
    return _in_family(comparison, comparison.p, 1)


def compare_all(
    claims: Iterable[Claim], targets: Iterable[Target], scores: Callable[[str, Target], np.ndarray]
) -> tuple[Comparison, ...]:
    """Compare all arms of the claims for all targets, as one family.

    scores: gives the Dice of an arm and a target, [S, n].
    """
    pairs = [(claim, target) for claim in claims for target in targets]
    return with_holm([compare(scores(c.first, t), scores(c.second, t), c, t.name) for c, t in pairs])


def with_holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Correct a family of comparisons by Holm's method, and give verdicts and detectable differences accordingly.

    A comparison without p counts in the family too, because it was stated with the others.
    """
    p = [1.0 if c.p is None else c.p for c in comparisons]
    # One alone needs no correction, and statsmodels collects garbage at each call, which takes its time.
    corrected = multipletests(p, alpha=ALPHA, method="holm")[1].tolist() if len(p) > 1 else p
    return tuple(_in_family(c, q, len(p)) for c, q in zip(comparisons, corrected, strict=True))


def _in_family(comparison: Comparison, p_holm: float | None, size: int) -> Comparison:
    """Set what depends on the family: its size, the corrected p, the detectable difference and the verdict."""
    if comparison.p is None or p_holm is None or comparison.se is None or comparison.df is None:
        return dataclasses.replace(comparison, family=size)
    return dataclasses.replace(
        comparison,
        family=size,
        p_holm=p_holm,
        detectable=detectable_difference(comparison.se, comparison.df, ALPHA / size),
        verdict=_verdict(comparison, p_holm),
    )


def _verdict(comparison: Comparison, p_holm: float) -> str:
    if is_idle(comparison):
        return NOT_TESTED
    decided, above = p_holm < ALPHA, comparison.difference > comparison.claim.null
    if comparison.claim.kind == DIFFERENT:
        return (HIGHER if above else LOWER) if decided else NO_DIFFERENCE
    return (SHOWN if above else CONTRADICTED) if decided else NOT_SHOWN


def is_idle(comparison: Comparison) -> bool:
    """Whether an arm that finds nothing would pass: non-inferiority to an arm whose Dice is within the margin of 0."""
    return comparison.claim.kind == NON_INFERIOR and comparison.means[1] <= comparison.claim.margin


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not (len(first) and len(second)):
        raise ValueError(f"expected replicates × the same patients for both arms, not {first.shape}, {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("the Dice of a patient is not a number")
    if first.shape[1] < 2:
        raise UserError(
            f"a comparison of arms needs two test patients at least, and there are {first.shape[1]}: "
            "one patient says nothing about others"
        )


# --- chance -----------------------------------------------------------------------------------------------------------


class Chance(NamedTuple):
    """What is known about chance in the difference of two arms. Arrays have the leading dimensions of the scores."""

    se: np.ndarray  # standard error
    df: np.ndarray  # its degrees of freedom; NaN where se is 0


class _Trainings(NamedTuple):
    """The share of trainings in the variance of an arm's mean."""

    variance: np.ndarray
    spread: np.ndarray  # sum over mean squares of (their share in `variance`)² / degrees of freedom


def chance_of(first: np.ndarray, second: np.ndarray) -> Chance:
    """Estimate the standard error of the difference of two arms' means, with patients and replicates random.

    first, second: [..., S, n], S >= 2 replicates (each arm may have its own number) × n >= 2 patients.

        SE² = Var(d) / n + Σ_arms max(0, V - M / n) / S

    d: the patients' differences of means over replicates; their variance over patients holds the chance of patients,
    and of trainings as far as it differs between patients. V: the variance between the replicates of an arm of their
    means over patients. M: the mean square of the arm's residuals y_si - ȳ_s. - ȳ_.i + ȳ.., with (S - 1)(n - 1)
    degrees of freedom. V - M / n estimates the variance between trainings that all patients share; the rest of V is
    in Var(d) already. The degrees of freedom are Satterthwaite's over all mean squares, which are independent in
    normal data:

        SE⁴ / df = (Var(d) / n)² / (n - 1) + Σ_arms [(V / S)² / (S - 1) + (M / nS)² / ((S - 1)(n - 1))]

    where an arm whose V - M / n is not above 0 adds nothing. They are 1 at least.
    """
    n = first.shape[-1]
    d = first.mean(-2) - second.mean(-2)  # [..., n]
    patients = d.var(-1, ddof=1) / n
    arms = (_trainings(first), _trainings(second))
    variance = patients + sum(arm.variance for arm in arms)
    spread = patients**2 / (n - 1) + sum(arm.spread for arm in arms)
    known = variance > _EQUAL**2
    df = np.where(known, np.maximum(variance**2 / np.where(known, spread, 1), 1), np.nan)
    return Chance(np.where(known, np.sqrt(variance), 0), df)


def _trainings(scores: np.ndarray) -> _Trainings:
    """Estimate how much trainings add to the variance of an arm's mean. scores: [..., S, n]."""
    S, n = scores.shape[-2:]
    of_run, of_patient = scores.mean(-1, keepdims=True), scores.mean(-2, keepdims=True)
    residuals = scores - of_run - of_patient + scores.mean((-2, -1), keepdims=True)
    shared = of_run[..., 0].var(-1, ddof=1) / S
    residual = (residuals**2).sum((-2, -1)) / ((S - 1) * (n - 1)) / (n * S)
    spread = shared**2 / (S - 1) + residual**2 / ((S - 1) * (n - 1))
    return _Trainings(np.maximum(shared - residual, 0), np.where(shared > residual, spread, 0))


def p_value(difference: np.ndarray, chance: Chance, null: float = 0.0) -> np.ndarray:
    """Two-sided p of the t test that the true difference is `null`; NaN where the standard error is 0.

    For non-inferiority, null is minus the margin: where the difference lies above it, this is twice the p of the
    one-sided test, so that a family of claims of both kinds has one level.
    """
    return 2 * stats.t.sf(np.abs(difference - null) / np.where(chance.se > 0, chance.se, np.nan), chance.df)


def _with_chance(comparison: Comparison, first: np.ndarray, second: np.ndarray) -> Comparison:
    """Add what depends on chance, but for the family."""
    d = np.array(comparison.differences)
    tied, sd = np.abs(d) <= _EQUAL, d.std(ddof=1)
    chance = chance_of(first, second)
    described = dataclasses.replace(
        comparison,
        se=float(chance.se),
        effect=float(comparison.difference / sd) if sd > _EQUAL else None,
        improved=int(((d > 0) & ~tied).sum()),
        tied=int(tied.sum()),
        wilcoxon_p=_wilcoxon(d),
    )
    if not chance.se > 0:
        return described
    t = float(stats.t.isf(ALPHA / 2, chance.df))
    half = t * float(chance.se)
    return dataclasses.replace(
        described,
        df=float(chance.df),
        interval=(comparison.difference - half, comparison.difference + half),
        p=float(p_value(np.array(comparison.difference), chance, comparison.claim.null)),
        ratio_interval=_fieller(first, second, t),
    )


def _fieller(first: np.ndarray, second: np.ndarray, t: float) -> tuple[float, float] | None:
    """Interval of the ratio of two arms' means by Fieller's theorem; None if it has no ends.

    It holds all ratios r for which first - r · second lies within t standard errors of 0, with the variances of
    `chance_of`. So it holds 1 if the interval of the difference holds 0. first, second: [S, n].
    """
    n = first.shape[1]
    of_patients = np.cov(first.mean(0), second.mean(0)) / n  # [2, 2]
    variances = of_patients.diagonal() + [_trainings(first).variance, _trainings(second).variance]
    # a r² - 2 b r + c <= 0
    a = second.mean() ** 2 - t**2 * variances[1]
    b = first.mean() * second.mean() - t**2 * of_patients[0, 1]
    c = first.mean() ** 2 - t**2 * variances[0]
    if a <= 0:  # the second arm's mean may be 0
        return None
    half = math.sqrt(max(b**2 - a * c, 0))
    return float((b - half) / a), float((b + half) / a)


def _wilcoxon(d: np.ndarray) -> float | None:
    """Two-sided p of Wilcoxon's signed ranks of differences d [n]; None if they are too few to say anything.

    Differences of 0 take part in the ranking, and are left out of the sums (Pratt).
    """
    d = np.where(np.abs(d) <= _EQUAL, 0, np.round(d, 12))  # so that equal differences have equal ranks
    if np.count_nonzero(d) < _FEWEST_RANKS:
        return None
    return float(stats.wilcoxon(d, zero_method="pratt").pvalue)


# --- power ------------------------------------------------------------------------------------------------------------


def power(difference: float, se: float, df: float, alpha: float = ALPHA) -> float:
    """Probability that a two-sided t test of level alpha finds a true difference above 0, in its direction."""
    return float(stats.nct.sf(stats.t.isf(alpha / 2, df), df, difference / se))


def detectable_difference(se: float, df: float, alpha: float = ALPHA) -> float:
    """The smallest true difference that a two-sided t test of level alpha finds with 80 % power.

    At Holm's first step, alpha is the family's level divided by its size. The inverse of `power`.
    """
    most = 1.0
    while power(most, 1, df, alpha) < POWER:
        most *= 2
    return se * float(optimize.brentq(lambda noncentrality: power(noncentrality, 1, df, alpha) - POWER, 0, most))
