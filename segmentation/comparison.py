"""Comparison of the arms of an experiment: U-Nets trained on different slices and tested on one archive.

All results are in one record, Comparison. Tables, picture and results.json are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import json_bytes
from dnnlib.publish import Staged
from dnnlib.text import count
from segmentation.chart import DICE_TITLE, draw_chart
from segmentation.experiment import COMPARED
from segmentation.report import (
    MASK,
    OUTSIDE_HEAD,
    Table,
    about_data,
    about_names,
    about_pixels,
    describe_data,
)
from segmentation.scores import Evaluation, targets_of
from slices.class_areas import ClassAreas

AREAS_TITLE = "Mean area of each class in a training slice"


@dataclass(frozen=True)
class GanFacts:
    """The GAN that made the fakes."""

    kimg: int  # length of its training
    seed: int


@dataclass(frozen=True)
class Comparison:
    """Evaluations of all arms, and the slices that they were trained on."""

    arms: Mapping[str, Evaluation]  # by name, in the order of the rows; all on the same test archive
    relative_to: Mapping[str, str]  # arm -> other arm; a note gives the ratio of their Dice
    real: ClassAreas  # of all real training slices
    fake: ClassAreas  # of all fakes
    gan: GanFacts

    @property
    def first(self) -> Evaluation:
        """The first arm, for facts about the test archive, which all arms share."""
        return next(iter(self.arms.values()))


def write_comparison(comparison: Comparison, outdir: Path) -> None:
    """Write results.json, results.md and dice.png: all or none. Replaces the files of an earlier call."""
    values, words, picture = (outdir / name for name in COMPARED)
    with Staged(values, force=True) as staged:
        staged.write(values, json_bytes(to_content(comparison)))
        staged.write(words, to_markdown(comparison).encode())
        draw_chart(staged.place(picture), comparison.arms, comparison.real, comparison.fake)


def to_content(comparison: Comparison) -> dict[str, Any]:
    """Content of results.json."""
    return {
        "notes": dice_table(comparison).notes,
        "dice": dict(comparison.arms),
        "class_areas": {"real": comparison.real.shares, "fake": comparison.fake.shares},
        "slices_without_lesion": {"real": _lesion_free(comparison.real), "fake": _lesion_free(comparison.fake)},
        "gan": comparison.gan,
    }


def to_markdown(comparison: Comparison) -> str:
    """Format both tables for a document."""
    dice, areas = dice_table(comparison), areas_table(comparison.real, comparison.fake)
    return f"{DICE_TITLE}\n\n{dice.markdown()}\n\n{AREAS_TITLE}\n\n{areas.markdown()}\n"


def to_text(comparison: Comparison) -> str:
    """Format both tables for the terminal."""
    dice, areas = dice_table(comparison), areas_table(comparison.real, comparison.fake)
    tested = describe_data(comparison.first)
    return f"=== {DICE_TITLE}\n{tested}\n{dice.text()}\n\n=== {AREAS_TITLE}\n{areas.text()}"


# --- tables -----------------------------------------------------------------------------------------------------------


def dice_table(comparison: Comparison) -> Table:
    """Make the table of arms, with notes on the GAN, on slices without lesion, and on ratios between arms."""
    table = arms_table(comparison.arms)
    real, fake = _lesion_free(comparison.real), _lesion_free(comparison.fake)
    notes = (
        *table.notes,
        f"one GAN, with seed {comparison.gan.seed}, of {comparison.gan.kimg} kimg",
        f"training slices without lesion: {real:.1%} of the real ones, {fake:.1%} of the fakes",
        *(_ratio(comparison.arms, arm, base) for arm, base in comparison.relative_to.items()),
    )
    return table._replace(notes=notes)


def areas_table(real: ClassAreas, fake: ClassAreas) -> Table:
    """Make a table with a row per class: its mean share of a real slice, of a fake slice, and the ratio."""
    rows = tuple(
        (name, f"{share:.3%}", f"{fake.shares[name]:.3%}", f"{fake.shares[name] / share:.2f}" if share else "-")
        for name, share in real.shares.items()
    )
    return Table(("class", "real", "fake", "fake / real"), rows)


def _lesion_free(areas: ClassAreas) -> float:
    """Share of the slices that have no lesion."""
    return areas.num_lesion_free / areas.num_slices


def _ratio(arms: Mapping[str, Evaluation], arm: str, base: str) -> str:
    """Note the Dice of an arm relative to another arm, for the schema's first region (WT for BraTS)."""
    target = targets_of(arms[base].model.info.schema)[0]
    one, other = arms[arm].summary(target), arms[base].summary(target)
    own, masked = _share_of(one.mean, other.mean), _share_of(one.masked_mean, other.masked_mean)
    return f"{target.name}: the Dice of {arm} is {own} that of {base}; masked, {masked} it"


