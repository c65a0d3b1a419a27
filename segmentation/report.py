"""Report of one evaluation: a table, notes on its numbers, and a picture of three examinations."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnnlib.files import atomic_path
from dnnlib.text import count, format_table, name_some
from segmentation.archive_facts import pixels_of
from segmentation.predict import Segmented
from segmentation.scores import Evaluation, ExaminationDice, Target, targets_of
from slices import render
from slices.leaks import describe_shared, warn_of_alike
from slices.schema import Schema

if TYPE_CHECKING:
    from matplotlib.patches import Patch


OUTSIDE_HEAD = "voxels outside the head"  # title of a column
MASK = (
    "masked: with background wherever every contrast is 0, which is outside the head; lesions that a network finds "
    "there count only without the mask"
)
PRESENT = (
    "if present: over those whose truth has the class or region; a miss predicts nothing there, and a false alarm "
    "something where it is not"
)
SPREAD = "mean ± SD: over patients"
DISTANCE = (
    "HD95: median [quartiles] of the 95 % Hausdorff distance by MONAI, the larger one of both directions, where the "
    "truth has the class or region; a miss counts with the diagonal of the stacked slices; BraTS since 2023 takes "
    "another percentile, so don't compare"
)


class Table(NamedTuple):
    """A table of text, with notes below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()  # sentences

    def text(self) -> str:
        """Format the table for the terminal."""
        return "\n".join([format_table(self.header, self.rows), *self.notes])

    def markdown(self) -> str:
        """Format the table for a document."""
        # The second line aligns the first column left and the others right.
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = ["| " + " | ".join(cells) + " |" for cells in lines]
        return "\n".join([*table, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])


def evaluation_table(evaluation: Evaluation) -> Table:
    """Make a table with a row per region and label.

    Columns: Dice, its mean ± SD over patients; the same over those who have the target; false alarms among
    examinations that lack it; HD95 and misses where it is there; masked Dice, and voxels that the mask removed.
    """
    rows = []
    for target in targets_of(evaluation.model.info.schema):
        summary = evaluation.summary(target)
        rows.append(
            (
                target.title,
                str(summary),
                summary.where_present,
                f"{summary.false_alarms} of {summary.empty_truth}",
                str(summary.hd95 or "-"),
                f"{summary.misses} of {summary.present}",
                summary.masked,
                f"{summary.removed:,}",
            )
        )
    header = ("Dice", "mean ± SD", "if present", "false alarms", "HD95 in mm", "misses", "masked", OUTSIDE_HEAD)
    return Table(header, tuple(rows), evaluation.notes)


def describe_data(evaluation: Evaluation) -> str:
    """Describe the test data: number of patients and slices, and patients that the U-Net was trained on."""
    counts = [e.slices for e in evaluation.examinations]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    patients = len(evaluation.patients)
    one = "patient" if len(counts) == patients else "examination"
    who = count(patients, "patient") if one == "patient" else _examinations(evaluation)
    text = f"{evaluation.data.file}: {who}, {count(sum(counts), 'slice')} ({each} per {one})"
    if evaluation.overlap:
        text += (
            f"\nnote: the U-Net was trained on {describe_shared(evaluation.overlap, evaluation.model.info.patients)}: "
            f"it knows {len(evaluation.overlap)} of {count(patients, 'patient')}, so its Dice says nothing about others"
        )
    return text


# --- notes ------------------------------------------------------------------------------------------------------------


def notes_on(evaluation: Evaluation) -> list[str]:
    """All notes on one evaluation, one sentence each."""
    seed = evaluation.model.info.training.seed
    return [
        *about_data(evaluation),
        SPREAD,
        *about_distances(evaluation),
        *about_names(evaluation),
        *about_pixels(evaluation),
        PRESENT,
        MASK,
        f"one training of the U-Net, with seed {seed}, is no measure of chance; it drew {evaluation.model.info.drawn}",
    ]


def about_names(evaluation: Evaluation) -> list[str]:
    """Warnings about names that training and test patients almost share: they may be the same patients."""
    return warn_of_alike(evaluation.model.info.known_patients, evaluation.patients)


