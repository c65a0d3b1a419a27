"""Saving and loading a U-Net."""

import dataclasses

import torch

from rings import SIZE, refused
from segmentation.unet import KIND, VERSION, build_unet, configure_unet, load_unet, save_unet
from slices.schema import BRATS
from torch_utils import checkpoint


def test_a_loaded_unet_gives_the_same_logits(trained, tmp_path):
    first = load_unet(trained.model)
    save_unet(tmp_path / "again.safetensors", first)
    again = load_unet(tmp_path / "again.safetensors")
    assert again.info == first.info == trained.unet
    x = torch.rand(2, 2, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        assert torch.equal(first.network(x), again.network(x))
        assert first.network(x).shape == (2, 3, SIZE, SIZE)


def test_width_scales_every_level():
    config = configure_unet(BRATS, 256, 32)
    assert (config.in_channels, config.out_channels) == (4, 4)
    assert config.features == (32, 32, 64, 128, 256, 32)
    small, large = (
        sum(p.numel() for p in build_unet(dataclasses.replace(config, width=w)).parameters()) for w in (4, 8)
    )
    assert 3 < large / small < 4.2


def test_every_seed_has_first_weights_of_its_own():
    first, again, other = (build_unet(configure_unet(BRATS, 64, 2), seed).state_dict() for seed in (1, 1, 2))
    weights = [name for name in first if first[name].unique().numel() > 1]  # the rest are constants
    assert len(weights) >= 20 and all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_a_unet_that_does_not_say_which_patients_it_knows_is_refused(tmp_path, trained, test_zip):
    tensors, metadata = checkpoint.load(trained.model, KIND, VERSION)
    old = {key: value for key, value in metadata.items() if key not in ("patients", "seen")}
    command = ("evaluate", "--model", tmp_path / "old.safetensors", "--data", test_zip, "--outdir", tmp_path / "out")
    checkpoint.save(tmp_path / "old.safetensors", tensors, old, KIND, version=1)
    assert "old.safetensors: version 1 of the unet format; this program reads version 4" in refused(*command)
    checkpoint.save(tmp_path / "old.safetensors", tensors, old, KIND, VERSION)
    assert "old.safetensors: the field 'patients' is missing" in refused(*command)
