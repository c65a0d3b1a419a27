"""Content of snapshots, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import generate
import train
from dnnlib.config import to_json
from dnnlib.errors import UserError
from dnnlib.files import sha256
from helpers.drawn import write_archive
from helpers.trainings import TINY_OPTIONS, tiny_trainer, tiny_training
from slices.archive.reader import ArchiveReader
from slices.dataset import SliceDataset
from slices.schema import BRATS
from torch_utils import checkpoint
from training.config import GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.snapshot import KIND, VERSION, SnapshotInfo, find_snapshot, load_generator, save_snapshot
from training.training_loop import describe_training, save


def test_snapshot_holds_all_three_networks(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive)
    trainer.step()
    state = trainer.state
    snapshot = save(state, describe_training(trainer.config, SliceDataset(archive), sha256(archive)), tmp_path)
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
def test_a_snapshot_remembers_the_patients_it_learned_from(tmp_path, archive, subset, patients):
    """With --subset, a snapshot names only the patients of the slices that were used."""
    options = [f"--outdir={tmp_path}", f"--data={archive}", "--mirror=1", *TINY_OPTIONS]
    options += [f"--subset={subset}"] * (subset is not None)
    assert CliRunner().invoke(train.main, options, catch_exceptions=False).exit_code == 0
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    reader, used = ArchiveReader(archive), SliceDataset(archive, subset=subset)
    patient_of = {reader.read(i).tobytes(): record.patient for i, record in enumerate(reader.info.slices)}
    expected = {patient_of[used[n].stored.numpy().tobytes()] for n in range(len(used))}
    assert len(patient_of) == 24 and len(expected) == patients
    assert load_generator(folder).info.patients == tuple(sorted(expected))


def test_a_gan_trained_on_fakes_knows_the_patients_behind_them(tmp_path):
    data = write_archive(tmp_path / "fake.zip", count=8, seen=["real2", "real1"])
    snapshot = tiny_training(tmp_path, data).snapshot
    assert load_generator(snapshot).info.patients == ("drawn0-0", "drawn0-1", "drawn0-2", "real1", "real2")


def test_a_snapshot_that_does_not_say_its_patients_is_refused(tmp_path, archive):
    tensors, metadata = checkpoint.load(tiny_training(tmp_path, archive).snapshot, KIND, VERSION)
    del metadata["patients"]
    for version, message in [
        (1, "version 1 of the network snapshot format; this program reads version 2 and 3"),
        (2, "the field 'patients' is missing"),
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


VERSION_2 = json.loads((Path(__file__).parent / "snapshot_version_2.json").read_text())  # metadata of a real file


def write_version_2(path: Path, metadata: dict) -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(**VERSION_2["training"]["generator"]))
    tensors = {f"G_ema.{name}": value for name, value in generator.state_dict().items()}
    checkpoint.save(path, tensors, metadata, KIND, version=2)
    return generator


def test_a_snapshot_of_version_2_is_read(tmp_path):
    generator = write_version_2(tmp_path / "old.safetensors", VERSION_2)
    loaded = load_generator(tmp_path / "old.safetensors")
    z, c = torch.randn(2, 8), torch.eye(2)
    assert torch.equal(loaded.generator(z, c, noise_mode="const"), generator(z, c, noise_mode="const"))
    info = to_json(loaded.info)
    assert info.pop("generator") == info["training"]["generator"]
    assert info.pop("discriminator") == info["training"]["discriminator"]
    assert info.pop("training") == {**VERSION_2["training"], "tf32": False}, "a field that came later"
    assert info == {name: value for name, value in VERSION_2.items() if name != "training"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"training": 3}, "the field 'generator' is missing"),
        ({"training": {}}, "the field 'generator' is missing"),
        ({"training": {**VERSION_2["training"], "generator": [1]}}, "generator: expected an object"),
        ({"generator": {**VERSION_2["training"]["generator"], "w_dim": 9}}, "differ from those in the training"),
    ],
)
def test_a_damaged_snapshot_of_version_2_is_refused(tmp_path, change, message):
    write_version_2(tmp_path / "old.safetensors", {**VERSION_2, **change})
    with pytest.raises(UserError, match=f"old.safetensors.*{message}"):
        load_generator(tmp_path / "old.safetensors")


def write_imported(path: Path) -> None:
    """A snapshot of an imported network: discriminator, training and patients are unknown."""
    config = GeneratorConfig(16, 4, 4, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
    info = SnapshotInfo(schema=BRATS, generator=config, kimg=25000, patients=None)
    save_snapshot(path, {"G_ema": Generator(config)}, info)


def test_a_network_needs_neither_training_nor_patients(tmp_path):
    write_imported(tmp_path / "imported.safetensors")
    info = load_generator(tmp_path / "imported.safetensors").info
    assert info.patients is info.training is info.discriminator is info.data_sha256 is None
    assert SnapshotInfo(schema=BRATS, generator=info.generator, kimg=0, patients=()).patients == (), "nobody is known"


def test_fakes_of_a_network_of_unknown_patients_are_pictures_only(tmp_path):
    """An archive made by a network of unknown patients is refused: the leak guard would take it for harmless."""
    write_imported(tmp_path / "imported.safetensors")
    common = [f"--network={tmp_path / 'imported.safetensors'}", "--seeds=0-1"]
    refusal = CliRunner().invoke(generate.main, [*common, f"--dest={tmp_path / 'new' / 'fake.zip'}"])
    assert refusal.exit_code == 2 and not (tmp_path / "new").exists()
    assert "imported.safetensors does not say which patients it was trained on" in refusal.output
    pictures = CliRunner().invoke(generate.main, [*common, f"--outdir={tmp_path / 'out'}"])
    assert pictures.exit_code == 0 and (tmp_path / "out" / "seed0001.png").exists(), pictures.output