def _examinations(evaluation: Evaluation) -> str:
    """Numbers of examinations and patients in words."""
    return f"{count(len(evaluation.examinations), 'examination')} of {count(len(evaluation.patients), 'patient')}"


def about_data(evaluation: Evaluation) -> list[str]:
    """Notes on the test data: how much there is, incomplete volumes, and remarks of the archive."""
    examinations = evaluation.examinations
    several = len(evaluation.patients) < len(examinations)
    whole = all(e.of is not None and not _is_partial(e) for e in examinations)
    notes = [
        f"test data: {_examinations(evaluation)}, {count(sum(e.slices for e in examinations), 'slice')}"
        + (", all that their volumes have" if whole else "")
        + ("; a patient counts once, with the mean of the examinations" if several else "")
    ]
    if partial := [e for e in examinations if _is_partial(e)]:
        known = [(e.slices, e.of) for e in examinations if e.of is not None]
        notes.append(
            f"Dice of {sum(n for n, _ in known)} of {count(sum(of for _, of in known), 'slice')}: the archive lacks "
            f"slices of {len(partial)} of {count(len(examinations), 'examination')}, so this is not the "
            "Dice of whole volumes"
        )
    if unknown := sum(e.of is None for e in examinations):
        notes.append(
            f"{unknown} of {len(examinations)} examinations are slices of no known volume: "
            "their Dice may not be that of whole volumes"
        )
    return notes + [f"{evaluation.data.file}: {remark}" for remark in evaluation.data.remarks]


def about_distances(evaluation: Evaluation) -> list[str]:
    """Notes on HD95: what it is, and the examinations that have none."""
    examinations = evaluation.examinations
    gaps = [e for e in examinations if e.missing]
    unknown = sum(e.missing is None for e in examinations)
    notes = [DISTANCE] if len(gaps) + unknown < len(examinations) else []
    if gaps:
        notes.append(
            f"no HD95 of {len(gaps)} of {count(len(examinations), 'examination')}: the archive lacks slices between "
            f"others, such as {count(gaps[0].missing or 0, 'slice')} of {name_some([gaps[0].volume or ''])}"
        )
    if unknown:
        notes.append(
            f"no HD95 of {unknown} of {count(len(examinations), 'examination')}: the places of their slices are unknown"
        )
    return notes


def _is_partial(examination: ExaminationDice) -> bool:
    """Return whether slices of an examination's volume are known to be missing."""
    return examination.of is not None and examination.slices < examination.of


def about_pixels(evaluation: Evaluation) -> list[str]:
    """Notes on pixel sizes: test pixels of another size than the training pixels, and unknown sizes."""
    data, archives = evaluation.data, evaluation.model.info.archives
    learned, tested = pixels_of(archives), pixels_of([data])
    notes = []
    if learned and tested and not tested.is_within(learned):
        notes.append(
            f"the U-Net learned from pixels of {learned} and was tested on pixels of {tested}: its Dice says nothing "
            "about pixels of the size that it knows"
        )
    if unknown := [a for a in (*archives, data) if a.unmeasured]:
        files = ", ".join(f"{count(a.unmeasured, 'slice')} of {name_some([a.file])}" for a in unknown)
        notes.append(f"pixel size unknown and not compared: {files}")
    return notes


# --- the picture ------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """An examination to show in the picture."""

    rank: str  # "worst", "median", "best" or "only patient"
    target: Target  # the examinations are ranked by its Dice
    examination: ExaminationDice

    @property
    def dice(self) -> float:
        return self.examination.result(self.target).dice


def worst_median_best(evaluation: Evaluation) -> list[Choice]:
    """Choose three examinations by the Dice of the first region, or of the first label if there are no regions.

    Returns fewer if there are fewer examinations.
    """
    target = targets_of(evaluation.model.info.schema)[0]
    ranked = sorted(evaluation.examinations, key=lambda e: e.result(target).dice)
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    if len(ranked) == 1:
        places = {"only patient": 0}
    chosen: dict[int, Choice] = {}  # by place, so that an examination with two ranks is shown once, with the first
    for rank, place in places.items():
        chosen.setdefault(place, Choice(rank, target, ranked[place]))
    return list(chosen.values())