def _share_of(portion: float, whole: float) -> str:
    """Format a ratio for a sentence."""
    return f"{portion / whole:.0%} of" if whole else "not comparable with"


def arms_table(arms: Mapping[str, Evaluation]) -> Table:
    """Make a table with two rows per arm, and a column with mean ± SD of the Dice for each region and label.

    The first row of an arm, for example "100% R", is the Dice of the network's own output. The second row is the Dice
    with background outside the head. An arm that knew test patients is marked. Notes list other pixel sizes, and
    options in which the arms differ. Raises UserError if the arms were not evaluated on the same archive.
    """
    evaluations = list(arms.values())
    if len({e.data.sha256 for e in evaluations}) != 1:
        names = ", ".join(sorted({e.data.file for e in evaluations}))
        raise UserError(f"a table compares U-Nets on one test archive; these were evaluated on different ones: {names}")
    targets = targets_of(evaluations[0].model.info.schema)
    # One row per arm: its name, a cell per target, and in the last column the voxels that the mask removed.
    own = [(name + _remark(e), *(str(e.summary(t)) for t in targets), f"{e.removed:,}") for name, e in arms.items()]
    masked = [(f"{name}, masked", *(e.summary(t).masked for t in targets), "removed") for name, e in arms.items()]
    notes = [
        *about_data(evaluations[0]),
        *_empty_truths(evaluations[0]),
        *(f"{name}: {note}" for name, e in arms.items() for note in (*about_names(e), *about_pixels(e))),
        MASK,
        *_differences(arms),
        f"seed of each U-Net: {', '.join(f'{name} {e.model.info.training.seed}' for name, e in arms.items())}. "
        "One training of each arm is no measure of chance",
    ]
    return Table(("trained on", *(t.title for t in targets), OUTSIDE_HEAD), (*own, *masked), tuple(notes))


def _remark(evaluation: Evaluation) -> str:
    """Mark an arm that knew test patients. Empty for other arms."""
    known = len(evaluation.overlap)
    return f" (knew {known} of {count(len(evaluation.patients), 'test patient')})" if known else ""


def _empty_truths(evaluation: Evaluation) -> list[str]:
    """Note on regions and labels that are missing in the truth of some examinations.

    There the Dice is 1 if the U-Net finds nothing either, and else 0.
    """
    summaries = [(t.title, evaluation.summary(t).empty_truth) for t in targets_of(evaluation.model.info.schema)]
    some = ", ".join(f"{title} {empty}" for title, empty in summaries if empty)
    text = (
        f"examinations (of {len(evaluation.examinations)}) with nothing in the truth: {some}; there the Dice is 1 or 0"
    )
    return [text] if some else []


def _differences(arms: Mapping[str, Evaluation]) -> list[str]:
    """Notes on options and draws in which the arms differ. They should differ only in their training slices."""
    infos = {name: e.model.info for name, e in arms.items()}
    facts = {
        f"--{name.replace('_', '-')}": {arm: getattr(info.training, name) for arm, info in infos.items()}
        for name in ("steps", "batch", "lr", "width", "empty", "lesion_free")
    }
    # Slices without lesion that a training really drew, which may differ from the share that was asked for.
    free = {arm: info.drawn.lesion_free / (info.training.steps * info.training.batch) for arm, info in infos.items()}
    if max(free.values()) - min(free.values()) > 0.005:
        facts["share of slices without lesion"] = {arm: f"{share:.1%}" for arm, share in free.items()}
    # Only facts with more than one value among the arms.
    return [
        f"the arms differ in {what}: " + ", ".join(f"{arm} {value}" for arm, value in values.items())
        for what, values in facts.items()
        if len(set(values.values())) > 1
    ]
