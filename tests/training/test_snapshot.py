"""Snapshots: what they hold, and what is refused."""

import pytest
import torch
from click.testing import CliRunner
from trainings import TINY_OPTIONS, tiny_trainer, tiny_training

import train
from dnnlib.errors import UserError
from dnnlib.files import sha256
from drawn import write_archive
from slices.archive.reader import ArchiveReader
from slices.dataset import SliceDataset
from torch_utils import checkpoint
from training.networks.discriminator import Discriminator
from training.snapshot import KIND, VERSION, find_snapshot, load_generator
from training.training_loop import describe_training, save


def test_snapshot_holds_all_three_networks(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive)
    trainer.step()
    state = trainer.state
    snapshot = save(state, describe_training(trainer.config, SliceDataset(archive)), tmp_path)
    x = torch.randn(4, 8, 16, 16)
    tensors, metadata = checkpoint.load(snapshot, KIND, VERSION)
    discriminator = Discriminator(trainer.config.discriminator)
    discriminator.load_state_dict({k.removeprefix("D."): v for k, v in tensors.items() if k.startswith("D.")})
    assert torch.equal(discriminator(x), state.discriminator(x))
    for name, value in state.generator.state_dict().items():
        assert torch.equal(tensors[f"G.{name}"], value)
    assert metadata["training"]["data"]["path"] == "drawn.zip" and metadata["data_sha256"] == sha256(archive)
    z = torch.randn(2, 8)
    assert torch.equal(load_generator(snapshot).generator(z, noise_mode="const"), state.ema(z, noise_mode="const"))


@pytest.mark.parametrize("subset, patients", [(None, 8), (4, 3)])
def test_a_snapshot_remembers_whom_it_learned_from(tmp_path, archive, subset, patients):
    """Of a subset, the patients of its slices alone."""
    options = [f"--outdir={tmp_path}", f"--data={archive}", "--mirror=1", *TINY_OPTIONS]
    options += [f"--subset={subset}"] * (subset is not None)
    assert CliRunner().invoke(train.main, options, catch_exceptions=False).exit_code == 0
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    reader, used = ArchiveReader(archive), SliceDataset(archive, subset=subset)
    patient_of = {reader.read(i).tobytes(): record.patient for i, record in enumerate(reader.info.slices)}
    expected = {patient_of[used[n].stored.numpy().tobytes()] for n in range(len(used))}
    assert len(patient_of) == 24 and len(expected) == patients
    assert load_generator(folder).info.patients == tuple(sorted(expected))


def test_a_gan_trained_on_fakes_knows_whom_their_generator_saw(tmp_path):
    data = write_archive(tmp_path / "fake.zip", count=8, seen=["real2", "real1"])
    snapshot = tiny_training(tmp_path, data).snapshot
    assert load_generator(snapshot).info.patients == ("drawn0-0", "drawn0-1", "drawn0-2", "real1", "real2")


def test_a_snapshot_that_does_not_say_whom_it_learned_from_is_refused(tmp_path, archive):
    tensors, metadata = checkpoint.load(tiny_training(tmp_path, archive).snapshot, KIND, VERSION)
    del metadata["patients"]
    for version, message in [
        (1, "version 1 of the network snapshot format; this program reads version 2"),
        (VERSION, "the field 'patients' is missing"),
    ]:
        checkpoint.save(tmp_path / "old.safetensors", tensors, metadata, KIND, version)
        with pytest.raises(UserError, match=message):
            load_generator(tmp_path / "old.safetensors")


def test_find_snapshot_takes_the_latest(tmp_path):
    for kimg in (0, 200, 1000):
        (tmp_path / f"network-snapshot-{kimg:06d}.safetensors").touch()
    assert find_snapshot(tmp_path).name == "network-snapshot-001000.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no network-snapshot-NNNNNN.safetensors"):
        find_snapshot(tmp_path / "empty")
