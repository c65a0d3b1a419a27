"""Published checkpoints: their networks compute what the published code computes, and others are refused."""

from __future__ import annotations

import hashlib
import math
import pickletools

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import generate
from dnnlib.errors import UserError
from helpers.goldens import GOLDEN, golden_arrays, golden_configs
from helpers.published import checkpoint_as_saved, dumps, network_as_saved, object_as_saved, tensor_as_saved
from slices.codec import SliceCodec
from slices.schema import Schema
from training import sampling
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.published.networks import PublishedNetworks, is_pickle, read_published
from training.snapshot import SnapshotInfo, load_generator, save_snapshot

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
    golden, (config, judge) = golden_arrays("networks_cond"), golden_configs("cond")
    networks = {"G_ema": Generator(config), "D": Discriminator(judge)}
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


def test_networks_that_are_not_wanted_or_not_there(tmp_path):
    networks = small_networks()
    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved(networks))
    found = read_published(tmp_path / "x.pkl", networks=["G_ema"])
    assert {name.split(".")[0] for name in found.tensors} == {"G_ema"} and found.discriminator is not None
    (tmp_path / "y.pkl").write_bytes(checkpoint_as_saved({"G_ema": networks["G_ema"]}))
    found = read_published(tmp_path / "y.pkl")
    assert {name.split(".")[0] for name in found.tensors} == {"G_ema"} and found.discriminator is None


def test_a_storage_may_be_laid_out_in_another_order(tmp_path):
    """A weight whose channels come last in memory, and one in the middle of a larger storage."""
    weight = torch.randn(4, 4, 3, 3)

    def change(name, state):
        if name == "synthesis.b8.conv0":
            state["_parameters"]["weight"] = tensor_as_saved(weight.contiguous(memory_format=torch.channels_last))
        if name == "synthesis.b8.conv1":
            state["_parameters"]["weight"] = tensor_as_saved(torch.cat([torch.zeros_like(weight), weight])[4:])

    network = Generator(GeneratorConfig(8, 1, 0, z_dim=4, w_dim=4, channel_base=32, channel_max=4))
    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved({"G_ema": network}, change))
    tensors = read_published(tmp_path / "x.pkl").tensors
    assert all(torch.equal(tensors[f"G_ema.synthesis.b8.conv{n}.weight"], weight) for n in (0, 1))


def test_a_file_is_known_by_its_content(tmp_path):
    """A pickle under any name is taken for one; a snapshot whose header's length begins with 0x80 is not."""
    (tmp_path / "odd.safetensors").write_bytes(PUBLISHED.read_bytes())
    network = load_generator(tmp_path / "odd.safetensors")
    assert network.info.kimg is None and network.info.patients is None
    assert network.sha256 == hashlib.sha256(PUBLISHED.read_bytes()).hexdigest()
    config = GeneratorConfig(8, 1, 0, z_dim=4, w_dim=4, channel_base=32, channel_max=4)
    for length in range(1, 256, 4):  # of a name; one of them brings the length of the header to a multiple of 256 + 128
        info = SnapshotInfo(schema=Schema(("x" * length,)), generator=config, kimg=None, patients=None)
        save_snapshot(tmp_path / "x.safetensors", {"G_ema": Generator(config)}, info)
        if (tmp_path / "x.safetensors").read_bytes()[:1] == b"\x80":
            break
    assert (tmp_path / "x.safetensors").read_bytes()[:1] == b"\x80" and not is_pickle(tmp_path / "x.safetensors")
    assert load_generator(tmp_path / "x.safetensors").info == info
    (tmp_path / "x.pkl").write_text("no pickle")
    with pytest.raises(UserError, match="x.pkl.*expected a pickle of protocol 2 to 5"):
        load_generator(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="no network-snapshot-NNNNNN.safetensors in this folder; give one of its .pkl"):
        load_generator(tmp_path)  # as the published code's run folders are


def test_pictures_only(tmp_path):
    """Nobody knows whom a published network has seen, so no archive is made for a U-Net to learn from."""
    dest = tmp_path / "new" / "fake.zip"
    result = CliRunner().invoke(generate.main, [f"--network={PUBLISHED}", "--seeds=0", f"--dest={dest}"])
    assert result.exit_code == 2 and not dest.parent.exists()
    assert "published_snapshot.pkl does not say which patients it was trained on" in result.output


# --- what is refused --------------------------------------------------------------------------------------------------

