"""dataset_tool.py as users call it: options, output, and one message for each bad input."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_tool import main
from helpers.commands import ROOT, content, convert_2018, refused
from helpers.drawn import draw_head, turned, write_nifti
from helpers.layouts import truncate, write_five_patients
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import Schema


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Five small patients; tests only read them."""
    return write_five_patients(tmp_path_factory.mktemp("data") / "release")


@pytest.fixture
def copy(release, tmp_path):
    """The same patients, to be damaged."""
    return shutil.copytree(release, tmp_path / "release")


def call(*arguments):
    """Run the tool in this process. Returns exit code and output."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.replace("\r", "\n")  # progress bars go back to the start of the line


def _put(path, value, dtype):
    volume = draw_head()["seg"].astype(dtype)
    volume[5, 5, 5] = value
    write_nifti(path, *turned(volume, "LPS"))


DAMAGE = {
    "missing": ("P1_t2.nii.gz", Path.unlink, "is missing; the case P1 consists of"),
    "shape": (
        "P1_t2.nii.gz",
        lambda p: write_nifti(p, np.ones((60, 60, 9), np.int16)),
        "60×60×9 voxels, but P1_t1.nii",
    ),
    "label": ("P1_seg.nii.gz", lambda p: _put(p, 3, np.uint8), "unknown label value 3; expected 0 and 1, 2, 4"),
    "fraction": ("P1_seg.nii.gz", lambda p: _put(p, 0.5, np.float32), "this one has 0.5"),
    "infinite": ("P1_flair.nii.gz", lambda p: _put(p, np.inf, np.float32), "infinite, or beyond float32, in 1 voxel"),
    "truncated": ("P1_t1ce.nii.gz", truncate, "damaged or incomplete"),
    "empty": ("P1_t1.nii.gz", lambda p: p.write_bytes(b""), "empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_files(copy, tmp_path, damage):
    name, spoil, words = DAMAGE[damage]
    spoil(copy / "HGG" / "P1" / name)
    refused(convert_2018(copy, tmp_path / "out", expected=2), copy / "HGG" / "P1" / name, words)
    refused(convert_2018(copy, tmp_path / "x.zip", expected=2), copy / "HGG" / "P1" / name, words)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "release" not in path.parts]
    assert all(path.parent.name.endswith(".converting") for path in left)  # the cases that could be read


def test_bad_files_in_workers_spoil_nothing_that_was_there(copy, release, tmp_path):
    convert_2018(release, tmp_path / "out")
    before = content(tmp_path / "out")
    truncate(copy / "LGG" / "P3" / "P3_t2.nii.gz")
    output = convert_2018(copy, tmp_path / "out", "--force", "--workers", 2, expected=2)
    refused(output, copy / "LGG" / "P3" / "P3_t2.nii.gz", "damaged or incomplete")
    assert content(tmp_path / "out") == before
    assert re.search(r"[1-4] of 5 cases are kept in .*the same command goes on", output), output


def test_sources_without_cases(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(
        convert_2018(tmp_path / "empty", tmp_path / "x.zip", expected=2),
        "no cases found of BraTS 2018; expected",
        "t1, t1ce, t2, flair, seg",
    )
    refused(convert_2018(tmp_path / "none", tmp_path / "x.zip", expected=2), tmp_path / "none", "no such folder")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--resolution", 100), "power of two"),
        (("--fov", 32.0), "choose --fov 64 or more, or --resolution 32 or less"),
        (("--min-tumor-pixels", 100_000), "choose --slices all"),
        (("--test-fraction", 1.5), "between 0 and 1"),
        (("--split-file", "x.json", "--split-seed", 1), "--split-seed draws a split"),
        (("--split-file", "nowhere.json"), "nowhere.json: no such file; expected a split"),
        (("--lesion-free", 1.0), "--lesion-free 1: expected a share between 0 and 1"),
        (("--lesion-free", 0.2, "--slices", "all"), "but --slices all takes others as well"),
    ],
)
def test_bad_options(release, tmp_path, options, words):
    refused(convert_2018(release, tmp_path / "out", *options, expected=2), words)
    assert not (tmp_path / "out").exists()


def test_options_of_a_split_need_a_folder(release, tmp_path):
    output = convert_2018(release, tmp_path / "x.zip", "--test-slices", "all", expected=2)
    refused(output, "--test-slices needs a folder as --dest", "x.zip is a single archive")


def test_destinations_that_cannot_be_written(release, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.zip").mkdir()
    for dest in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "file" / "x.zip"):
        refused(convert_2018(release, dest, expected=2), tmp_path / "file")
    refused(
        convert_2018(release, tmp_path / "folder.zip", "--force", expected=2), tmp_path / "folder.zip", "is a folder"
    )
    refused(convert_2018(release, Path("/proc/none/x.zip"), expected=2), "/proc/none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.zip"]


def test_ctrl_c(release, tmp_path):
    for n in range(400):
        case = tmp_path / "many" / f"C{n:03d}"
        case.mkdir(parents=True)
        for file in (release / "HGG" / "P0").iterdir():
            (case / file.name.replace("P0", case.name)).symlink_to(file)
    command = [
        sys.executable,
        "dataset_tool.py",
        "convert",
        "--source",
        tmp_path / "many",
        "--dest",
        tmp_path / "out",
        "--release",
        "2018",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    words = b""
    while not re.search(rb"[1-9]\d/400", words):
        words += (chunk := os.read(process.stderr.fileno(), 4096))
        assert chunk, words.decode()
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes
    words += b"".join(process.communicate(timeout=30))
    assert time.monotonic() - started < 10
    assert process.returncode == 1 and b"Aborted!" in words and b"Traceback" not in words, words.decode()
    assert not content(tmp_path / "out") and b"the same command goes on from there" in words
    kept = len(list((tmp_path / "out" / ".converting").glob("*.zip")))
    assert 10 <= kept < 400


@pytest.fixture(scope="module")
def archive(release, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "x.zip"
    convert_2018(release, path, "--class-by", "grade", "--slices", "brain")
    return path


def test_inspect(archive, tmp_path):
    code, output = call("inspect", archive, "--out", tmp_path / "panel.png")
    assert code == 0
    for words in (
        "50 slices of 64×64 pixels, 4 contrasts and 4 label maps; all are readable",
        "contrasts: t1, t1ce, t2, flair",
        "class NCR: necrosis / non-enhancing, value 1 in NIfTI files",
        "region WT: NCR + ED + ET",
        "class labels: HGG 30 slices, LGG 20 slices",
        "made by: dataset_tool.py convert, version ",
        "  slices: brain",
    ):
        assert words in output
    reader = ArchiveReader(archive)
    maps = np.stack([reader.read(i)[5:] for i in range(50)]) == 255  # [N, class, H, W]
    for name, areas in zip(("NCR", "ED", "ET"), maps.sum(axis=(2, 3)).T, strict=True):
        share = 100 * areas.sum() / (50 * 64 * 64)
        row = rf"x.zip  {name} +{(areas > 0).sum()} +{areas[areas > 0].mean():.0f} +{share:.3f} %\n"
        assert re.search(row, output), (row, output)
    assert re.search(r"x.zip +5 +50\n", output)
    assert Image.open(tmp_path / "panel.png").size[0] > 4 * 64


def test_inspect_a_split(release, tmp_path):
    convert_2018(release, tmp_path / "out")
    code, output = call("inspect", tmp_path / "out" / "test.zip")
    assert code == 0 and "split: this is test of 4 train, 1 test patients" in output


def test_inspect_generated_slices(tmp_path):
    schema = Schema(("t1", "t2"))
    with ArchiveWriter(tmp_path / "fake.zip", schema, 16, {"command": "generate.py"}, pixel=(1.5, 2.0)) as writer:
        for seed in range(100, 103):
            writer.add(np.full((2, 16, 16), 9, np.uint8), patient=f"s{seed}", seed=seed, snapshot="beef")
    code, output = call("inspect", tmp_path / "fake.zip", "--out", tmp_path / "x.png")
    assert code == 0, output
    assert "generated: 3 slices, seeds 100 to 102, snapshot beef" in output
    assert "1.5 to 2 mm pixels, 32 mm across" in output
    assert "2 contrasts and 0 label maps" in output and "made by: generate.py, version unknown" in output


def test_inspect_what_is_no_archive(archive, tmp_path):
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-1000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("dataset.json", '{"labels": null}')
    (tmp_path / "text.zip").write_text("text")
    for name, words in (
        ("cut.zip", "not a complete zip"),
        ("other.zip", "does not describe joint slices"),
        ("text.zip", "not a complete zip"),
        ("none.zip", "no such file"),
        ("", "is a folder"),
    ):
        code, output = call("inspect", tmp_path / name)
        assert code == 2
        refused(output, tmp_path / name, words)


def test_inspect_refuses_pictures_it_cannot_write(archive, tmp_path):
    (tmp_path / "x.png").write_text("mine")
    for name, words in (
        ("x.png", "exists already"),
        ("x.tiff", "ends in .png"),
        ("x.png/y.png", "a file is where a folder is needed"),
    ):
        code, output = call("inspect", archive, "--out", tmp_path / name)
        assert code == 2
        refused(output, tmp_path / name.removesuffix("/y.png"), words)
    assert (tmp_path / "x.png").read_text() == "mine"
    assert call("inspect", archive, "--out", tmp_path / "x.png", "--force")[0] == 0


def test_phantom_passes_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("dataset_tool.write_patients", lambda *arguments: calls.append(arguments))
    code, output = call(
        "phantom", "--dest", tmp_path, "--patients", 3, "--seed", 7, "--shape", "48x48x31", "--workers", 1
    )
    assert code == 0, output
    assert calls == [(tmp_path, 3, 7, (48, 48, 31), 1, False)]


@pytest.mark.parametrize("shape", ["48", "48x48", "48x48x-3", "axbxc", "48x48x31x2"])
def test_phantom_shapes(tmp_path, shape):
    code, output = call("phantom", "--dest", tmp_path, "--patients", 1, "--seed", 0, "--shape", shape)
    assert code == 2 and "expected three whole numbers such as 240x240x155" in output


def test_slow_modules_are_not_imported():
    slow = {"torch", "scipy.spatial", "nilearn", "matplotlib"}
    code = f"import sys, dataset_tool, slices.phantom, slices.render; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("command", main.commands)
def test_help_describes_every_option(command):
    code, output = call(command, "--help")
    assert code == 0 and call(command, "-h") == (code, output)
    for parameter in main.commands[command].params:
        assert isinstance(parameter, click.Argument) or (parameter.help and parameter.opts[0] in output), parameter.name
