"""Tables of a finished experiment, in the paper's layout: a row for each arm, a column for each region and label.

Each is a `Table`, which the terminal, documents and the page show. Means are taken over the examinations of a patient
first, then over patients, then over replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dnnlib.text import count
from segmentation.arms import Arm
from segmentation.report import Table
from segmentation.results import Row, by_patient, of_target, patients_of
from segmentation.scores import Target
from segmentation.statistics import (
    ALPHA,
    CONTRADICTED,
    HIGHER,
    LOWER,
    NON_INFERIOR,
    NOT_TESTED,
    SHOWN,
    Claim,
    Comparison,
    is_idle,
)
from segmentation.study import GAIN, Study
from slices.schema import Schema

NONE = "–"  # what is not known, or has no cases
FLAG = "†"  # marks an arm that has not converged
ONE_GAN = "one GAN: intervals do not cover the generator's own variance"
IN_PART = "intervals cover the generator's own variance in part only"
ONE_REPLICATE = "one replicate: no intervals and no p-values"
NO_CONVERGENCE = "whether the arms would gain from more steps was not measured"
DISTANCES = (
    "HD95: median [quartiles] over examinations and replicates in which the truth has the region or label; one that "
    "is missed counts with the diagonal of the stacked slices. It is the larger one of the two directed 95th "
    "percentiles of distances between surfaces, as MONAI has it. BraTS pools both directions since 2023, so its "
    "numbers don't compare with these"
)


def tables_of(study: Study) -> dict[str, Table]:
    """All tables of results by their captions, with the claims last."""
    return {
        "Mean Dice": dice_table(study),
        "Dice of patients who have the target": present_table(study),
        "False alarms": false_alarm_table(study),
        "HD95 in mm": distance_table(study),
        "Misses": miss_table(study),
        "Claims": claims_table(study),
    }


def describe_study(study: Study) -> str:
    """Describe an experiment for the terminal: how much was compared, notes on the data, and the verdicts."""
    gans = f", fakes of {count(study.gans, 'GAN')}" if study.gans else ""
    patients = count(len(patients_of(study.rows)), "test patient")
    size = f"{count(len(study.arms), 'arm')}, {count(study.replicates, 'replicate')}{gans}, {patients}"
    claims = dict.fromkeys(comparison.claim for comparison in study.comparisons)
    verdicts = [
        f"{claim.sentence}: "
        + ", ".join(f"{c.target} {verdict_of(study, c)}" for c in study.comparisons if c.claim == claim)
        for claim in claims
    ]
    return "\n".join([size, *study.notes, *verdicts])


# --- Dice -------------------------------------------------------------------------------------------------------------


def dice_table(study: Study) -> Table:
    """Mean Dice over all patients, ± the SD between replicates."""
    notes = ["Dice is 1 where truth and answer both lack the region or label, and 0 where one of them does"]
    return _by_arm(study, _header(study, "mean Dice"), _mean_sd, notes)


def present_table(study: Study) -> Table:
    """Mean Dice over the patients who have the target, ± the SD between replicates."""
    having = [f"{len(patients_of(_present(of_target(study.rows, target))))} {target.title}" for target in study.targets]
    return _by_arm(
        study,
        _header(study, "mean Dice of those who have it"),
        lambda rows, arm, target: _mean_sd(_present(rows), arm, target),
        [f"patients who have it, of {len(patients_of(study.rows))}: {', '.join(having)}"],
    )


def _header(study: Study, what: str) -> str:
    """Title of a column of arms, which says what the cells are."""
    return f"{what} ± SD between replicates" if study.replicates > 1 else what


def _mean_sd(rows: Sequence[Row], arm: Arm, target: Target) -> str:
    """Mean Dice over patients and replicates, ± SD between the replicates' means if there are several."""
    if not rows:
        return NONE
    means = by_patient(rows, arm.name, target).mean(1)  # [S]
    return f"{means.mean():.3f}" + (f" ± {means.std(ddof=1):.3f}" if len(means) > 1 else "")


# --- detection and distance -------------------------------------------------------------------------------------------


def false_alarm_table(study: Study) -> Table:
    """How often a target was found where the truth lacks it."""
    return _by_arm(
        study,
        "false alarms",
        lambda rows, *_: _share([not row.prediction_empty for row in rows if row.truth_empty]),
        ["false alarms: of the examinations that lack the region or label, in all replicates, those with it found"],
    )


def miss_table(study: Study) -> Table:
    """How often nothing was found of a target that the truth has."""
    return _by_arm(
        study,
        "misses",
        lambda rows, *_: _share([row.prediction_empty for row in _present(rows)]),
        ["misses: of the examinations that have the region or label, in all replicates, those with none found"],
    )


