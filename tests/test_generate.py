"""Generation: a slice depends on its seed only; archives of fakes are read like archives of real slices."""

import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from dnnlib.errors import UserError
from dnnlib.files import sha256
from dnnlib.runs import Log
from helpers.commands import ROOT
from helpers.drawn import write_archive
from slices.archive import edit
from slices.archive.options import MergeOptions
from slices.archive.reader import ArchiveReader
from slices.archive.zips import ZipWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS
from torch_utils import checkpoint
from torch_utils.distributed import World
from training import sampling
from training.beginning import most_frequent_class
from training.config import resolve
from training.minibatches import FakeSource, RealSource
from training.options import DataConfig
from training.recipes import find_recipe
from training.snapshot import KIND, VERSION, find_snapshot, load_generator
from training.state import TrainingState
from training.training_loop import describe_training, save
from training.training_step import Trainer


def make_snapshot(folder, cond: bool, subset=None):
    """A run folder with the snapshot of two steps, changed so that noise and truncation are visible."""
    folder.mkdir()
    data = write_archive(folder / "data.zip", labels=True)
    dataset = SliceDataset(data, use_labels=cond, subset=subset)
    recipe = replace(find_recipe("auto", 16), kimg=0.008, batch=4, cbase=256, cmax=16, z_dim=16, map_depth=2)
    config = resolve(recipe, DataConfig(str(data), cond=cond, workers=0), BRATS, 16, dataset.c_dim, snap=0)
    log = Log(folder / "log.txt")
    world = World()
    state = TrainingState.initial(config, world.device)
    reals, fakes = RealSource(config, dataset, world, log), FakeSource(config, dataset, state.generator)
    trainer = Trainer(config, state, reals, fakes, world)
    for _ in range(2):
        trainer.step()
    for name, parameter in state.ema.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.3)
    save(state, describe_training(config, dataset, sha256(data)), folder)
    log.close()
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_snapshot(tmp_path_factory.mktemp("runs") / "plain", cond=False)


@pytest.fixture(scope="module")
def conditional_run_folder(tmp_path_factory):
    return make_snapshot(tmp_path_factory.mktemp("runs") / "cond", cond=True)


def invoke(*options):
    return CliRunner().invoke(generate.main, [str(o) for o in options])


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_a_picture_belongs_to_its_seed_not_to_its_batch(run_folder, noise_mode):
    """Assert equal slices, up to one gray level and one label pixel in a thousand: batch size changes convolutions."""
    network = load_generator(run_folder)
    together = {s.seed: s.stored for s in sampling.generate(network, range(12), noise_mode=noise_mode, batch=12)}
    alone = {s.seed: s.stored for s in sampling.generate(network, [11, 3, 7], noise_mode=noise_mode, batch=1)}
    for seed, stored in alone.items():
        contrasts, classes = BRATS.split(stored)
        same_contrasts, same_classes = BRATS.split(together[seed])
        assert np.abs(contrasts.astype(int) - same_contrasts).max() <= 1
        assert (classes != same_classes).mean() <= 1e-3
    assert (together[3] != together[7]).mean() > 0.01


def test_z_of_a_seed_is_the_published_one():
    expected = np.random.RandomState(42).randn(1, 16)[0]
    np.testing.assert_allclose(sampling.latent_of_seed(42, 16).numpy(), expected, rtol=1e-6)


def test_noise_of_a_seed_is_what_layers_drew_one_by_one():
    """Noise was once drawn layer by layer, [1, H, W] at a time. A seed must keep its pictures."""
    generator = torch.Generator().manual_seed(42)
    drawn = [torch.randn([1, size, size], generator=generator).flatten() for size in (4, 8, 8, 16, 16)]
    assert torch.equal(sampling.noise_of_seed(42, 656), torch.cat(drawn))


def test_truncation_zero_is_one_slice_for_every_seed(run_folder):
    network = load_generator(run_folder)
    first, second = sampling.generate(network, [1, 2], truncation_psi=0)
    assert np.array_equal(first.stored, second.stored)


def test_archive_of_fakes(run_folder, tmp_path):
    dest = tmp_path / "new" / "fake.zip"
    result = invoke("--network", run_folder, "--seeds", "0-9,20", "--dest", dest, "--batch", 4)
    assert result.exit_code == 0, result.output
    archive = ArchiveReader(dest)
    assert archive.schema == BRATS and archive.resolution == 16
    assert [r.seed for r in archive.info.slices] == [*range(10), 20]
    assert len(archive.info.patients) == 11  # every fake is its own patient
    snapshot = load_generator(run_folder)
    assert archive.info.seen == snapshot.info.patients == tuple(f"drawn0-{i}" for i in range(8))
    assert {r.snapshot for r in archive.info.slices} == {snapshot.sha256}
    for i, sample in enumerate(sampling.generate(snapshot, [*range(10), 20], batch=4)):
        assert np.array_equal(archive.read_checked(i), sample.stored)  # label maps are one-hot


