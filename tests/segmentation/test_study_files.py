"""Files of a finished experiment."""

import dataclasses
import json

from segmentation.results import read_rows
from segmentation.study_files import write_study


def test_files_appear_together_and_old_figures_go(study, tmp_path):
    write_study([study], tmp_path)
    first = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.csv", "results.json", "report.html", "report.md", "figures")
    }
    assert read_rows(tmp_path / "results.csv") == study.rows
    for name in ("table1-old-1-WT.png", "mine.txt", "notes-table1.png"):
        (tmp_path / "figures" / name).write_text("old")
    write_study([dataclasses.replace(study, convergence=())], tmp_path)
    second = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"mine.txt", "notes-table1.png"} <= second and "table1-old-1-WT.png" not in second
    assert second - {"mine.txt", "notes-table1.png"} < first, "figures of convergence are gone"


def test_numbers_in_json_hold_no_path_of_this_machine(study, tmp_path):
    write_study([study], tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    (one,) = content["experiments"]
    assert (content["format"], content["version"]) == ("experiment", 1)
    assert len(one["comparisons"]) == len(study.comparisons) and one["replicates"] == study.replicates
    archives = json.dumps(one["archives"])
    assert str(study.test.path.parent) not in archives and study.test.facts.sha256 in archives
