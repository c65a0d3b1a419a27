"""Tables of Dice, of one evaluation or of several arms, and the picture of three patients."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dnnlib.errors import UserError
from dnnlib.files import atomic_path
from dnnlib.text import count, format_table
from segmentation.scores import Evaluation, Target, of_target, targets_of
from slices import render
from slices.leaks import describe_shared
from slices.schema import Schema


class Table(NamedTuple):
    """Cells as text, for the terminal or for a document."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        return format_table(self.header, self.rows)

    def markdown(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


class Choice(NamedTuple):
    """A patient that the picture shows, and the reason: "worst", "median" or "best"."""

    rank: str
    patient: str
    target: Target
    dice: float


def arms_table(arms: Mapping[str, Evaluation]) -> Table:
    """Rows: arms, for example "100% R"; columns: Dice of regions and labels, mean ± SD over the patients.

    An arm that knew test patients says so. Raises UserError if the arms were not evaluated on one and the same archive.
    """
    evaluations = list(arms.values())
    if len({e.data.sha256 for e in evaluations}) != 1:
        names = ", ".join(sorted({e.data.file for e in evaluations}))
        raise UserError(f"a table compares U-Nets on one test archive; these were evaluated on different ones: {names}")
    targets = targets_of(evaluations[0].model.info.schema)
    rows = ((name + _remark(e), *(str(of_target(e, t)) for t in targets)) for name, e in arms.items())
    return Table(("trained on", *(t.title for t in targets)), tuple(rows))


def _remark(evaluation: Evaluation) -> str:
    known = len(evaluation.overlap)
    return f" (knew {known} of {len(evaluation.patients)} test patients)" if known else ""


def evaluation_table(evaluation: Evaluation) -> Table:
    """Rows: regions and labels; columns: mean ± SD, worst and best patient, patients whose truth lacks the target."""
    rows = []
    for target in targets_of(evaluation.model.info.schema):
        summary = of_target(evaluation, target)
        dice = [of_target(p, target).dice for p in evaluation.patients]
        rows.append((target.title, str(summary), f"{min(dice):.3f}", f"{max(dice):.3f}", str(summary.empty_truth)))
    return Table(("Dice", "mean ± SD", "worst", "best", "empty truth"), tuple(rows))


def describe_data(evaluation: Evaluation) -> str:
    """How many patients and slices stand behind the numbers, and whether the U-Net knows them already."""
    counts = [p.slices for p in evaluation.patients]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    text = (
        f"{evaluation.data.file}: {count(len(counts), 'patient')}, {count(sum(counts), 'slice')} ({each} per patient)"
    )
    if evaluation.overlap:
        text += (
            f"\nnote: the U-Net was trained on {describe_shared(evaluation.overlap, evaluation.model.info.patients)}: "
            f"it knows {len(evaluation.overlap)} of these {len(counts)} patients, so its Dice says nothing about others"
        )
    return text


# --- the picture ------------------------------------------------------------------------------------------------------


def worst_median_best(evaluation: Evaluation) -> list[Choice]:
    """Three patients by the first region, or by the first label without regions; fewer where there are fewer."""
    target = targets_of(evaluation.model.info.schema)[0]
    ranked = sorted(evaluation.patients, key=lambda p: of_target(p, target).dice)
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    if len(ranked) == 1:
        places = {"only patient": 0}
    chosen: dict[int, Choice] = {}
    for rank, place in places.items():
        chosen.setdefault(place, Choice(rank, ranked[place].patient, target, of_target(ranked[place], target).dice))
    return list(chosen.values())


def draw_patients(path: str | os.PathLike, choices: Sequence[Choice], volumes: Mapping, schema: Schema) -> None:
    """Write a PNG; rows: patients, columns: last contrast, truth and prediction over it, at the slice with most lesion.

    volumes: patient -> PatientVolume.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    tile, title, legend = 3.0, 0.45, 0.35 + 0.2 * math.ceil(len(schema.classes) / 3)  # inches
    figure = Figure(figsize=(3 * tile, len(choices) * (tile + title) + legend), dpi=120, layout="constrained")
    axes = figure.subplots(len(choices), 3, squeeze=False)
    for row, choice in zip(axes, choices, strict=True):
        volume = volumes[choice.patient]
        s = slice_to_show(volume.truth, volume.prediction)
        pictures = _pictures(volume.background[s], volume.truth[s], volume.prediction[s], schema)
        titles = (
            f"{choice.rank}: {choice.patient}\nslice {s + 1} of {len(volume.truth)}, {schema.contrasts[schema.shown]}",
            "truth",
            f"prediction\n{choice.target.name} Dice {choice.dice:.3f} (of all {len(volume.truth)} slices)",
        )
        for axis, picture, title in zip(row, pictures, titles, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    patches = [
        Patch(color=np.array(render.class_colour(i)) / 255, label=f"{c.name}: {c.title}" if c.title else c.name)
        for i, c in enumerate(schema.classes, start=1)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(3, len(patches)), fontsize=9, frameon=False)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def slice_to_show(truth: np.ndarray, prediction: np.ndarray) -> int:
    """The slice of [S, H, W] with the largest lesion in the truth; else in the prediction; else the middle one."""
    for indices in (truth, prediction):
        areas = (indices > 0).sum(axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return len(truth) // 2


def _pictures(background: np.ndarray, truth: np.ndarray, prediction: np.ndarray, schema: Schema) -> list[np.ndarray]:
    """The plain picture and two overlays, enlarged before drawing so that outlines stay thin."""
    factor = max(1, math.ceil(256 / background.shape[0]))
    grey, truth, prediction = (np.kron(a, np.ones((factor, factor), np.uint8)) for a in (background, truth, prediction))
    return [grey, render.overlay(grey, truth, schema), render.overlay(grey, prediction, schema)]