def test_as_many_slices_as_an_archive_has(run_folder, tmp_path):
    dest, like = tmp_path / "fake.zip", run_folder / "data.zip"
    result = invoke("--network", run_folder, "--like", like, "--times", "2", "--dest", dest)
    assert result.exit_code == 0, result.output
    assert [record.seed for record in ArchiveReader(dest).info.slices] == list(range(2 * len(ArchiveReader(like))))


def test_pictures(run_folder, tmp_path):
    result = invoke("--network", run_folder, "--seeds", "3,5", "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "seed0003.png", "seed0005.png"]
    panels = [np.array(Image.open(tmp_path / "out" / f"seed000{s}.png")) for s in (3, 5)]
    assert panels[0].shape == panels[1].shape and (panels[0] != panels[1]).any()
    again = invoke("--network", run_folder, "--seeds", "5-6", "--outdir", tmp_path / "out")
    assert again.exit_code == 2 and "seed0005.png exists already" in again.output
    assert not (tmp_path / "out" / "seed0006.png").exists()
    assert invoke("--network", run_folder, "--seeds", "5-6", "--outdir", tmp_path / "out", "--force").exit_code == 0


def test_conditional_generator_takes_a_class_by_name_or_number(conditional_run_folder, tmp_path):
    network = load_generator(conditional_run_folder)
    assert torch.equal(sampling.class_vector(network, "LGG"), sampling.class_vector(network, "1"))
    by_class = [
        next(sampling.generate(network, [0], sampling.class_vector(network, name))).stored for name in ("HGG", "LGG")
    ]
    assert not np.array_equal(*by_class)
    common = ("--network", conditional_run_folder, "--seeds", "0", "--dest", tmp_path / "fake.zip")
    missing, wrong, right = invoke(*common), invoke(*common, "--class", "IV"), invoke(*common, "--class", "HGG")
    assert missing.exit_code == 2 and "choose a --class from 0 (HGG), 1 (LGG)" in missing.output
    assert wrong.exit_code == 2 and "--class IV is unknown" in wrong.output
    assert right.exit_code == 0


def test_fakes_keep_their_class(conditional_run_folder, tmp_path):
    """The class of a fake is kept: as label, in names, beside real slices, and for a GAN trained on fakes.

    The pixel size that the GAN learned from is kept too.
    """
    for name, seeds in (("HGG", "0-3"), ("LGG", "2-5")):
        options = ("--seeds", seeds, "--class", name, "--dest", tmp_path / f"{name}.zip")
        output = invoke("--network", conditional_run_folder, *options).output
        assert f"4 generated slices of class {name} (learned from 12 slices)" in output, output
    fakes = [ArchiveReader(tmp_path / f"{name}.zip") for name in ("HGG", "LGG")]
    assert [[r.label_name(i) for i in range(4)] for r in fakes] == [["HGG"] * 4, ["LGG"] * 4]
    sha = load_generator(conditional_run_folder).sha256[:8]
    assert fakes[1].info.patients == [f"generated-{sha}-LGG-seed{seed}" for seed in range(2, 6)]
    assert fakes[0].info.pixel is None, "the slices drawn here have no volumes"
    merged = edit.merge(
        [conditional_run_folder / "data.zip", *(r.path for r in fakes)], MergeOptions(tmp_path / "all.zip")
    )
    assert (merged.num_slices, merged.num_patients) == (24 + 8, 8 + 8)
    assert SliceDataset(tmp_path / "all.zip", use_labels=True).label_counts == (16, 16)
    assert SliceDataset(tmp_path / "LGG.zip", use_labels=True, mirror=True).label_counts == (0, 4)


def test_a_class_that_was_never_seen_is_refused(tmp_path):
    """The archive has two classes, but the training slices have one. An older snapshot does not know the counts."""
    folder = make_snapshot(tmp_path / "run", cond=True, subset=2)
    network = load_generator(folder)
    assert network.info.label_counts in ((0, 2), (2, 0)), "the seed of --subset draws two slices of one class"
    seen, unseen = ("HGG", "LGG") if network.info.label_counts[0] else ("LGG", "HGG")
    result = invoke("--network", folder, "--seeds", "0", "--class", unseen, "--outdir", tmp_path / "out")
    assert result.exit_code == 2 and f"--class {unseen}" in result.output and "saw no slice of this" in result.output
    assert f"({seen})" in result.output and f"({unseen})" not in result.output
    dataset = SliceDataset(folder / "data.zip", use_labels=True, subset=2)
    assert most_frequent_class(dataset) == seen, "what a training proposes to generate next"
    unknown = replace(network, info=replace(network.info, label_counts=None))
    assert torch.equal(sampling.class_vector(unknown, unseen), 1 - sampling.class_vector(network, seen))


@pytest.mark.parametrize("wanted", ["²", "٢", "2", "-1", "", "9" * 5000])
def test_a_class_is_a_name_or_a_number_of_the_list(conditional_run_folder, wanted):
    with pytest.raises(UserError, match=r"^--class .* is unknown; choose from 0 \(HGG\), 1 \(LGG\)$"):
        sampling.find_class(load_generator(conditional_run_folder), wanted)


def test_fakes_say_how_fine_the_pixels_were_that_the_network_learned_from(run_folder, tmp_path):
    tensors, metadata = checkpoint.load(find_snapshot(run_folder), KIND, VERSION)
    checkpoint.save(tmp_path / "a.safetensors", tensors, metadata | {"pixel": [0.9, 1.1]}, KIND, VERSION)
    assert invoke("--network", tmp_path / "a.safetensors", "--seeds", "0", "--dest", tmp_path / "f.zip").exit_code == 0
    assert ArchiveReader(tmp_path / "f.zip").info.pixels == (0.9, 1.1)
    checkpoint.save(tmp_path / "a.safetensors", tensors, metadata | {"pixel": [1.1, 0.9]}, KIND, VERSION)
    with pytest.raises(UserError, match="pixels of 1.1 to 0.9 mm"):
        load_generator(tmp_path / "a.safetensors")


def test_mistakes_end_with_one_message_and_code_2(run_folder, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    snapshot = next(run_folder.glob("*.safetensors"))
    (tmp_path / "short.safetensors").write_bytes(snapshot.read_bytes()[:5000])
    checkpoint.save(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {}, kind="something else")
    (tmp_path / "d.zip").mkdir()
    out = ("--outdir", tmp_path / "out")
    for options, message in [
        (("--network", tmp_path / "none.safetensors", "--seeds", "0", *out), "no such file"),
        (("--network", tmp_path / "text.safetensors", "--seeds", "0", *out), "text.safetensors: not a .safetensors"),
        (("--network", tmp_path / "short.safetensors", "--seeds", "0", *out), "short.safetensors: an incomplete"),
        (("--network", tmp_path / "other.safetensors", "--seeds", "0", *out), "is a something else; expected"),
        (("--network", tmp_path, "--seeds", "0", *out), "no network-snapshot-NNNNNN.safetensors"),
        (("--network", run_folder / "data.zip", "--seeds", "0", *out), "a zip file"),
        (("--network", run_folder, "--seeds", "a-b", *out), "not a list of whole numbers"),
        (("--network", run_folder, "--seeds", "0"), "either --outdir for pictures or --dest"),
        (("--network", run_folder, "--seeds", "0", "--dest", tmp_path / "fake.npz"), "ends in .zip"),
        (("--network", run_folder, *out), "give either --seeds, such as 0-63, or --like"),
        (("--network", run_folder, "--seeds", "0", "--like", run_folder / "data.zip", *out), "either --seeds"),
        (("--network", run_folder, "--seeds", "0", "--times", "2", *out), "--times multiplies the number of slices"),
        (("--network", run_folder, "--like", tmp_path / "none.zip", *out), "no such file"),
        (("--network", run_folder, "--like", run_folder / "data.zip", "--times", "1000000", *out), "at most 1000000"),
        (("--network", run_folder, "--seeds", "0", "--class", "1", *out), "trained without --cond"),
        (("--network", run_folder, "--seeds", "4294967296", *out), "too large"),
        (("--network", run_folder, "--seeds", "9" * 5000, *out), "too large"),
        (("--network", run_folder, "--seeds", "0-9²", *out), "not a list of whole numbers"),
        (("--network", run_folder, "--seeds", "0-999999999", *out), "more than 1000000 numbers"),
        (("--network", run_folder, "--seeds", "1-999999,0-1", *out), "more than 1000000 numbers"),
        (("--network", run_folder, "--seeds", "0", "--trunc", "nan", *out), "--trunc nan: expected a number"),
        (("--network", run_folder, "--seeds", "0", "--dest", tmp_path / "d.zip"), "is a folder; a file is to be"),
        (("--network", run_folder, "--seeds", "0", "--outdir", "/dev/null/x"), "a file is where a folder is needed"),
    ]:
        result = invoke(*options)
        assert result.exit_code == 2, (options, result.output)
        assert message in result.output and "Traceback" not in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))


