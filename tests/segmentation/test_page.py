"""report.html and report.md: sections in order, names escaped, small enough; what the viewer leaves out is told."""

import base64
import gzip
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from helpers.commands import ROOT
from helpers.studies import make_study
from rings import RING
from segmentation.page import page
from segmentation.page.content import forest_of
from segmentation.page.page import make_report
from segmentation.page.samples import make_samples
from segmentation.page.viewer import Answer, make_viewer
from segmentation.page.words import TITLES, citation
from slices.archive.reader import ArchiveReader
from slices.render import FILL, class_color
from slices.schema import LesionClass, Schema

SCRIPT = "<script>alert(1)"  # a patient's name
ONE = Schema(("t1",), (LesionClass("MS", "", 1),))


@pytest.fixture
def html(reported):
    return reported["report.html"].decode()


def short(study):
    """The study without diagnostics, for which fewer figures are drawn."""
    return replace(
        study, convergence=(), agreement=(), content={}, unets={n: u for n, u in study.unets.items() if n[1] == 1}
    )


class Ids(HTMLParser):
    """All ids of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name == "id"]


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_all_sections_stand_in_order(html, reported):
    assert re.findall(r'<section id="(\w+)"', html) == list(TITLES)
    titles = re.findall(r"^## (.*)$", reported["report.md"].decode(), re.MULTILINE)
    assert titles == list(TITLES.values())


def test_every_id_is_there_once(html):
    ids = Ids(html).found
    assert len(ids) == len(set(ids)) > 30
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_no_address_leads_out_of_the_page(html):
    addresses = re.findall(r'(?:\bsrc|\bhref|\baction)="([^"]*)"', html)
    assert addresses and all(re.match(r"data:|#", address) for address in addresses)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_names_are_escaped(html, reported):
    assert html.count("<script") == 2, "the viewer's data and its program"
    assert "&lt;script&gt;alert(1)" in html and "&lt;b&gt;fake&lt;/b&gt;" in html
    assert SCRIPT not in reported["report.md"].decode()


def test_figures_are_files_and_named_in_markdown(reported):
    figures = {name for name in reported if name.startswith("figures/")}
    assert {name.rpartition(".")[2] for name in figures} == {"png", "svg"} and len(figures) > 10
    assert {"figures/table1-loss.svg", "figures/table1-validation.svg"} <= figures
    linked = set(re.findall(r"\]\((figures/[^)]*)\)", reported["report.md"].decode()))
    assert linked == {name for name in figures if name.endswith("png")}
    for name in figures:
        if name.endswith("png"):
            assert Image.open(io.BytesIO(reported[name])).width == 800
        else:
            assert reported[name].startswith(b"<?xml")


def test_the_same_numbers_make_the_same_bytes(study):
    one, other = (forest_of(study).panels[0] for _ in range(2))
    assert one == other


def test_two_experiments_share_a_page(study, tmp_path):
    second = make_study(tmp_path, ONE, ["a", "b", "c"], table="table2", replicates=1)
    html = make_report([short(study), short(second)], {})["report.html"].decode()
    ids = Ids(html).found
    assert len(ids) == len(set(ids)) and html.count('class="viewer') == 2, "two test archives"
    assert "was not run" not in html
    # One replicate is no measure of chance: nothing that depends on it is printed.
    assert "no intervals and no p-values" in html and html.count("not tested</span>") == 3


def test_tables_that_were_not_run_are_named(html):
    assert "Table 2 was not run." in html and "Table 1 was not run." not in html


def test_large_files_are_packed(monkeypatch):
    plain = page._download("results.csv", b"1,2\n")
    assert plain.name == "results.csv" and plain.uri == "data:text/csv;base64,MSwyCg=="
    monkeypatch.setattr(page, "_PLAIN", 3)
    packed = page._download("results.csv", b"1,2\n")
    assert packed.name == "results.csv.gz"
    assert gzip.decompress(base64.b64decode(packed.uri.partition(",")[2])) == b"1,2\n"


def test_a_page_that_is_too_large_is_refused(study, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 50_000)
    with pytest.raises(page.UserError, match="more than 50,000"):
        make_report([short(study)], {})


def test_files_that_leave_no_room_lie_beside_the_page(study, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 1_000_000)
    html = make_report([short(study)], {"results.csv": bytes(400_000)})["report.html"].decode()
    assert "download=" not in html and "too large for this page" in html and 'class="viewer' in html


def test_the_page_names_the_paper_and_the_software(html):
    cff = (ROOT / "CITATION.cff").read_text()
    paper, software = citation()
    title = re.search(r"preferred-citation:.*?title: >-\n(.*?)\n  authors", cff, re.DOTALL)[1]
    assert " ".join(title.split()) in paper and all(
        f"{name}" in paper for name in re.findall(r"family-names: (\w+)", cff)
    )
    assert re.search(r"notes: (.*)", cff)[1] in paper and re.search(r"\ntitle: (.*)", cff)[1] in software


# --- the viewer -------------------------------------------------------------------------------------------------------


def viewer_of(study, room):
    answers = [Answer(arm.title, study.unets[arm.name, 1].model, {"v1": 0.5}) for arm in study.arms]
    return make_viewer(ArchiveReader(study.test.path), answers, "whole", room)


def test_pictures_are_those_of_the_archive(study):
    viewer, reader = viewer_of(study, 10**7), ArchiveReader(study.test.path)
    assert [patient.name for patient in viewer.patients] == [SCRIPT, "b", "c", "d"]
    assert viewer.patients[1].dice == ("0.500",) * 3 and viewer.patients[0].dice == ("",) * 3
    shown = [one for patient in viewer.patients for one in patient.slices]
    assert len(shown) == len(reader) and shown[0].place == "slice 4 of 12"
    for i, one in enumerate(shown):
        contrasts, truth = RING.split(reader.read(i))
        for uri, contrast in zip(one.contrasts, contrasts, strict=True):
            assert (np.asarray(decoded(uri).convert("L")) == contrast).all()
        rgba = np.asarray(decoded(one.labels[0]).convert("RGBA"))
        assert (rgba[truth == 0, 3] == 0).all()
        for index in (1, 2):
            assert (rgba[truth == index, :3] == class_color(index)).all()
            assert set(rgba[truth == index, 3]) <= {round(255 * FILL), 255}
        assert len(one.labels) == 1 + len(study.arms)


def test_slices_go_before_patients_and_the_page_says_so(study):
    sizes = []
    for room in (10**7, 60_000, 20_000, 9_000):
        viewer = viewer_of(study, room)
        sizes.append((len(viewer.patients), max(len(patient.slices) for patient in viewer.patients)))
        one = [s for patient in viewer.patients for s in patient.slices]
        assert sum(len(uri) for s in one for uri in (*s.contrasts, *s.labels)) <= room
    assert sizes[0] == (4, 6) and sizes == sorted(sizes, reverse=True) and sizes[1][0] == 4 > sizes[-1][0]
    assert "Up to 1 of up to 6 slices with lesion of each patient" in viewer.notes[0]
    assert any(f"The first {sizes[-1][0]} of 4 test patients" in note for note in viewer.notes)
    assert "Answers and Dice are of the first replicate alone; the tables are of all." in viewer.notes
    assert "with loss" in viewer.notes[-1] and "without loss" in viewer_of(study, 10**7).notes[-1]
    assert viewer_of(study, 100) is None


def test_slices_of_a_patient_without_lesion_are_shown_and_named(study):
    viewer = viewer_of(study, 10**7)
    assert len(viewer.patients[-1].slices) == 6
    assert "1 patient without any lesion: slices of the whole volume." in viewer.notes


def test_what_the_script_gets(html):
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    data = json.loads(text)
    assert data["contrasts"] == list(RING.contrasts) and data["patients"][0]["name"] == SCRIPT


def test_samples_are_the_first_fakes(study):
    real, fake = ArchiveReader(study.real.path), ArchiveReader(study.fakes[0].path)
    samples = make_samples("", real, fake, 10**7)
    assert [strip.alt for strip in samples.columns[0].strips] == [f"fake slice, seed {n}" for n in range(12)]
    assert samples.columns[1].strips[-1].alt == "real slice, number 30 of the archive"
    pixels = np.asarray(decoded(samples.columns[0].strips[3].uri))
    contrasts, _ = RING.split(fake.read(3))
    assert pixels.shape == (32, 96, 3) and (pixels[:, :32, 0] == contrasts[0]).all()
    few = make_samples("", real, fake, 20_000)
    assert 0 < len(few.columns[0].strips) == len(few.columns[1].strips) < 12
    assert f"the first {len(few.columns[0].strips)} fakes" in few.caption
    assert few.columns[1].strips[-1].alt == "real slice, number 30 of the archive"


def test_an_experiment_without_fakes_or_places(study):
    """R against R has no fakes, and archives of single slices know no distances."""
    rows = tuple(replace(row, hd95_mm=None) for row in study.rows)
    html = make_report([replace(short(study), fakes=(), rows=rows, gans=0)], {})["report.html"].decode()
    assert "No arm uses fakes." in html and "so there are no distances" in html
