"""Figures of a report: what they say in words, marks beyond an axis, colors for the color-blind, SVG for a page."""

import itertools
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from dnnlib.pages.panels import COLORS, INK, MARKERS, Panel, slug
from segmentation.page.figures import Difference, Distances, Line, bars, distances, forest, lines

LONG = "3300 % F + 300 % A + 100 % R, augmented, of a table with more words than a telephone is wide"


def words(panel: Panel) -> str:
    """All words of a picture."""
    return " ".join(element.text or "" for element in xml.fromstring(panel.svg).iter() if element.tag.endswith("}text"))


def test_a_forest_plot_tells_its_numbers():
    rows = [
        Difference("100 % F", 1, -0.0234, (-0.0411, -0.0049), (-0.05, -0.02, 0.0), margin=0.03),
        Difference("100 % F + 100 % R", 2, 0.01, None, (0.01, 0.01)),
    ]
    panel = forest("f", "WT", rows)
    for text in (words(panel), panel.alt):
        assert "−0.023 [−0.041 to −0.005]" in text and "+0.010, no interval" in text and "100 % F + 100 % R" in text


def test_patients_beyond_the_axis_are_counted():
    patients = (0.01,) * 20
    near = forest("f", "WT", [Difference("F", 1, 0.01, (0.0, 0.02), patients)])
    far = forest("f", "WT", [Difference("F", 1, 0.01, (0.0, 0.02), (*patients, -0.9))])
    assert "beyond" not in words(near) and "1 of the patients lie beyond the axis" in words(far)


def test_misses_and_false_alarms_are_counted_not_drawn():
    panel = distances("d", "WT", [Distances("R", 0, (0.0, 1.5, 30.0), 2, 1), Distances("F", 1, (), 3, 0)])
    assert "2 missed, 1 false" in words(panel) and "3 missed" in words(panel) and "0 distances" in panel.alt
    assert (
        panel.svg.count(b"<use")
        == distances("d", "WT", [Distances("R", 0, (0.0, 1.5, 30.0), 0, 0)] * 2).svg.count(b"<use") - 3
    ), "a dot for each distance"


def test_very_many_dots_are_pixels():
    panel = distances("d", "WT", [Distances("R", 0, tuple(n % 50 for n in range(9000)), 0, 0)])
    assert len(panel.svg) < 100_000 and b"<image" in panel.svg


@pytest.mark.parametrize("series", [1, 9])
def test_bars_and_lines_of_one_and_of_many(series):
    names = [f"{LONG} {n}" for n in range(series)]
    drawn = bars("b", "Areas", "%", ["NCR", LONG], {name: [1.5, None] for name in names})
    assert "NCR 1.5" in drawn.alt and f"{LONG[:20]}" in drawn.alt
    curves = lines(
        "l", "Loss", "step", "loss", [Line(name, n, (1.0, 2.0), (0.5, 0.25)) for n, name in enumerate(names)], {}
    )
    assert curves.alt.count("from 0.5 to 0.25") == series


def test_inside_a_page_ids_are_its_own_and_colors_the_readers():
    one, other = (forest(name, "<b>", [Difference("<i>", 1, 0.1, None, (0.1,))]) for name in ("one", "other"))
    ids = [set(re.findall(r'\bid="([^"]*)"', panel.inline)) for panel in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', one.inline))
    assert used <= ids[0] | {""}
    assert INK not in one.inline and "currentColor" in one.inline
    element = xml.fromstring(one.inline)
    assert element.get("role") == "img" and element.get("aria-label") == one.alt and "<b>" in one.alt
    assert element.get("width") is None and element.get("viewBox")


def test_names_of_files_are_plain():
    assert slug("../whole tumor, with <edema>") == "whole-tumor-with-edema" and slug("…") == "x"


def test_colors_are_apart_for_the_color_blind():
    """Distances in CIELAB between all pairs of colors, for each kind of color blindness (Machado et al. 2009)."""
    colors = np.array([list(bytes.fromhex(color[1:])) for color in COLORS]) / 255
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
    looks = {(COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)]) for n in range(35)}
    assert len(looks) == 35, "of 35 arms, no two look alike"
