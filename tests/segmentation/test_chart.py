"""Chart of a comparison: bars of all arms can be told apart, even by color-blind readers."""

import itertools

import numpy as np
import pytest
from PIL import Image

from helpers.evaluations import evaluation, examination
from segmentation.chart import chart, draw_chart
from slices.class_areas import ClassAreas
from slices.schema import BRATS, LesionClass, Region, Schema

ONE = Schema(("t1", "t2", "flair"), (LesionClass("MS", "", 1),))
PARTS = ("necrotic_core", "peritumoral_edema", "enhancing_rim")
LONG = Schema(
    ("t1",),
    tuple(LesionClass(name, "", value) for value, name in enumerate(PARTS, start=1)),
    (Region("whole tumor with its edema", PARTS), Region("tumor core without its edema", PARTS[::2])),
)
FAR = "of the fakes of a GAN with augmentation and all real slices of the training patients"


def areas(schema):
    return ClassAreas(4, 1, 100, dict.fromkeys(schema.class_names, 2), dict.fromkeys(schema.class_names, 3))


def drawn(names, schema):
    arm = evaluation(examination(0.5, schema), examination(0.7, schema, patient="q"), schema=schema)
    figure = chart(dict.fromkeys(names, arm), areas(schema), areas(schema))
    figure.canvas.draw()
    return figure


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


@pytest.mark.parametrize("schema", [BRATS, ONE, LONG], ids=["regions", "one class", "long names"])
@pytest.mark.parametrize(
    "names",
    [
        ["100 % R"],
        ["100 % R", "100 % F"],
        ["100 % R", "100 % F", "100 % F + 100 % R"],
        [f"{k}F+R" for k in range(7)],
        [f"{k}00 % {FAR}" for k in range(9)],
    ],
    ids=len,
)
def test_bars_and_words_are_apart(names, schema):
    figure = drawn(names, schema)
    left, right = figure.axes
    assert len(left.containers) == len(names) and len(right.containers) == 2
    for axis in (left, right):
        bars = sorted(boxes(itertools.chain(*axis.containers)), key=lambda box: box.x0)
        assert all(one.x1 < next.x0 for one, next in itertools.pairwise(bars))
        assert bars[0].x0 > axis.bbox.x0 and bars[-1].x1 < axis.bbox.x1
        titles = [label for label in axis.get_xticklabels() if label.get_rotation() == 0]
        assert all(one.x1 < next.x0 for one, next in itertools.pairwise(boxes(titles)))
    looks = {(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in left.containers}
    assert len(looks) == len(names)
    legend, below = left.get_legend().get_window_extent(), figure._supxlabel.get_window_extent()
    assert len(left.get_legend().get_texts()) == len(names)
    assert below.y1 < legend.y0 and legend.y1 < min(box.y0 for box in boxes(left.get_xticklabels()))
    for box in (legend, below, *boxes(left.get_xticklabels()), *boxes(right.get_xticklabels())):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert left.bbox.width > 400 and left.bbox.height > 250


def test_colors_are_apart_for_the_color_blind():
    """Distances in CIELAB between all pairs of colors, for each kind of color blindness (Machado et al. 2009)."""
    left, _ = drawn([f"arm {k}" for k in range(7)], ONE).axes
    shown = np.array([bars[0].get_facecolor() for bars in left.containers])
    colors = shown[:, :3] * shown[:, 3:] + 1 - shown[:, 3:]  # over white
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    kinds = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for kind, seen in kinds.items():
        xyz = (linear @ np.transpose(seen)).clip(0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y, 500 * (x - y), 200 * (y - z)], axis=1)
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)) > 10, kind


def test_it_is_written_as_png(tmp_path):
    arm = evaluation(examination(0, BRATS))
    draw_chart(tmp_path / "dice.png", {"R": arm}, areas(BRATS), areas(BRATS))
    with Image.open(tmp_path / "dice.png") as image:
        assert image.format == "PNG" and image.width == 1200
