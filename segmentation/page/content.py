"""What a report says of one experiment: its numbers as tables and figures. Nothing is computed here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dnnlib.pages.panels import Figure, slug
from dnnlib.text import count, format_time
from segmentation.arms import Arm, baseline
from segmentation.page.figures import Difference, Distances, Line, bars, distances, forest, lines
from segmentation.report import Table
from segmentation.results import by_patient, of_target, patients_of
from segmentation.scores import Target
from segmentation.statistics import DIFFERENT, Claim, Comparison, compare
from segmentation.study import GAIN, Archive, Study
from segmentation.tables import (
    NONE,
    about_gans,
    flagged_sentence,
    format_detectable,
    format_interval,
    format_p,
    scope_of,
    signed,
    tables_of,
)

FOUND = ("HD95 in mm", "Misses", "False alarms")  # captions of tables that stand in the section on distances
MARKS = {"shown": "✓", "contradicted": "✗", "not shown": "○", "higher": "▲", "lower": "▼", "no difference shown": "○"}


@dataclass(frozen=True)
class Verdict:
    """What the experiment says about a claim, for one target."""

    target: str
    word: str  # such as "not shown"
    scope: str  # such as " for this GAN"; mostly empty
    effect: str  # the difference
    interval: str
    p: str
    detectable: str

    @property
    def mark(self) -> str:
        """A sign beside the word, for readers who see no colors."""
        return MARKS.get(self.word, "–")


@dataclass(frozen=True)
class ClaimPart:
    """A claim with its verdicts."""

    abstract: str  # what the paper's abstract says; empty if it doesn't
    sentence: str  # what was tested
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Named:
    """A table with a caption."""

    caption: str
    table: Table


@dataclass(frozen=True)
class Made:
    """How an experiment was made."""

    facts: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]  # of every training
    commands: tuple[str, ...]
    archives: Named
    networks: Named
    test_patients: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """All of one experiment but its pictures of slices."""

    name: str
    title: str
    summary: str
    claims: tuple[ClaimPart, ...]
    tables: tuple[Named, ...]
    forest: Figure
    distances: Figure
    distance_tables: tuple[Named, ...]
    diagnostics: tuple[Figure | Named, ...]
    made: Made
    notes: tuple[str, ...]


def part_of(study: Study) -> Part:
    """All of one experiment but its pictures of slices."""
    tables = {caption: Named(f"{short_title(study)}: {caption}", table) for caption, table in tables_of(study).items()}
    return Part(
        study.name,
        study.title,
        _summary(study),
        claims_of(study),
        _notes_once([table for caption, table in tables.items() if caption not in FOUND]),
        forest_of(study),
        distances_of(study),
        _notes_once([tables[caption] for caption in FOUND]),
        tuple(diagnostics_of(study)),
        made_of(study),
        study.notes,
    )


def _notes_once(tables: Sequence[Named]) -> tuple[Named, ...]:
    """Tables below each other: what several of them note stands below the last of these."""
    kept = []
    for n, named in enumerate(tables, start=1):
        later = {note for other in tables[n:] for note in other.table.notes}
        notes = tuple(note for note in named.table.notes if note not in later)
        kept.append(Named(named.caption, named.table._replace(notes=notes)))
    return tuple(kept)


def _summary(study: Study) -> str:
    """What was compared, in one sentence or two."""
    gans = f", and the fakes of {count(study.gans, 'GAN')}" if study.gans else ""
    told = (
        f"{count(len(study.arms), 'arm')}, {count(study.replicates, 'replicate')}{gans}; "
        f"{count(len(patients_of(study.rows)), 'test patient')}."
    )
    if study.replicates == 1:
        told += " One training of each arm is no measure of chance, so there are no intervals and no p-values."
    elif note := about_gans(study):
        told += f" {note[0].upper()}{note[1:]}."
    return told


def short_title(study: Study) -> str:
    """The title up to its first colon, such as "Table 1"."""
    return study.title.partition(":")[0]


# --- claims -----------------------------------------------------------------------------------------------------------


def claims_of(study: Study) -> tuple[ClaimPart, ...]:
    """The claims, each with a verdict for every target."""
    grouped = itertools.groupby(study.comparisons, key=lambda comparison: comparison.claim)
    return tuple(
        ClaimPart(
            claim.abstract,
            flagged_sentence(claim, study.flagged),
            tuple(_verdict(study, comparison) for comparison in comparisons),
        )
        for claim, comparisons in grouped
    )


def _verdict(study: Study, comparison: Comparison) -> Verdict:
    return Verdict(
        comparison.target,
        comparison.verdict,
        scope_of(study, comparison),
        signed(comparison.difference),
        format_interval(comparison.interval),
        format_p(comparison.p_holm),
        format_detectable(comparison.detectable),
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def baseline_of(study: Study) -> Arm:
    """The arm that the others are compared with: real slices alone, or else the first."""
    return baseline(study.arms) or study.arms[0]


def forest_of(study: Study) -> Figure:
    """Differences of all arms to real slices, a panel for each region."""
    base = baseline_of(study)
    others = [arm for arm in study.arms if arm != base]
    panels = (
        forest(
            f"{slug(study.name)}-differences-{n}-{slug(target.name)}",
            target.name,
            [_difference(study, arm, base, target) for arm in others],
        )
        for n, target in enumerate(study.headline, start=1)
    )
    margin = any(comparison.claim.margin for comparison in study.comparisons)
    caption = (
        f"Difference in mean Dice to {base.title}. Diamond: mean over patients and replicates. Bar: 95 % interval, "
        "with patients and replicates random. Dots: patients, each with the mean over replicates."
        + (f" Dashed: the margin of non-inferiority, −{study.margin:g}." if margin else "")
        + (" With one replicate there is no interval." if study.replicates == 1 else "")
    )
    return Figure(f"{short_title(study)}: differences to {base.title}", caption, tuple(panels) if others else ())


def _difference(study: Study, arm: Arm, base: Arm, target: Target) -> Difference:
    first, second = (by_patient(study.rows, one.name, target) for one in (arm, base))
    found = compare(first, second, Claim(arm.name, base.name, DIFFERENT), target.name)
    margins = [c.claim.margin for c in study.comparisons if (c.claim.first, c.claim.second) == (arm.name, base.name)]
    margin = max(margins, default=0) or None
    return Difference(arm.title, study.arms.index(arm), found.difference, found.interval, found.differences, margin)


def distances_of(study: Study) -> Figure:
    """HD95 by arm, a panel for each region."""
    panels = (
        distances(
            f"{slug(study.name)}-hd95-{n}-{slug(target.name)}",
            target.name,
            [_distances(study, arm, target) for arm in study.arms],
        )
        for n, target in enumerate(study.headline, start=1)
    )
    caption = (
        "A dot is an examination and replicate in which truth and answer both have the target. Missed: it is there, "
        "and nothing was found. False: it is not there, and something was found. Neither has a distance, so neither is "
        "drawn; in the tables and in results.csv they count with the diagonal of the stacked slices."
    )
    known = any(row.hd95_mm is not None for row in study.rows)
    return Figure(f"{short_title(study)}: HD95", caption, tuple(panels) if known else ())


def _distances(study: Study, arm: Arm, target: Target) -> Distances:
    rows = [row for row in of_target(study.rows, target) if row.arm == arm.name]
    both = [row for row in rows if not (row.truth_empty or row.prediction_empty)]
    return Distances(
        arm.title,
        study.arms.index(arm),
        tuple(row.hd95_mm for row in both if row.hd95_mm is not None),
        sum(row.prediction_empty and not row.truth_empty for row in rows),
        sum(row.truth_empty and not row.prediction_empty for row in rows),
    )


# --- diagnostics ------------------------------------------------------------------------------------------------------


def diagnostics_of(study: Study) -> Iterator[Figure | Named]:
    """Figures and tables that help to understand the numbers."""
    name = slug(study.name)
    if study.content:
        yield _content(study, name)
    if study.agreement:
        yield _agreement(study, name)
    if study.convergence:
        yield _convergence(study, name)
    if study.unets:
        yield _curves(study, name)


def _content(study: Study, name: str) -> Figure:
    """Areas of the classes and specks, in real and fake slices."""
    classes = study.schema.class_names
    areas = {where: [100 * one.areas.shares[c] for c in classes] for where, one in study.content.items()}
    per_slice = {where: [one.specks_per_slice, one.lesion_free] for where, one in study.content.items()}
    panels = (
        bars(f"{name}-class-areas", "Class areas", "mean share of a slice in %", classes, areas),
        bars(f"{name}-specks", "Specks and empty slices", "per slice", ("specks", "without lesion"), per_slice),
    )
    caption = (
        "Left: the share of a slice's pixels that each class takes. Right: specks per slice, which are connected parts "
        "of a class with fewer than 4 pixels, and the share of slices without lesion."
    )
    return Figure("What the slices show", caption, panels)


def _agreement(study: Study, name: str) -> Figure:
    """Dice of a real-trained U-Net against the labels that come with slices."""
    titles = [target.title for target in study.targets]
    series = {one.slices: [one.dice.get(title) for title in titles] for one in study.agreement}
    panel = bars(f"{name}-agreement", "Do labels fit their slices?", "Dice over all slices together", titles, series)
    caption = (
        "Dice of the U-Net of real slices (replicate 1) against labels: those of test patients, and those that came "
        "with the fakes. A lower agreement with fakes means that their labels and pictures fit each other less, or "
        "that fakes look unlike anything that the network has learned from."
    )
    return Figure("Agreement with the fakes' labels", caption, (panel,))


def _convergence(study: Study, name: str) -> Figure:
    """Dice after ½, 1 and 2 times the steps."""
    arms = {arm.name: (place, arm.title) for place, arm in enumerate(study.arms)}
    panels = []
    for n, target in enumerate(study.headline, start=1):
        drawn = [
            Line(arms[one.arm][1], arms[one.arm][0], tuple(map(float, one.steps)), one.dice[target.title])
            for one in study.convergence
        ]
        half, whole, double = study.convergence[0].steps
        ticks: dict[float, str] = {half: f"½ ({half})", whole: f"1 ({whole})", double: f"2 ({double})"}
        panels.append(
            lines(f"{name}-convergence-{n}-{slug(target.name)}", target.name, "steps", "mean Dice", drawn, ticks)
        )
    late = [arm.title for arm in study.arms if arm.name in study.flagged]
    caption = (
        "Replicate 1, trained for ½, 1 and 2 times the steps of the experiment; each length is a training of its own."
    )
    first = study.headline[0].name
    caption += (
        f" Not converged (twice the steps raise its Dice of {first} by more than {GAIN:g}): {', '.join(late)}."
        if late
        else f" No arm gains more than {GAIN:g} of {first} from twice the steps."
    )
    return Figure("Convergence", caption, tuple(panels))


def _curves(study: Study, name: str) -> Figure:
    """Loss of every training, and Dice on validation slices where there are any."""
    loss, validated = [], []
    for place, arm in enumerate(study.arms):
        for replicate in range(1, study.replicates + 1):
            if (unet := study.unets.get((arm.name, replicate))) is None:
                continue
            curve = unet.record.curve
            loss.append(Line(arm.title, place, tuple(float(p.step) for p in curve), tuple(p.loss for p in curve)))
            points = [(float(p.step), p.val) for p in curve if p.val is not None]
            if points:
                x, y = zip(*points, strict=True)
                validated.append(Line(arm.title, place, x, y))
    panels = [lines(f"{name}-loss", "Loss", "step", "loss", loss, {})]
    if validated:
        dice = f"mean Dice, {study.headline[0].name}"
        panels.append(lines(f"{name}-validation", "Validation", "step", dice, validated, {}))
    caption = f"Loss of {count(len(loss), 'training')}; losses of different arms are of different slices."
    if validated:
        caption += " Dice on slices of validation patients of the training side; nothing was selected by it."
    return Figure("Training curves", caption, tuple(panels))


# --- how it was made --------------------------------------------------------------------------------------------------


def made_of(study: Study) -> Made:
    """Commands, options, archives and networks."""
    archives = {"real": study.real, **_numbered(study), "test": study.test}
    if study.val is not None:
        archives["validation"] = study.val
    rows = [
        # each fake counts as a patient in its archive, but is none
        (
            role,
            one.facts.file,
            f"{one.facts.slices:,}",
            NONE if one.snapshots else f"{one.facts.patients:,}",
            one.facts.sha256,
        )
        for role, one in archives.items()
    ]
    networks = [
        (arm, str(r), str(u.record.unet.training.seed), format_time(u.record.seconds), u.evaluation.model.sha256)
        for (arm, r), u in study.unets.items()
    ]
    seconds = sum(unet.record.seconds for unet in study.unets.values())
    facts = {
        **study.made,
        "Replicates": f"{study.replicates}; each has its own seed of the U-Net"
        + (f"; fakes of {count(study.gans, 'GAN')}" if study.gans else ""),
        "Split": f"{count(study.real.facts.patients, 'patient')} to train, "
        f"{count(study.test.facts.patients, 'patient')} to test; no patient is on both sides",
        "Training": f"{count(len(study.unets), 'U-Net')}, {format_time(seconds)} together",
    }
    return Made(
        tuple((key, str(value)) for key, value in facts.items()),
        tuple((option, str(value)) for option, value in study.options.items()),
        study.commands,
        Named("Archives", Table(("archive", "file", "slices", "patients", "SHA-256"), tuple(rows), _snapshots(study))),
        Named("U-Nets", Table(("arm", "replicate", "seed", "time", "SHA-256"), tuple(networks))),
        patients_of(study.rows),
    )


def _numbered(study: Study) -> Mapping[str, Archive]:
    return {f"fakes {n}": archive for n, archive in enumerate(study.fakes, start=1)}


def _snapshots(study: Study) -> tuple[str, ...]:
    """Notes on the GANs behind the fakes."""
    return tuple(
        f"{role}: made by a GAN's snapshot with SHA-256 {snapshot}"
        for role, archive in _numbered(study).items()
        for snapshot in archive.snapshots
    )