def distance_table(study: Study) -> Table:
    """Median and quartiles of HD95 in mm where the truth has the target. A mean would be that of the misses."""
    rows = of_target(study.rows, study.targets[0])
    unknown = sum(row.hd95_mm is None for row in rows)
    notes = [f"unknown, and left out, for {unknown} of {len(rows)}: where their slices lie is not known"] * bool(
        unknown
    )
    return _by_arm(study, "HD95 in mm, median [quartiles]", _quartiles, [DISTANCES, *notes])


def _quartiles(rows: Sequence[Row], *_: object) -> str:
    """Median and quartiles of the known distances where the truth has the target."""
    known = [row.hd95_mm for row in _present(rows) if row.hd95_mm is not None]
    if not known:
        return NONE
    lower, median, upper = np.percentile(known, (25, 50, 75))
    return f"{median:.1f} [{lower:.1f}, {upper:.1f}]"


def _present(rows: Iterable[Row]) -> list[Row]:
    """Those whose truth has the target."""
    return [row for row in rows if not row.truth_empty]


def _share(found: Sequence[bool]) -> str:
    """How many of how many, and the percentage."""
    return f"{sum(found)} of {len(found)} ({sum(found) / len(found):.0%})" if found else NONE


# --- claims -----------------------------------------------------------------------------------------------------------

_CLAIM_COLUMNS: dict[str, Callable[[Study, Comparison], str]] = {
    "target": lambda _, c: c.target,
    "difference": lambda _, c: signed(c.difference),
    "95 % interval": lambda _, c: format_interval(c.interval),
    "p": lambda _, c: format_p(c.p),
    "p (Holm)": lambda _, c: format_p(c.p_holm),
    "verdict": lambda study, c: verdict_of(study, c),
    "detectable": lambda _, c: format_detectable(c.detectable),
    "effect": lambda _, c: NONE if c.effect is None else signed(c.effect, 2),
    "improved": lambda _, c: improved(c),
    "ratio": lambda _, c: ratio(c),
    "these networks only": lambda _, c: format_p(c.wilcoxon_p),
}


