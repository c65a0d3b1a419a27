"""Published checkpoints: their networks compute what the published code computes, and others are refused."""

from __future__ import annotations

import pickletools

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import generate
from dnnlib.errors import UserError
from helpers.goldens import GOLDEN, golden_arrays, golden_cases
from helpers.published import checkpoint_as_saved
from slices.codec import SliceCodec
from training import sampling
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.published.networks import PublishedNetworks, read_published
from training.snapshot import load_generator

PUBLISHED = GOLDEN / "published_snapshot.pkl"


def small_networks(c_dim: int = 3, residual: bool = True, **options) -> dict[str, nn.Module]:
    """Networks of 2 channels with random weights."""
    torch.manual_seed(0)
    common = {"resolution": 16, "c_dim": c_dim, "channel_base": 64, "channel_max": 8} | options
    generator = GeneratorConfig(num_contrasts=2, num_maps=0, z_dim=8, w_dim=12, mapping_layers=3, **common)
    discriminator = DiscriminatorConfig(img_channels=2, mbstd_group_size=2, residual=residual, **common)
    return {"G": Generator(generator), "D": Discriminator(discriminator), "G_ema": Generator(generator)}


def network_of(found: PublishedNetworks, name: str, network: nn.Module) -> nn.Module:
    tensors = {
        key.removeprefix(f"{name}."): value for key, value in found.tensors.items() if key.startswith(f"{name}.")
    }
    network.load_state_dict(tensors)
    return network.eval()


# --- what they compute ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_networks_compute_what_the_published_ones_do():
    golden, found = golden_arrays("published_snapshot"), read_published(PUBLISHED)
    z = sampling.latent_of_seed(int(golden["seed"]), 16)[None]
    torch.testing.assert_close(z, golden["z"])
    generator = network_of(found, "G_ema", Generator(found.generator))
    torch.testing.assert_close(generator(z, noise_mode="const"), golden["image_const"], rtol=0, atol=1e-4)
    truncated = generator(z, truncation_psi=0.5, noise_mode="const")
    torch.testing.assert_close(truncated, golden["image_const_psi05"], rtol=0, atol=1e-4)
    assert found.discriminator is not None
    discriminator = network_of(found, "D", Discriminator(found.discriminator))
    torch.testing.assert_close(discriminator(golden["real"]), golden["D_logits"], rtol=0, atol=1e-4)


def test_generated_pictures_are_the_published_ones(tmp_path):
    """The seed of the golden image, as generate.py writes it."""
    golden = golden_arrays("published_snapshot")
    seed = int(golden["seed"])
    arguments = [f"--network={PUBLISHED}", f"--seeds={seed}", f"--outdir={tmp_path / 'out'}"]
    result = CliRunner().invoke(generate.main, arguments)
    assert result.exit_code == 0, result.output
    network = load_generator(PUBLISHED)
    ((_, stored),) = sampling.generate(network, [seed])
    expected = SliceCodec(network.info.schema).to_stored(golden["image_const"])[0].numpy()
    assert np.abs(stored.astype(int) - expected).max() <= 1  # a rounding of gray levels
    assert network.info.schema.contrasts == ("red", "green", "blue") and not network.info.schema.classes
    # The panel shows the three channels side by side.
    assert len(np.unique(np.asarray(Image.open(tmp_path / "out" / f"seed{seed:04d}.png")))) > 100


def test_conditional_networks_compute_what_the_published_ones_do(tmp_path):
    """The golden networks with class labels, written in the form of a published checkpoint."""
    golden, settings = golden_arrays("networks_cond"), golden_cases("networks")["cond"]
    g, d = settings["G"], settings["D"]
    config = GeneratorConfig(
        resolution=g["img_resolution"],
        num_contrasts=g["img_channels"],
        num_maps=0,
        z_dim=g["z_dim"],
        c_dim=g["c_dim"],
        w_dim=g["w_dim"],
        mapping_layers=g["mapping_kwargs"]["num_layers"],
        **g["synthesis_kwargs"],
    )
    shared = {key: d[key] for key in ("c_dim", "img_channels", "mbstd_group_size")} | g["synthesis_kwargs"]
    networks = {"G_ema": Generator(config), "D": Discriminator(DiscriminatorConfig(d["img_resolution"], **shared))}
    for name, prefix in (("G_ema", "G."), ("D", "D.")):
        networks[name].load_state_dict(golden_arrays("networks_cond", prefix))
    (tmp_path / "cond.pkl").write_bytes(checkpoint_as_saved(networks))

    network = load_generator(tmp_path / "cond.pkl")
    assert network.generator.config == config and network.info.schema.contrasts == tuple(f"c{i}" for i in range(8))
    images = network.generator(golden["z"], golden["c"], noise_mode="const")
    torch.testing.assert_close(images, golden["img_const"], rtol=0, atol=1e-4)
    found = read_published(tmp_path / "cond.pkl")
    assert found.discriminator is not None
    discriminator = network_of(found, "D", Discriminator(found.discriminator))
    with torch.no_grad():
        logits = discriminator(golden["real"], golden["c"])
    torch.testing.assert_close(logits, golden["D_logits"], rtol=0, atol=1e-4)
    c = sampling.class_vector(network, "2")
    assert c.tolist() == [0, 0, 1] and len(list(sampling.generate(network, [0, 1], c))) == 2
    with pytest.raises(UserError, match="choose a --class from 0, 1, 2"):
        sampling.find_class(network, None)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_gives_the_same_networks(tmp_path, protocol):
    networks = small_networks(num_fp16_res=1, conv_clamp=256, residual=protocol != 3)
    content = checkpoint_as_saved(networks, protocol=protocol)
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(content)) <= protocol
    (tmp_path / "x.pkl").write_bytes(content)
    found = read_published(tmp_path / "x.pkl")
    assert (found.generator, found.discriminator) == (networks["G"].config, networks["D"].config)
    expected = {f"{n}.{key}": value for n, network in networks.items() for key, value in network.state_dict().items()}
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in expected.items())
    assert all(tensor.is_contiguous() for tensor in found.tensors.values())
