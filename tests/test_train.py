"""train.py: options, files of a run folder, mistakes."""

import json
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import slices.dataset
import train
from helpers.drawn import draw_slice, write_archive
from helpers.trainings import TINY_OPTIONS
from slices.archive.writer import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from training.config import DataConfig
from training.snapshot import load_generator

NO_NUMBERS = ["kimg=inf", "kimg=nan", "lrate=nan", "lrate=inf", "lrate=0", "gamma=nan", "pl-weight=inf"]


@pytest.mark.parametrize("cfg, cond", [("auto", False), ("stylegan2", True), ("cifar", False)])
def test_a_run_leaves_its_files(tmp_path, cfg, cond):
    data = write_archive(tmp_path / "data.zip", labels=True)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", f"--cfg={cfg}", f"--cond={int(cond)}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"00000-data{'-cond' * cond}-{cfg}-batch4"
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert all(word in lines[-1] for word in ("kimg 0.0", "sec/tick", "sec/kimg", "maintenance", "cpumem", "gpumem"))
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert stats[-1]["Progress/kimg"]["mean"] == pytest.approx(0.016)
    assert {"Loss/G/loss", "Loss/D/loss", "Loss/D/label_share"} <= set(stats[0])
    assert 0 < stats[0]["Loss/D/label_share"]["mean"] < 1
    for name in ("reals.png", "fakesinit.png", "fakes000000.png"):
        Image.open(folder / name).verify()
    loaded = load_generator(folder)
    assert loaded.info.schema == BRATS and loaded.info.kimg == pytest.approx(0.016)
    assert loaded.generator.config.c_dim == (2 if cond else 0)
    assert loaded.info.label_names == (("HGG", "LGG") if cond else None)
    assert loaded.info.label_counts == ((12, 12) if cond else None)
    assert ("Classes: HGG (12 slices), LGG (12 slices)" in (folder / "log.txt").read_text()) == cond
    assert json.loads((folder / "training_options.json").read_text())["batch"] == 4


def test_held_out_patients_are_refused(tmp_path):
    """An archive that shares patients with an archive of --exclude is refused. --exclude may be repeated."""
    real = write_archive(tmp_path / "train.zip", part="train")
    test = write_archive(tmp_path / "test.zip", count=6, part="test", seed=1)
    fake = write_archive(tmp_path / "fake.zip", count=2, per_patient=1, seed=2, seen=["drawn0-0", "drawn0-1"])
    common = [f"--outdir={tmp_path / 'runs'}", *TINY_OPTIONS]

    def invoke(*options):
        return CliRunner().invoke(train.main, [*common, *(str(o) for o in options)])

    for options, message in [
        (["--data", test], f"{test}: 6 of its 6 slices (2 of its 2 patients) are of the test part"),
        (["--data", test, "--dry-run"], "are of the test part"),
        (["--data", test, "--subset", 1], "are of the test part"),
        (["--data", real, "--exclude", test, "--exclude", real], "slices of drawn0-0, drawn0-1, drawn0-2 and 5 more;"),
        (["--data", fake, "--exclude", real], "generated slices of a GAN that learned from drawn0-0, drawn0-1;"),
        (["--data", real, "--exclude", fake], "their GAN learned from count), but holds slices of drawn0-0"),
        (["--data", real, "--exclude", tmp_path / "none.zip"], "none.zip: no such file"),
    ]:
        result = invoke(*options)
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()
    result = invoke("--data", real, "--exclude", test)
    assert result.exit_code == 0 and f"{real} shares no patient with {test}" in result.output, result.output


def test_dry_run_writes_nothing(tmp_path, archive):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "-n"])
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    assert '"r1_gamma"' in result.output and "By hand: batch 8\n`auto` is tuned for" in result.output


def test_learning_rate_by_hand(tmp_path, archive):
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "--lrate=0.01", "-n"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 0 and '"lrate": 0.01' in result.output, result.output
    assert "By hand: batch 8, lrate 0.01\n" in result.output and "learning rate" not in result.output


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda p: p, [], "no such file"),
        (lambda p: p.write_bytes(b"nonsense"), [], "not a complete zip archive"),
        (write_archive, ["--cond=1"], "no class labels, which --cond needs"),
        (write_archive, ["--subset=99"], "--subset 99"),
        (write_archive, ["--batch=5"], "does not divide into groups"),
        (write_archive, ["--outdir=/dev/null/runs"], "a file is where a folder is needed"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(tmp_path, make, options, message):
    data = tmp_path / "data.zip"
    make(data)
    result = CliRunner().invoke(
        train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, *options]
    )
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_label_maps_that_are_not_one_hot_are_refused(tmp_path):
    """Label maps of 0 and 1 instead of 0 and 255 are refused: the GAN would see blank labels."""
    stored = draw_slice(np.random.RandomState(0), 16)
    stored[4:] //= 255
    with ArchiveWriter(tmp_path / "data.zip", BRATS, 16, {}) as archive:
        archive.add(stored, patient="a")
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={tmp_path / 'data.zip'}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "00000000.npy are not one-hot" in result.stderr, result.output


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["in a worker", "in memory"])
def test_damage_met_while_training_is_one_message(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(slices.dataset, "MEMORY", memory)
    data = write_archive(tmp_path / "data.zip", count=8)
    content = bytearray(data.read_bytes())
    with zipfile.ZipFile(data) as archive:
        third = archive.getinfo(SliceDataset(data).archive.info.slices[2].file)
    content[third.header_offset + 90] ^= 0xFF
    data.write_bytes(content)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, "--workers=1", "--kimg=1"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "Traceback" not in result.output and "worker" not in result.output
    assert f"{data}: the member {third.filename} is damaged" in result.output


@pytest.mark.parametrize("option", [*NO_NUMBERS, "seed=5000000000"])
def test_numbers_that_are_none(tmp_path, archive, option):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", f"--{option}"])
    assert result.exit_code == 2 and not (tmp_path / "runs").exists(), result.output


def test_run_folders_are_numbered(tmp_path, archive):
    for _ in range(2):
        options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", *TINY_OPTIONS]
        assert CliRunner().invoke(train.main, options, catch_exceptions=False).exit_code == 0
    assert sorted(p.name[:5] for p in (tmp_path / "runs").iterdir()) == ["00000", "00001"]


def test_hostile_names_do_not_reach_the_run_folder():
    assert train.describe_run(DataConfig("../a b;c.zip"), "auto", None) == "a_b_c-auto"
    assert np.all([c.isprintable() for c in train.describe_run(DataConfig("ü\n.zip", mirror=True), "auto", 4)])