# Part, what its state says instead, words of the refusal. Of G_ema, unless the part begins with "D:".
DIFFERENT = [
    ("synthesis.b8", {"architecture": "resnet"}, r"G_ema.synthesis.b8 has architecture 'resnet'.*'skip' there"),
    ("synthesis.b8.conv1", {"activation": "relu"}, r"G_ema.synthesis.b8.conv1 has activation 'relu'.*'lrelu' there"),
    ("synthesis.b8.conv1", {"use_noise": False}, "use_noise False"),
    ("synthesis.b8.conv1", {"up": 2}, "has up 2"),
    ("synthesis.b8.conv1", {"conv_clamp": 256}, "has conv_clamp 256"),
    ("synthesis.b8.conv1", {"conv_clamp": 2**79 - 1}, "has conv_clamp 6"),
    ("synthesis.b4.conv1", {"conv_clamp": 2**79 - 1}, "G_ema: conv_clamp 6.*expected a number"),
    ("synthesis.b4.conv1", {"conv_clamp": math.nan}, "conv_clamp nan"),
    ("synthesis.b4.conv1", {"conv_clamp": "256"}, "conv_clamp is '256'; expected a number"),
    ("synthesis.b8", {"use_fp16": True}, "G_ema.synthesis.b8 has use_fp16 True"),
    ("synthesis.b8.torgb", {"weight_gain": 1}, "has weight_gain 1"),
    ("mapping.fc1", {"activation": "linear"}, "G_ema.mapping.fc1 has activation 'linear'"),
    ("mapping.fc0", {"bias_gain": 0.1, "weight_gain": 0.1}, r"G_ema.mapping.fc0 has lr_multiplier 0.1.* 0.01 there"),
    ("mapping", {"num_layers": 2}, "has G_ema.mapping.fc2, unlike the network"),
    ("mapping", {"num_layers": 4}, "lacks G_ema.mapping.fc3"),
    ("mapping", {"num_layers": "3"}, "num_layers is '3'; expected a whole number"),
    ("mapping", {"num_layers": 10**9}, "G_ema: --map-depth 1000000000: expected a whole number from 1 to 100"),
    ("mapping", {"_modules": {}}, "lacks G_ema.mapping"),
    ("mapping", {"_buffers": {}}, "lacks G_ema.mapping.w_avg"),
    ("mapping", {"_buffers": {"w_avg": 1}}, "G_ema.mapping.w_avg is 1; expected a tensor"),
    ("mapping", {"_buffers": {"w_avg": None, "more": 1}}, "has G_ema.mapping.more, unlike the network"),
    ("mapping", {"_modules": {"a\x1b[2J": object_as_saved("MappingNetwork", {})}}, r"has 'G_ema.mapping.a.x1b.2J'"),
    ("", {"img_resolution": 24}, "power of two"),
    ("", {"img_resolution": 32}, "lacks G_ema.synthesis.b32"),
    ("", {"img_channels": 17}, "17"),
    ("", {"z_dim": 1 << 40}, "--z-dim"),
    ("", {"c_dim": 0}, r"has G_ema.mapping.embed|G_ema.mapping.fc0.weight is"),
    ("synthesis", {"_init_kwargs": {"channel_max": 4}}, r"\[8.*the network that it describes has.*\[4"),
    ("synthesis", {"_init_kwargs": {"channel_base": [1]}}, "channel_base is .1.; expected a whole number"),
    ("D:b4", {"architecture": "skip"}, "D has the architecture 'skip'; this project has resnet and orig"),
    ("D:b8", {"architecture": "orig"}, r"D.b8 has architecture 'orig'.*'resnet' there"),
    ("D:b4.mbstd", {"num_channels": 2}, "D.b4.mbstd has num_channels 2"),
    ("D:b4.mbstd", {"group_size": "4"}, "group_size is '4'; expected a whole number"),
    ("D:b8.conv1", {"down": 1}, "D.b8.conv1 has down 1"),
    ("D:mapping", {"num_layers": 2}, "D.mapping has num_layers 2"),
    ("D:", {"img_channels": 1}, "D judges other images than G_ema makes"),
]


@pytest.mark.parametrize(("part", "said", "words"), DIFFERENT, ids=lambda x: str(x)[:30])
def test_networks_that_compute_something_else_are_refused(tmp_path, part, said, words):
    networks = small_networks()
    which, part = ("D", part[2:]) if part.startswith("D:") else ("G_ema", part)

    def change(name, state):
        if name == part:
            state |= said

    # G_ema is alone where it is changed: it would differ from the others.
    names = {"D": ("G", "D", "G_ema"), "G_ema": ("G_ema",)}[which]
    saved = {name: network_as_saved(networks[name], change if name == which else None) for name in names}
    (tmp_path / "x.pkl").write_bytes(dumps(saved))
    with pytest.raises(UserError, match=f"x.pkl.*{words}") as refused:
        read_published(tmp_path / "x.pkl")
    assert str(refused.value).count("x.pkl") == 1


@torch.no_grad()
def test_a_minibatch_may_be_one_group(tmp_path):
    """As in networks that were converted from TensorFlow: no group size is given."""
    networks, x = small_networks(), torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, c = networks["D"], torch.eye(3).repeat(2, 1)

    def change(name, state):
        if name == "b4.mbstd":
            state["group_size"] = None

    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved(networks, change))
    found = read_published(tmp_path / "x.pkl")
    assert found.discriminator is not None
    logits = network_of(found, "D", Discriminator(found.discriminator))(x, c)
    ours.b4.mbstd_group_size = len(x)
    torch.testing.assert_close(logits, ours(x, c))


def test_another_filter_is_refused(tmp_path):
    def change(name, state):
        if name == "synthesis.b8":
            state["_buffers"]["resample_filter"] = tensor_as_saved(torch.full((4, 4), 1 / 16))

    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved({"G_ema": small_networks()["G_ema"]}, change))
    with pytest.raises(UserError, match="synthesis.b8.resample_filter is another filter than .1, 3, 3, 1."):
        read_published(tmp_path / "x.pkl")


def test_a_generator_that_differs_from_its_average_is_refused(tmp_path):
    networks = small_networks() | {"G": small_networks(conv_clamp=256)["G"]}
    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved(networks))
    with pytest.raises(UserError, match="x.pkl: G and G_ema have different options"):
        read_published(tmp_path / "x.pkl")


def test_frozen_layers_are_read(tmp_path):
    """The published --freezed keeps weights as buffers, which have the same names."""
    networks = small_networks()

    def freeze(name, state):
        if name == "b16.fromrgb":
            state["_buffers"] |= state["_parameters"]
            state["_parameters"] = {}

    (tmp_path / "x.pkl").write_bytes(checkpoint_as_saved(networks, freeze))
    weight = networks["D"].state_dict()["b16.fromrgb.weight"]
    assert torch.equal(read_published(tmp_path / "x.pkl").tensors["D.b16.fromrgb.weight"], weight)