def draw_examinations(
    path: str | os.PathLike, choices: Sequence[Choice], segmented: Sequence[Segmented], schema: Schema
) -> None:
    """Write a PNG with a row per examination: a slice of one contrast, and the truth and the prediction over it.

    The slice is the one with the largest lesion. segmented: the U-Net's output for each choice.
    """
    # Imported here, as matplotlib is slow to import. Agg draws without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tile, above, legend = 3.0, 0.45, 0.35 + 0.2 * math.ceil(len(schema.classes) / 3)  # inches
    figure = Figure(figsize=(3 * tile, len(choices) * (tile + above) + legend), dpi=120, layout="constrained")
    axes = figure.subplots(len(choices), 3, squeeze=False)
    for row, choice, one in zip(axes, choices, segmented, strict=True):
        s = slice_to_show(one.truth, one.prediction)
        pictures = _pictures(one.background[s], one.truth[s], one.prediction[s], schema)
        for axis, picture, title in zip(row, pictures, _titles(choice, one, s, schema), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    patches = _legend(schema)
    figure.legend(handles=patches, loc="outside lower center", ncols=min(3, len(patches)), fontsize=9, frameon=False)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _legend(schema: Schema) -> list[Patch]:
    """Make a colored patch with a name for each class."""
    from matplotlib.patches import Patch

    patches = []
    for i, c in enumerate(schema.classes, start=1):
        red, green, blue = (level / 255 for level in render.class_color(i))
        patches.append(Patch(color=(red, green, blue), label=f"{c.name}: {c.title}" if c.title else c.name))
    return patches


def _titles(choice: Choice, one: Segmented, s: int, schema: Schema) -> tuple[str, str, str]:
    """Titles of the three pictures of slice s of an examination."""
    examination = choice.examination
    return (
        f"{choice.rank}: {examination.volume or examination.patient}\n"
        f"{_place(one, s, examination)}, {schema.contrasts[schema.shown]}",
        "truth",
        f"prediction\n{choice.target.name} Dice {choice.dice:.3f} ({_extent(examination)})",
    )


def _place(one: Segmented, s: int, examination: ExaminationDice) -> str:
    """Number of the slice in its volume, or among the available slices if the volume is unknown."""
    place = one.places[s]
    if place is None or examination.of is None:
        return f"slice {s + 1} of {examination.slices}"
    return f"slice {place + 1} of {examination.of}"


def _extent(examination: ExaminationDice) -> str:
    """Number of slices that a Dice is computed from."""
    if examination.of is None:
        return f"of {count(examination.slices, 'slice')}"
    if _is_partial(examination):
        return f"of {examination.slices} of {count(examination.of, 'slice')}"
    return f"of all {count(examination.slices, 'slice')}"


def slice_to_show(truth: np.ndarray, prediction: np.ndarray) -> int:
    """Choose the slice of [S, H, W] with the largest lesion in the truth, else in the prediction, else the middle."""
    for indices in (truth, prediction):
        areas = (indices > 0).sum(axis=(1, 2))  # [S]; index 0 is background
        if areas.any():
            return int(areas.argmax())
    return len(truth) // 2


def _pictures(background: np.ndarray, truth: np.ndarray, prediction: np.ndarray, schema: Schema) -> list[np.ndarray]:
    """Make the plain picture and two overlays, enlarged before drawing so that outlines stay thin."""
    factor = max(1, math.ceil(256 / background.shape[0]))
    # The Kronecker product with ones repeats each pixel factor × factor times.
    gray, truth, prediction = (np.kron(a, np.ones((factor, factor), np.uint8)) for a in (background, truth, prediction))
    return [gray, render.overlay(gray, truth, schema), render.overlay(gray, prediction, schema)]
