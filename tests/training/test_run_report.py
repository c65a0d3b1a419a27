"""The page about runs: its numbers are those of the folders, whole, killed, running or damaged; names are escaped."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.runs import held_run_folder
from helpers.commands import ROOT, call, refused
from helpers.run_folders import draw_ticks, tick, write_run
from helpers.trainings import tiny_training
from training.config import AugmentConfig, Transferred
from training.report import glance, quantities, report_files, sheets
from training.report.__main__ import main
from training.report.figures import MOST_RUNS, draw, drawer, sections_of
from training.report.page import make_page, page_of
from training.report.quantities import LAST, charts, line_of, targets_of
from training.report.report_files import destination, name_runs, write_report
from training.report.run_folder import FACTS, read_run_folder
from training.report.tables import facts_of, show_number

TICKS = [0.008, *range(4, 41, 4)]
SHEETS = (0, 8, 16, 40)
ADA, FIXED = AugmentConfig(("scale",), 0, target=0.5), AugmentConfig(("scale",), 0.3, target=None)
HOSTILE = "<script>alert(1) $x$ & ä"

# Runs the command in a process in which torch can't be imported.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.argv = ["report", *sys.argv[1:]]
from training.report.__main__ import main
main()
"""


def run_without_torch(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lines():
    """Ticks of a run that was continued at 12 kimg, and had three bad steps at 20."""
    drawn = draw_ticks(TICKS, Progress_augment=lambda kimg: kimg / 100, Progress_continued_kimg=lambda k: 12 * (k > 12))
    drawn[5]["Health/bad_steps/Dr1"] = {"num": 6, "mean": 0.5, "std": 0.5}
    return drawn


@pytest.fixture(scope="module")
def runs(lines, tmp_path_factory):
    """A finished run, and a killed one without augmentation."""
    folder = tmp_path_factory.mktemp("runs")
    measures = {"fid": [(8, 30.5), (16, None), (24, 10.25), (40, 12.0)]}
    whole = write_run(folder / HOSTILE, lines, sheets=SHEETS, measures=measures)
    killed = write_run(folder / "killed", draw_ticks(TICKS[:7], seed=1), seed=1, sheets=SHEETS[:2])
    with open(killed / "stats.jsonl", "a") as file:
        file.write(json.dumps(tick(28, {"Loss/G/loss": (1, 1e9)}))[:-30])
    return [whole, killed]


@pytest.fixture(scope="module")
def html(runs):
    """The page about the first run, made without torch."""
    output = run_without_torch(runs[0])
    assert output.splitlines() == [f"written: {runs[0] / name}" for name in ("report.html", "report.png")]
    return (runs[0] / "report.html").read_text()


@pytest.fixture(scope="module")
def both(runs):
    return page_of([read_run_folder(run) for run in runs])


class Parsed(HTMLParser):
    """Cells of the tables by their captions, and all ids and tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.tags, self._row = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._row = self.tables[-1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._row = None

    def handle_data(self, data):
        if self._row is not None:
            self._row[-1] += data


def table_of(html, first_header):
    (found,) = (table for table in Parsed(html).tables if table[0][0] == first_header)
    return {row[0]: row[1:] for row in found[1:]}


def test_every_number_of_the_table_is_that_of_the_stats(html, lines):
    rows = table_of(html, "quantity")
    assert "Share of the labels" not in rows, "no line has it"
    for chart in charts():
        for quantity in chart.quantities:
            if quantity.title not in rows or quantity.total:
                continue
            known = [line for line in lines if quantity.statistic in line][1 if quantity.from_second else 0 :]
            values = [line[quantity.statistic] for line in known]
            kimg = [line["Progress/kimg"]["mean"] for line in known]
            means = [value["mean"] for value in values]
            weights = [value["num"] for value in values[-LAST:]]
            mean = sum(w * m for w, m in zip(weights, means[-LAST:], strict=True)) / sum(weights)
            least, most = (means.index(choose(means)) for choose in (min, max))
            numbers = (means[-1], mean, means[least], kimg[least], means[most], kimg[most])
            assert rows[quantity.title] == [f"{n:.4g}".replace("-", "−") for n in numbers], quantity
    assert len(rows) == 8 and rows["Bad steps, in the whole run"][1] == "3"


def test_measures_have_their_last_smallest_and_largest_value(html):
    rows = table_of(html, "measure")
    assert rows["fid"][1:] == ["12", "40", "10.25", "24", "30.5", "8"], "a value that is not finite is none"


def test_the_page_asks_for_nothing(html):
    addresses = re.findall(r'(?:\bsrc|\bhref|\baction)="([^"]*)"', html)
    assert addresses and all(re.match(r"data:|#", address) for address in addresses)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert """content="default-src 'none'; img-src data:;""" in html


def test_names_are_escaped(html):
    assert html.count("<script") == 3, "the data of sheets and charts, and the page's program"
    assert "&lt;script&gt;alert(1) $x$ &amp; ä" in html


def test_ids_are_there_once_and_links_lead_to_them(html):
    ids = Parsed(html).ids
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_the_picture_is_a_png_that_a_later_report_may_replace(html, runs, monkeypatch):
    picture = Image.open(runs[0] / "report.png")
    assert picture.width == 1430 and picture.height > 1000
    for name in ("make_page", "make_picture"):
        monkeypatch.setattr(report_files, name, lambda runs: runs[0].name.encode())
    made = write_report([runs[0]], None)
    assert made == (runs[0] / "report.html", runs[0] / "report.png")
    assert all(path.read_text() == HOSTILE for path in made)


def test_what_a_run_writes_is_what_the_page_reads(tmp_path, archive):
    """Names of statistics, sheets and facts of the log: from a real training."""
    tiny_training(tmp_path, archive, pl_weight=2.0)
    run = read_run_folder(tmp_path / "run")
    shown = {plot.chart.key for section in sections_of([run]) for plot in section.plots}
    not_here = {"augment", "gpu-memory", "bad-steps"}
    assert shown >= {chart.key for chart in charts()} - not_here
    assert run.facts.keys() == {*FACTS} - {"By hand"}, "that line comes from train.py"
    assert run.kimg == pytest.approx(0.016) and [sheet.kimg for sheet in run.sheets] == [0, 0]
    assert run.continued == () and "PyTorch" in run.facts["Software"]


# --- how a run stands -------------------------------------------------------------------------------------------------


def test_status(runs, tmp_path):
    whole, killed = map(read_run_folder, runs)
    assert (glance.status_word(whole), glance.status_words(whole)) == ("finished", "after 40 kimg")
    assert (glance.status_word(killed), glance.status_words(killed)) == ("stopped", "at 24 of 40 kimg")
    with held_run_folder(runs[1]):
        running = read_run_folder(runs[1])
        assert glance.status_word(running) == "running" and glance.status_words(running) == "at 24 of 40 kimg"
        silent = list(glance.remarks_of(running, now=1.8e9 + 3600))
        assert silent == ["No tick for 1h 00m 00s; one takes about 35s."]
        assert not list(glance.remarks_of(running, now=1.8e9 + 100))
    assert not list(glance.remarks_of(read_run_folder(runs[1]), now=2e9)), "a stopped run is silent"
    new = read_run_folder(write_run(tmp_path / "new", []))
    assert glance.status_words(new) == "before the first tick" and new.kimg == 0
    assert "before the first tick" in make_page([new]).decode()


def test_a_half_written_line_is_no_damage(runs):
    killed = read_run_folder(runs[1])
    assert len(killed.ticks) == 7 and not killed.remarks
    assert all(tick.values["Loss/G/loss"].mean < 3 for tick in killed.ticks)


def test_odd_statistics_are_left_out(tmp_path):
    lines = draw_ticks([0.008, 4, 8, 12])
    lines[1]["Loss/G/loss"]["mean"] = float("nan")
    lines[2]["Loss/G/loss"] = 7
    lines[3]["Loss/scores/real"] = {"num": 3, "mean": 10**400, "std": None}
    run = write_run(tmp_path / "a", lines)
    with open(run / "stats.jsonl", "ab") as file:
        file.write(b'[1, 2]\n\xff\xfe\n{"Loss/G/loss": 1}\n' + b"[" * 100_000 + b"\n\n")
        file.write(json.dumps(tick(16, {})).encode())  # whole, but without its end of line
    found = read_run_folder(run)
    assert [one.kimg for one in found.ticks] == [0.008, 4, 8, 12, 16]
    assert ["Loss/G/loss" in one.values for one in found.ticks] == [True, False, False, True, False]
    assert "Loss/scores/real" not in found.ticks[3].values and "Loss/signs/real" in found.ticks[3].values
    assert found.remarks == ("stats.jsonl: left out 4 lines that can't be read.",)
    (run / "training_options.json").write_text("{")
    (run / "log.txt").unlink()
    found = read_run_folder(run)
    assert "training_options.json can't be read" in found.remarks[0]
    assert glance.status_words(found) == "at 16 kimg" and glance.card_of(found, 0).remarks == found.remarks


def test_names_that_are_not_utf8(odd_folder):
    run = write_run(odd_folder / "a", [], sheets=[0])
    options = json.loads((run / "training_options.json").read_text())
    options["config"]["data"] = {"path": "\ud800.zip", "\udcff": [1, None]}
    (run / "training_options.json").write_text(json.dumps(options))
    (run / "fakes000008.png").write_bytes(b"")
    page = make_page([read_run_folder(run), read_run_folder(run, "x\0y\udcff")]).decode()
    assert "\\ud800.zip" in page and "<td>1, none</td>" in page and "M\\xfcller" in page


def test_lines_that_were_written_twice_count_once(tmp_path):
    lines = draw_ticks([4, 8, 12]) + draw_ticks([8, 12, 16], seed=5)
    found = read_run_folder(write_run(tmp_path / "a", lines))
    assert [one.kimg for one in found.ticks] == [4, 8, 12, 16]
    assert found.ticks[1].values["Loss/G/loss"].mean == lines[3]["Loss/G/loss"]["mean"]


@pytest.mark.parametrize(
    ("means", "augment", "words"),
    [
        ({"Loss_signs/real": 0.9}, None, "Signs of reals are 0.90 over the last 5 ticks, above 0.6"),
        ({"Loss_signs/real": 0.9}, None, "--aug=ada works against it"),
        ({"Loss_signs/real": 0.9, "Progress_augment": 0.3}, ADA, "above 0.5: the discriminator begins"),
        ({"Loss_signs/real": 0.9, "Progress_augment": 0.3}, FIXED, "a larger --p works against it"),
        ({"Progress_augment": 0.85}, ADA, "p is 0.85: from 0.8 on"),
        ({"Loss_D/label_share": 0.004}, None, "The share of the labels is 0.004"),
        ({"Health_bad_steps/Gmain": 1}, None, "5 bad steps in the last 5 ticks"),
    ],
)
def test_what_stands_out(tmp_path, means, augment, words):
    lines = draw_ticks(TICKS, **{name: (lambda _, mean=mean: mean) for name, mean in means.items()})
    for line in lines:
        for name in line.keys() & {"Health/bad_steps/Gmain"}:
            line[name]["num"] = 1
    remarks = list(glance.remarks_of(read_run_folder(write_run(tmp_path / "a", lines, augment=augment)), 0))
    assert len(remarks) == 1 and words in remarks[0]


def test_the_glance_tells_p_as_it_is_now_and_the_speed_without_the_first_tick(tmp_path):
    """As the status line does. A finished run has no time left, though its statistics have seven digits only."""
    now = draw_ticks(TICKS, Progress_augment=lambda kimg: kimg / 100)
    now[0]["Timing/sec_per_kimg"]["mean"] = 1e6
    facts = dict(glance.card_of(read_run_folder(write_run(tmp_path / "a", now[:3], augment=ADA)), 0).facts)
    assert facts["p"] == f"{TICKS[2] / 100:.2f}" and "left" in facts
    assert facts["speed"] == f"{sum(line['Timing/sec_per_kimg']['mean'] for line in now[1:3]) / 2:.3g} s/kimg"
    now[-1]["Progress/kimg"]["mean"] *= 1 - 1e-7
    assert "left" not in dict(glance.card_of(read_run_folder(write_run(tmp_path / "b", now)), 0).facts)


def test_signs_at_the_start_are_no_news(tmp_path):
    high = {"Loss_signs/real": lambda kimg: 0.97}
    early, later = (write_run(tmp_path / f"{n}", draw_ticks(TICKS[:n], **high)) for n in (LAST, LAST + 1))
    assert not list(glance.remarks_of(read_run_folder(early), 0)) and list(glance.remarks_of(read_run_folder(later), 0))


# --- charts -----------------------------------------------------------------------------------------------------------


def test_runs_share_charts_with_a_color_each(both):
    alts = {chart.panel.name: chart.panel.alt for section in both.sections for chart in section.charts}
    assert f"{HOSTILE}, real: from" in alts["chart-scores"] and "killed, fake: from" in alts["chart-scores"]
    assert "at 40; killed" in alts["chart-loss-g"] and alts["chart-loss-g"].endswith("at 24"), "runs of two lengths"
    assert {round(chart.readout.end, 6) for s in both.sections for chart in s.charts} == {40.4}, "one axis for all"
    assert "killed" not in alts["chart-augment"] and "killed" not in alts["chart-measure-1-fid"]
    assert [card.color for card in both.cards] == ["#4477aa", "#ee6677"]
    assert both.title == f"{HOSTILE} · killed"


def test_values_of_several_runs_stand_beside_each_other(both, runs):
    header, rows = both.values.table.header, {row[0]: row[1:] for row in both.values.table.rows}
    assert header == (f"mean of the last {LAST} ticks", HOSTILE, "killed")
    assert rows["Strength of augmentation, p"] == ("0.32", "–")
    expected = [show_number(glance.mean_of(read_run_folder(run), "Loss/G/loss")) for run in runs]
    assert rows["Loss of the generator"] == tuple(expected)
    assert both.differing.table.rows == (("seed", "0", "1"),)


def axes_of(plot):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    drawer(plot)(axis)
    return axis


def test_a_flat_curve_is_not_drawn_on_the_edge(tmp_path):
    flat = read_run_folder(write_run(tmp_path / "a", draw_ticks(TICKS, Resources_cpu_mem_gb=lambda kimg: 0.8)))
    plots = {plot.chart.title: plot for section in sections_of([flat]) for plot in section.plots}
    low, high = axes_of(plots["Memory of the process"]).get_ylim()
    assert low == 0 and 0.83 <= high < 0.9


def test_a_mark_stands_where_the_run_was_continued(runs, tmp_path):
    whole = read_run_folder(runs[0])
    assert whole.continued == (12,)
    plots = {plot.chart.key: plot for section in sections_of([whole]) for plot in section.plots}
    vertical = [list(line.get_xdata()) for line in axes_of(plots["loss-g"]).lines if list(line.get_ydata()) == [0, 1]]
    assert vertical == [[12, 12]]
    assert read_run_folder(runs[1]).continued == (), "runs of earlier versions don't tell"
    twice = draw_ticks([4, 8, 12, 16], Progress_continued_kimg=lambda kimg: {4: 0, 8: 5.5, 12: 5.5, 16: 15}[kimg])
    assert read_run_folder(write_run(tmp_path / "twice", twice)).continued == (5.5, 15)


@pytest.mark.parametrize(
    ("value", "text"), [(11800, "11800"), (-0.123456, "−0.1235"), (12.0, "12"), (1e-7, "1e−07"), (None, "–")]
)
def test_numbers_are_written_out(value, text):
    assert show_number(value) == text


def test_bad_steps_are_a_chart_only_if_there_are_any(runs):
    keys = [{p.chart.key for s in sections_of([read_run_folder(run)]) for p in s.plots} for run in runs]
    assert "bad-steps" in keys[0] and "bad-steps" not in keys[1]


def test_a_long_run_has_few_points_with_all_it_spans(tmp_path):
    lines = draw_ticks([4 * n for n in range(1, 1051)], Loss_r1_penalty=lambda kimg: 50 if kimg == 2000 else 1)
    run = read_run_folder(write_run(tmp_path / "a", lines))
    line = line_of(run, quantities.Quantity("", "", "Loss/r1_penalty"))
    assert len(line.kimg) <= 150 and max(line.high) == 50 and min(line.low) == 1
    assert sum(line.mean) / len(line.mean) == pytest.approx((1049 + 50) / 1050)
    (plot,) = (p for section in sections_of([run]) for p in section.plots if p.chart.key == "r1")
    assert len(draw(plot)[0].svg) < 60_000


def test_more_runs_than_colors_have_markers(tmp_path, runs):
    run = read_run_folder(runs[1])
    (plot,) = (p for s in sections_of([run] * MOST_RUNS) for p in s.plots if p.chart.key == "loss-g")
    looks = {(one.color, one.marker) for one in plot.drawn}
    assert len(looks) == len(plot.drawn) == MOST_RUNS == 35


# --- sheets -----------------------------------------------------------------------------------------------------------


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_slider_has_the_newest_sheet_of_each_run(both):
    fakes = both.fakes
    assert fakes.steps == ("0 kimg", "8 kimg", "16 kimg", "40 kimg") and not fakes.left_out
    assert fakes.runs[1].told == ("0 kimg", "8 kimg", "8 kimg", "8 kimg")
    uris = fakes.runs[1].uris
    assert uris[1] == uris[2] == uris[3] != uris[0]
    assert [row.label for row in fakes.newest] == [HOSTILE, "killed"]
    assert [row.label for row in fakes.strips[0].rows] == ["0", "8", "16", "40", "real"]
    assert both.reals[0].runs == (HOSTILE, "killed"), "the same data are shown once"


def test_a_strip_is_the_first_row_of_its_sheet(runs):
    run = read_run_folder(runs[0])
    row, sheet = sheets.row_of(run, run.sheets[1].path), Image.open(run.sheets[1].path)
    assert row.size == (sheet.width - 20, 96)
    assert row.tobytes() == sheet.crop((10, 31, sheet.width - 10, 127)).tobytes()
    assert sheet.getpixel((100, 129)) == sheet.getpixel((0, 0)), "below it lies the gap"


def test_augmented_slices_are_shared_by_runs_that_augment_alike(tmp_path):
    pipes = [ADA, FIXED, AugmentConfig(("hue",), 0, target=0.5)]
    folders = [write_run(tmp_path / f"run{n}", [], augment=pipe) for n, pipe in enumerate(pipes)]
    for folder in folders:
        Image.new("RGB", (40, 30)).save(folder / "augmented.png")
    page = page_of([read_run_folder(folder) for folder in folders])
    assert [one.runs for one in page.augmented] == [("run0", "run1"), ("run2",)] and not page.reals


def test_every_target_is_drawn(tmp_path):
    augmentations = [None, FIXED, ADA, AugmentConfig(("scale",), 0, target=0.7)]
    runs = [read_run_folder(write_run(tmp_path / f"run{n}", [], augment=one)) for n, one in enumerate(augmentations)]
    assert targets_of(runs) == (0.5, 0.7) and targets_of(runs[:2]) == (0.6,)


def test_a_run_tells_with_what_it_began(tmp_path):
    run = write_run(tmp_path / "a", [], transfer=Transferred("b.safetensors", "12", 25000.0, 0.9))
    assert ("Began with", "b.safetensors, trained for 25000 kimg") in facts_of(read_run_folder(run))


def test_what_does_not_fit_is_left_out(tmp_path):
    run = write_run(tmp_path / "many", [])
    Image.effect_noise((90, 60), 60).save(run / "fakesinit.png")
    for kimg in range(1, 100):
        os.link(run / "fakesinit.png", run / f"fakes{kimg:06d}.png")
    many = read_run_folder(run)
    fakes = sheets.make_fakes([many], 10**7)
    assert len(fakes.steps) == 24 and fakes.left_out == 76 and fakes.steps[-1] == "99 kimg"
    assert not fakes.strips, "these are no sheets of train.py"
    room = sum(map(len, fakes.runs[0].uris)) // 4
    small = sheets.make_fakes([many], room)
    assert sum(map(len, small.runs[0].uris)) <= room and small.steps[0] == "0 kimg" and small.steps[-1] == "99 kimg"


def test_a_damaged_sheet_is_named(tmp_path):
    run = write_run(tmp_path / "a", [], sheets=SHEETS)
    (run / "fakes000040.png").write_bytes((run / "fakes000040.png").read_bytes()[:900])
    (run / "fakes000016.png").write_bytes(b"")
    html = make_page([read_run_folder(run)]).decode()
    assert all(f"<li>fakes0000{n}.png of a is no picture that can be read.</li>" in html for n in (16, 40))
    assert "This sheet can't be read." in html


# --- the command ------------------------------------------------------------------------------------------------------


def test_folders_that_hold_no_run_are_refused(tmp_path, runs):
    (tmp_path / "empty").mkdir()
    what = "a run folder of train.py holds training_options.json and stats.jsonl"
    for given, words in {
        tmp_path / "nothing": ("no such folder", what),
        tmp_path / "empty": ("holds no run", what),
        runs[0].parent: ("holds no run", "did you mean", runs[0]),
        runs[1] / "stats.jsonl": ("is a file", f"give {runs[1]}"),
    }.items():
        refused(call(given, command=main, expected=2), given, *words)
    refused(call(runs[1], runs[1] / ".." / "killed", command=main, expected=2), "is given twice")
    with pytest.raises(UserError, match="up to 35"):
        name_runs([write_run(tmp_path / f"run{n}", []) for n in range(36)])


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / place / "run", []) for place in "ab"]
    assert list(name_runs(folders).values()) == ["a/run", "b/run"]


def test_where_the_page_goes(tmp_path, runs):
    assert destination(runs[:1], None) == runs[0] / "report.html"
    assert destination(runs, None) == Path("report.html")
    assert destination(runs, tmp_path) == tmp_path / "report.html"
    assert destination(runs, tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    refused(call(runs[0], "--dest", tmp_path / "a.pdf", command=main, expected=2), "ends with .html")


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_file_of_somebody_else_stays(tmp_path, name):
    run = write_run(tmp_path / "a", draw_ticks(TICKS[:2]))
    (run / name).write_text("mine")
    before = sorted(os.listdir(run))
    refused(call(run, command=main, expected=2), run / name, "no report of this program", "--force")
    assert sorted(os.listdir(run)) == before and (run / name).read_text() == "mine"