def claims_table(study: Study) -> Table:
    """The claims of an experiment with their comparisons. Columns without any value are left out."""
    rows = [
        (flagged_sentence(c.claim, study.flagged), *(cell(study, c) for cell in _CLAIM_COLUMNS.values()))
        for c in study.comparisons
    ]
    header = ("claim", *_CLAIM_COLUMNS)
    kept = [i for i in range(len(header)) if not rows or any(row[i] != NONE for row in rows)]
    notes = [*_about_claims(study.comparisons), *common_notes(study)]
    return Table(tuple(header[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows), tuple(notes))


def flagged_sentence(claim: Claim, flagged: Iterable[str]) -> str:
    """The claim in words, marked if one of its arms has not converged."""
    return claim.sentence + f" {FLAG}" * bool({claim.first, claim.second} & set(flagged))


def _about_claims(comparisons: Sequence[Comparison]) -> list[str]:
    """Notes on the columns that a table of these claims has."""
    notes = ["difference: mean Dice of the first arm minus that of the second"]
    if any(c.p is not None for c in comparisons):
        notes += [
            "95 % interval, p: by t, with patients and replicates random; each for its comparison alone",
            f"p (Holm): corrected for the {count(comparisons[0].family, 'comparison')} of this table; "
            f"the verdict goes by it, at {ALPHA:g}",
            "detectable: the smallest true difference that would be found with 80 % power, at Holm's first step; what "
            "is not shown may be as large",
            "effect: difference / SD over patients of their differences. improved: patients with a higher Dice in the "
            "first arm",
            "ratio: of the mean Dice of both arms, with 95 % interval by Fieller's theorem; none where it has no ends",
        ]
    if any(c.wilcoxon_p is not None for c in comparisons):
        notes.append(
            "these networks only: p of Wilcoxon's signed ranks over patients. It takes these trainings for the only "
            "ones there are, and so calls noise of training significant"
        )
    if any(c.claim.kind == NON_INFERIOR and c.p is not None for c in comparisons):
        notes.append("non-inferiority: p is of the difference to minus the margin, and so is what is detectable")
    if any(c.p is not None and is_idle(c) for c in comparisons):
        notes.append(
            f"{NOT_TESTED}: the Dice of the arm to compare with is within the margin of 0, so an arm that finds "
            "nothing would not be inferior"
        )
    if any(c.p is None and min(c.replicates) > 1 for c in comparisons):
        notes.append(
            f"{NOT_TESTED}: all replicates and patients differ by the same, so that nothing is known of chance"
        )
    return notes


# --- numbers ----------------------------------------------------------------------------------------------------------


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, as in "−0.023"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def format_interval(interval: tuple[float, float] | None) -> str:
    """An interval of a difference in Dice, as in "−0.041 to −0.005". Ends that no difference can reach are cut."""
    if interval is None:
        return NONE
    low, high = interval
    return f"{'< −1' if low < -1 else signed(low)} to {'> +1' if high > 1 else signed(high)}"


def format_p(p: float | None) -> str:
    """A p-value with three digits, and four at the border of significance."""
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if f"{p:.3f}" == f"{ALPHA:.3f}" else f"{p:.3f}"


def format_detectable(difference: float | None) -> str:
    """A detectable difference. No Dice differs by more than 1."""
    if difference is None:
        return NONE
    return f"{difference:.3f}" if difference <= 1 else "> 1"


def improved(comparison: Comparison) -> str:
    """How many patients have a higher Dice in the first arm, and how many an equal one."""
    if comparison.improved is None:
        return NONE
    tied = f", {comparison.tied} equal" if comparison.tied else ""
    return f"{comparison.improved} of {comparison.patients}{tied}"


def ratio(comparison: Comparison) -> str:
    """Ratio of the mean Dice, with its interval. Nothing if that has no ends, as the second mean may be 0 then."""
    ends = comparison.ratio_interval
    if comparison.ratio is None or (ends is None and comparison.p is not None):
        return NONE
    return f"{comparison.ratio:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


# --- tables of arms ---------------------------------------------------------------------------------------------------


def _by_arm(study: Study, what: str, cell: Callable[[Sequence[Row], Arm, Target], str], notes: Iterable[str]) -> Table:
    """A table of arms × targets. cell: makes a text of the rows of an arm and a target."""
    rows = []
    for arm in study.arms:
        of_arm = [row for row in study.rows if row.arm == arm.name]
        title = arm.title + f" {FLAG}" * (arm.name in study.flagged)
        rows.append((title, *(cell(of_target(of_arm, target), arm, target) for target in study.targets)))
    header = (what, *(target.title for target in study.targets))
    return Table(header, tuple(rows), (*notes, *_regions(study.schema), *common_notes(study)))


def _regions(schema: Schema) -> list[str]:
    """Note of what the regions are."""
    unions = [region for region in schema.regions if region.classes != (region.name,)]
    regions = ", ".join(f"{region.name} is {' + '.join(region.classes)}" for region in unions)
    return [f"regions: {regions}"] if regions else []


def common_notes(study: Study) -> list[str]:
    """Notes that every table carries: what its numbers can't tell."""
    notes = [about_gans(study)] if about_gans(study) else []
    if study.replicates == 1:
        notes.append(ONE_REPLICATE)
    if study.flagged:
        first = study.headline[0].title
        notes.append(
            f"{FLAG} not converged: twice the steps raise its mean Dice of {first} by more than {GAIN:g} (replicate 1)"
        )
    if not study.convergence:
        notes.append(NO_CONVERGENCE)
    return notes + _blind(study)


def _blind(study: Study) -> list[str]:
    """Notes on arms that never find a target, although patients have it: their Dice is that of the other patients."""
    notes = []
    for target in study.headline:
        rows = of_target(study.rows, target)
        blind = [
            arm.name
            for arm in study.arms
            if (own := _present([row for row in rows if row.arm == arm.name])) and all(r.prediction_empty for r in own)
        ]
        if blind and any(row.truth_empty for row in rows):
            notes.append(
                f"{target.name}: {', '.join(blind)} never finds it. The mean Dice is that of patients without, and "
                "so are differences to it"
            )
    return notes


def verdict_of(study: Study, comparison: Comparison) -> str:
    """The verdict on a comparison, with what it holds for."""
    return f"{comparison.verdict}{scope_of(study, comparison)}"


def scope_of(study: Study, comparison: Comparison) -> str:
    """For which GANs a verdict holds, as their own variance is not in its interval. Empty if nothing was decided."""
    arms = {arm.name: arm for arm in study.arms}
    fakes = any(arms[name].uses_fakes for name in (comparison.claim.first, comparison.claim.second))
    decided = comparison.verdict in (SHOWN, CONTRADICTED, HIGHER, LOWER)
    if not (fakes and decided and about_gans(study)):
        return ""
    return " for this GAN" if study.gans == 1 else " for these GANs"


def about_gans(study: Study) -> str:
    """What intervals don't tell about the GANs behind the fakes; empty if each replicate has its own."""
    if study.gans == 1:
        return ONE_GAN
    if 1 < study.gans < study.replicates:
        return f"{count(study.gans, 'GAN')} for {study.replicates} replicates: {IN_PART}"
    return ""