def test_a_full_disk_leaves_the_old_archive(run_folder, tmp_path):
    """The disk is full when the third member of the new archive is written."""
    dest = write_archive(tmp_path / "fake.zip", count=3)
    before = dest.read_bytes()
    options = ("--network", run_folder, "--seeds", "0-3", "--dest", dest)
    assert invoke(*options).exit_code == 2 and dest.read_bytes() == before  # not replaced without --force

    real, added = ZipWriter.add, []

    def full(self, name, member):
        if len(added) == 2:
            raise OSError(28, "No space left on device")
        added.append(name)
        real(self, name, member)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZipWriter, "add", full)
        result = invoke(*options, "--force")
    assert result.exit_code == 2 and "fake.zip: No space left on device; free some space" in result.output
    assert dest.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["fake.zip"]


# --- several ranks --------------------------------------------------------------------------------------------------


def start(*options, launcher=()):
    """Start generate.py as a program, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, ROOT / "generate.py", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_ranks_write_the_archive_of_one_process(run_folder, tmp_path):
    """Two ranks of two seeds at a time; the last batch has one."""
    options = ("--network", run_folder, "--seeds", "20,3-6", "--batch", 2, "--noise-mode", "random", "--dest")
    process = start(*options, tmp_path / "two.zip", "--gpus", 2)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert printed == f"5 generated slices in {tmp_path / 'two.zip'}\n"
    assert "rank 0 of 2: 100%" in errors and "3/3" in errors and "rank 1" not in errors
    assert invoke(*options, tmp_path / "one.zip").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.zip", "two.zip"]
    one, two = ArchiveReader(tmp_path / "one.zip"), ArchiveReader(tmp_path / "two.zip")
    assert zipfile.ZipFile(one.path).namelist() == zipfile.ZipFile(two.path).namelist()
    assert one.info == two.info and [record.seed for record in two.info.slices] == [20, 3, 4, 5, 6]
    for n in range(5):
        contrasts, classes = BRATS.split(one.read_checked(n))
        other_contrasts, other_classes = BRATS.split(two.read_checked(n))
        assert np.abs(contrasts.astype(int) - other_contrasts).max() <= 1
        assert (classes != other_classes).mean() <= 1e-3


@pytest.mark.slow
def test_ranks_of_torchrun_write_the_pictures_of_one_process(run_folder, tmp_path):
    options = ("--network", run_folder, "--seeds", "3-7", "--batch", 2, "--outdir")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(*options, tmp_path / "two", "--gpus", 3, launcher=torchrun)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and not printed and not (tmp_path / "two").exists()
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert lines == ["error: --gpus 3, but torchrun has started 2 processes: leave out --gpus"]
    process = start(*options, tmp_path / "two", launcher=torchrun)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert printed == f"5 panels in {tmp_path / 'two'}, all together in {tmp_path / 'two' / 'contact_sheet.png'}\n"
    assert invoke(*options, tmp_path / "one").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 6 and sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        one, two = (np.array(Image.open(tmp_path / folder / name)).astype(int) for folder in ("one", "two"))
        assert (np.abs(one - two).max(axis=-1) > 1).mean() <= 1e-3


@pytest.mark.parametrize(
    "ending", ["rank 1 killed", *(pytest.param(e, marks=pytest.mark.slow) for e in ("rank 0 killed", "stopped"))]
)
def test_a_rank_that_dies_leaves_no_archive(run_folder, tmp_path, ending):
    process = start("--network", run_folder, "--seeds", "0-999999", "--dest", tmp_path / "new.zip", "--gpus", 2)
    deadline = time.monotonic() + 60
    while sum(part.stat().st_size > 10_000 for part in tmp_path.glob(".new*/.new.zip.0.?")) < 2:  # both are at work
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    ranks = {p.environ()["RANK"]: p for p in psutil.Process(process.pid).children()}
    if ending == "stopped":
        process.terminate()
    else:
        ranks[ending.split()[1]].kill()
    printed, errors = process.communicate(timeout=30)
    told = errors.replace("\r", "\n").strip().splitlines()[-1]
    if ending == "stopped":
        assert process.returncode == 143, errors
    else:
        assert process.returncode == 1 and f"error: {ending[:6]} was killed (SIGKILL)" in told, errors
    assert not printed and "Traceback" not in errors and not list(tmp_path.iterdir())
    assert not any(rank.is_running() for rank in ranks.values())


def test_more_gpus_than_there_are_are_refused(run_folder, tmp_path, monkeypatch):
    options = ("--network", run_folder, "--seeds", "0", "--outdir", tmp_path / "out", "--gpus", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = invoke(*options)
    assert result.exit_code == 2 and "2 processes need 2 GPUs, but there is 1 on this machine" in result.output
    assert not (tmp_path / "out").exists()
