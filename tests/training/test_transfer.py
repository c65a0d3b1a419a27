"""Weights of another network: which are copied, what is told, and what is remembered of its patients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dnnlib.errors import UserError
from helpers.commands import ROOT
from helpers.drawn import write_archive
from helpers.trainings import tiny_config, tiny_trainer
from slices.dataset import SliceDataset
from slices.schema import BRATS, LesionClass, Schema
from torch_utils import checkpoint
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.snapshot import KIND, VERSION, load_generator, save_snapshot
from training.source import Source, read_source
from training.state import TrainingState
from training.training_loop import describe_training
from training.transfer import (
    MOST_LINES,
    Match,
    NewNetworks,
    advise,
    copy_weights,
    describe,
    explain,
    match,
    percent,
    refuse_too_little,
    table,
)
from training.transfer_plan import describe_freezing

PKL = ROOT / "tests" / "golden" / "published_snapshot.pkl"
RGB = Schema(contrasts=("red", "green", "blue"))
THREE = replace(BRATS, contrasts=("t1", "t2", "flair"))


def networks(schema=BRATS, resolution=64, c_dim=0, cbase=512, cmax=32, z=16, w=16, depth=2, residual=True, names=None):
    generator = GeneratorConfig(
        resolution, schema.num_contrasts, schema.num_maps, z, c_dim, w, depth, channel_base=cbase, channel_max=cmax
    )
    discriminator = DiscriminatorConfig(resolution, schema.num_channels, c_dim, cbase, cmax, residual=residual)
    return NewNetworks(schema, generator, discriminator, names)


def source(*left_out, tensors=None, **values):
    """A source with tensors that take no memory. left_out: names of networks that it has not."""
    like = networks(**values)
    with torch.device("meta"):
        generator = Generator(like.generator)
        modules = {"G": generator, "D": Discriminator(like.discriminator), "G_ema": generator}
    return Source(
        path=Path("runs/a/network-snapshot-000022.safetensors"),
        sha256="0" * 64,
        schema=like.schema,
        generator=like.generator,
        discriminator=None if "D" in left_out else like.discriminator,
        kimg=22,
        patients=("a", "b"),
        more_patients=False,
        label_names=like.label_names,
        tensors={
            f"{network}.{name}": tensor
            for network, module in modules.items()
            if network not in left_out
            for name, tensor in module.state_dict().items()
        },
    )


def of(matched: Match, fate: str) -> set[str]:
    return {one.name for one in matched.of(fate) if one.is_parameter}


def sizes(like: NewNetworks) -> dict[str, int]:
    with torch.device("meta"):
        modules = {"G": Generator(like.generator), "D": Discriminator(like.discriminator)}
    return {f"{net}.{name}": p.numel() for net, module in modules.items() for name, p in module.named_parameters()}


BLOCKS = (4, 8, 16, 32, 64)
TORGB = {f"G.synthesis.b{r}.torgb.{kind}" for r in BLOCKS for kind in ("weight", "bias")}
EMBED = {"G.mapping.embed.weight", "G.mapping.embed.bias"}
D_MAPPING = {
    f"D.mapping.{layer}.{kind}" for layer in ("embed", *(f"fc{i}" for i in range(8))) for kind in ("weight", "bias")
}
OUT = {"D.b4.out.weight", "D.b4.out.bias"}
LARGEST_G = {
    f"G.synthesis.b64.{layer}.{rest}"
    for layer, kinds in {"conv0": ("noise_strength",), "conv1": ("noise_strength",), "torgb": ()}.items()
    for rest in ("weight", "bias", "affine.weight", "affine.bias", *kinds)
}
LARGEST_D = {f"D.b64.{rest}" for rest in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight")}
FROMRGB = {"weight", "bias"}
HEAD = {"G.synthesis.head.label_conv.weight", "G.synthesis.head.label_conv.bias"}


@pytest.mark.parametrize(
    "before, now, skipped, fresh, reasons",
    [
        ({}, {}, set(), set(), []),
        (
            {"schema": THREE},
            {},
            TORGB | {"D.b64.fromrgb.weight"},
            set(),
            ["contrasts, 3 → 4: "],
        ),
        (
            {"schema": RGB},
            {},
            TORGB | {"D.b64.fromrgb.weight"},
            HEAD,
            ["channels, 3 contrasts → 4", "label maps, 0 → 4"],
        ),
        ({}, {"schema": RGB}, TORGB | {"D.b64.fromrgb.weight"}, set(), ["channels, 4 contrasts and 4 label maps → 3"]),
        ({}, {"c_dim": 2}, {"G.mapping.fc0.weight"} | OUT, EMBED | D_MAPPING, ["classes, none → 2: the first mapping"]),
        ({"c_dim": 2}, {}, {"G.mapping.fc0.weight"} | OUT, set(), ["classes, 2 → none: the first mapping layer and"]),
        ({"c_dim": 2}, {"c_dim": 3}, {"G.mapping.embed.weight", "D.mapping.embed.weight"}, set(), ["classes, 2 → 3"]),
        (
            {"resolution": 32},
            {},
            set(),
            LARGEST_G | LARGEST_D | {"D.b64.fromrgb.weight", "D.b64.fromrgb.bias"},
            ["resolution, 32 → 64: larger blocks begin anew; D takes images in at b64, so fromrgb of b32 is left out"],
        ),
        (
            {},
            {"resolution": 32},
            set(),
            {"D.b32.fromrgb.weight", "D.b32.fromrgb.bias"},
            ["resolution, 64 → 32: larger blocks are left out; D takes images in at b32, whose fromrgb begins anew"],
        ),
        (
            {"depth": 2},
            {"depth": 4},
            set(),
            {f"G.mapping.fc{i}.{kind}" for i in (2, 3) for kind in ("weight", "bias")},
            ["mapping depth, 2 → 4: fc2 and fc3 begin anew", "--map-depth=2 would copy all"],
        ),
        (
            {"depth": 2},
            {"depth": 3},
            set(),
            {"G.mapping.fc2.weight", "G.mapping.fc2.bias"},
            ["mapping depth, 2 → 3: fc2 begins anew, and w is another"],
        ),
        ({"depth": 3}, {}, set(), set(), ["mapping depth, 3 → 2: fc2 is left out, and w is another"]),
        ({"depth": 8}, {}, set(), set(), ["mapping depth, 8 → 2: fc2 to fc7 are left out, and w is another"]),
        (
            {"residual": False},
            {},
            set(),
            {f"D.b{r}.skip.weight" for r in BLOCKS[1:]},
            ["D without skip connections, as in `cifar`"],
        ),
        ({"z": 8}, {}, {"G.mapping.fc0.weight"}, set(), ["size of z, 8 → 16", "--z-dim=8 --w-dim=16 would copy all"]),
    ],
)
def test_what_can_be_copied_and_why_not(before, now, skipped, fresh, reasons):
    """Expected names are written down; numbers in the table follow from them."""
    begins, into = source(**before), networks(**now)
    matched = match(begins, into)
    assert of(matched, "skipped") == skipped and of(matched, "fresh") == fresh
    every = sizes(into)
    assert of(matched, "copied") == every.keys() - skipped - fresh
    copied = sum(size for name, size in every.items() if name not in skipped | fresh)
    assert matched.share == copied / sum(every.values())
    last = table(matched).splitlines()[-1]
    numbers = [len(every) - len(skipped | fresh), len(skipped), len(fresh)]
    expected = [
        "together",
        *(str(n) for n in numbers if n),
        f"{sum(every.values()):,}",
        *percent(matched.share).split(),
    ]
    assert last.split() == expected
    told = [*explain(begins, into), *advise(begins, into, matched)]
    assert len(told) >= len(reasons), told
    for reason in reasons:
        assert any(line.startswith(reason) for line in told), told
    assert bool(told) == (matched.share < 1) or "left out" in told[0]


def test_all_widths_and_depths_at_once():
    """A network of other sizes gives nothing, and the options with which it would give all are named."""
    begins, into = source(cbase=1024, cmax=16, z=8, w=8, depth=3), networks()
    matched = match(begins, into)
    assert advise(begins, into, matched) == ["--cbase=1024 --cmax=16 --z-dim=8 --map-depth=3 would copy all"]
    assert match(begins, networks(cbase=1024, cmax=16, z=8, w=8, depth=3)).share == 1
    with pytest.raises(UserError) as caught:
        refuse_too_little(begins, into, matched)
    first, _, *reasons = str(caught.value).splitlines()
    assert f"{begins.path}: only {percent(matched.share)} of the parameters" in first and "--force begins" in first
    assert [line.strip().split(",")[0] for line in reasons[:-1]] == [
        *("mapping depth", "feature maps", "size of z", "size of w")
    ]
    told = describe(begins, into, matched)
    assert len(told) < MOST_LINES + 40 and any("more lines" in line for line in told)
    other = source(c_dim=2, z=8, w=8)
    assert advise(other, into, match(other, into))[0].startswith("--z-dim=8 would copy 9")


def test_higher_resolution_than_the_widths_allow():
    """The source has cbase 32; at 64×64, that would leave no feature map."""
    begins = source(resolution=32, cbase=32)
    assert advise(begins, networks(), match(begins, networks())) == []


def test_widths_that_make_no_difference_are_not_named():
    """At 16×16, both have 32 feature maps at every resolution."""
    begins, into = source(resolution=16, cbase=1024), networks(resolution=16, cbase=512)
    assert match(begins, into).share == 1 and explain(begins, into) == []


def test_a_description_is_one_that_a_user_reads():
    begins, into = source(schema=RGB), networks()
    told = describe(begins, into, match(begins, into))
    assert told[0] == "Transfer from runs/a/network-snapshot-000022.safetensors, trained for 22 kimg"
    assert all(len(line) <= 120 for line in told)
    parts = [line.split("  ")[0] for line in told[4 : told.index("", 2)]]
    assert parts == [
        *("G mapping", "G 4×4", "G 8×8", "G 16×16", "G 32×32", "G 64×64", "G joint head"),
        *("D 64×64", "D 32×32", "D 16×16", "D 8×8", "D 4×4", "together"),
    ]
    skipped = told[told.index("Skipped, as the shapes differ:") + 1 :]
    assert skipped[: skipped.index("")] == [
        "  G.synthesis.b{4,8,16}.torgb.weight      [3, 32, 1, 1] → [8, 32, 1, 1]",
        "  G.synthesis.b{4,8,16,32,64}.torgb.bias  [3] → [8]",
        "  G.synthesis.b32.torgb.weight            [3, 16, 1, 1] → [8, 16, 1, 1]",
        "  G.synthesis.b64.torgb.weight            [3, 8, 1, 1] → [8, 8, 1, 1]",
        "  D.b64.fromrgb.weight                    [8, 3, 1, 1] → [8, 8, 1, 1]",
    ]


def test_equal_shapes_of_another_meaning_are_told():
    other = Schema(contrasts=("t2", "t1"), classes=(LesionClass("MS", "lesion", 1),))
    same = Schema(contrasts=("t1", "t2"), classes=(LesionClass("MS", "lesion", 1),))
    begins, into = (
        source(schema=other, c_dim=2, names=("HGG", "LGG")),
        networks(schema=same, c_dim=2, names=("A", "LGG")),
    )
    matched = match(begins, into)
    assert matched.share == 1
    assert describe(begins, into, matched)[-2:] == [
        "Channels are copied by their number: t2 → t1, t1 → t2",
        "Classes are copied by their number: HGG → A",
    ]
    assert describe(source(), networks(), match(source(), networks()))[-1] == "", "nothing to remark"


def test_networks_that_a_file_lacks():
    """G is made of G_ema; D stays random, which is half of all parameters."""
    begins, into = source("G", "D"), networks()
    matched = match(begins, into)
    assert {one.name[0] for one in matched.of("copied")} == {"G"} and not matched.of("skipped")
    assert {one.name[0] for one in matched.of("fresh")} == {"D"}
    told = describe(begins, into, matched)
    assert "The file has no G: G begins from G_ema" in told
    assert any(line.strip().startswith("no discriminator in the file: D begins anew") for line in told)


@pytest.mark.parametrize(
    "share, text", [(0, "0 %"), (1e-9, "0.1 %"), (0.4999, "49.9 %"), (0.99999, "99.9 %"), (1, "100 %")]
)
def test_only_all_is_all(share, text):
    assert percent(share) == text


# --- weights that are copied ------------------------------------------------------------------------------------------


def trained_source(tmp_path, data, name="source.safetensors", steps=0, cond=False) -> Path:
    """A snapshot after some steps. From the third on, G_ema differs from G."""
    trainer = tiny_trainer(tmp_path, data, cond=cond)
    for _ in range(steps):
        trainer.step()
    info = describe_training(trainer.config, SliceDataset(data, use_labels=cond), "0" * 64)
    save_snapshot(tmp_path / name, trainer.state.networks, replace(info, kimg=0.012))
    return tmp_path / name


def begin(data, path, cond=False, **changes) -> TrainingState:
    """A state that begins with the weights of a file."""
    state = TrainingState.initial(tiny_config(SliceDataset(data, use_labels=cond), **changes), torch.device("cpu"))
    copy_weights(state, read_source(path))
    return state


def test_networks_become_those_of_the_source_to_the_bit(tmp_path, archive):
    """G and D those of the source, the average that of its G_ema, with all buffers; fakes are then the same."""
    path = trained_source(tmp_path, archive, steps=3)
    tensors = checkpoint.load(path, KIND, VERSION).tensors
    state = begin(archive, path, cfg="cifar", residual=True)
    for name, network in state.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, tensors[f"{name}.{key}"]), key
    assert not torch.equal(tensors["G_ema.mapping.w_avg"], torch.zeros(8))
    assert not torch.equal(tensors["G.synthesis.b4.const"], tensors["G_ema.synthesis.b4.const"])
    z = torch.randn(4, 8)
    assert torch.equal(state.ema(z, noise_mode="const"), load_generator(path).generator(z, noise_mode="const"))
    weight = state.generator.synthesis.b8.conv0.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.requires_grad
    assert state.pl_mean == 0 and state.step == state.nimg == 0 and not state.g_optimizer.state


@pytest.mark.parametrize("before, now", [(THREE, BRATS), (BRATS, RGB), (RGB, BRATS)], ids=["3 to 4", "none", "maps"])
def test_what_does_not_fit_keeps_its_random_weights(tmp_path, before, now):
    """In the average too, which begins as G where nothing is copied. And it can be trained."""
    first = write_archive(tmp_path / "first.zip", count=8, schema=before)
    second = write_archive(tmp_path / "second.zip", count=8, schema=now)
    path = trained_source(tmp_path, first)
    source, state = read_source(path), begin(second, path)
    config = tiny_config(SliceDataset(second))
    fresh = TrainingState.initial(config, torch.device("cpu"))
    matched = match(source, NewNetworks(now, config.generator, config.discriminator))
    for one in matched.tensors:
        network, _, name = one.name.partition(".")
        origin = source.tensors[one.name] if one.fate == "copied" else fresh.networks[network].state_dict()[name]
        assert torch.equal(state.networks[network].state_dict()[name], origin), one
        if network == "G" and one.fate != "copied":
            assert torch.equal(state.ema.state_dict()[name], origin)
    assert matched.of("skipped")


def test_conditional_and_back(tmp_path):
    data = write_archive(tmp_path / "data.zip", count=8, labels=True)
    plain = trained_source(tmp_path, data)
    conditional = trained_source(tmp_path, data, "conditional.safetensors", cond=True)
    assert read_source(conditional).label_names == ("HGG", "LGG")
    for path, cond in ((plain, True), (conditional, False)):
        state, source = begin(data, path, cond=cond), read_source(path)
        assert torch.equal(state.generator.mapping.fc1.weight, source.tensors["G.mapping.fc1.weight"])
        assert state.discriminator.b4.out.weight.shape != source.tensors["D.b4.out.weight"].shape
        assert state.generator.config.c_dim == 2 * cond


def test_a_published_checkpoint_gives_what_fits(tmp_path, archive):
    """Its networks have 3 channels at 16×16; all but the layers of images fits into ours of 8."""
    source = read_source(PKL)
    config = tiny_config(SliceDataset(archive), cbase=128, cmax=16, z_dim=16)
    matched = match(source, NewNetworks(BRATS, config.generator, config.discriminator))
    assert of(matched, "skipped") == {
        *(f"G.synthesis.b{r}.torgb.{kind}" for r in (4, 8, 16) for kind in ("weight", "bias")),
        "D.b16.fromrgb.weight",
    }
    assert of(matched, "fresh") == HEAD
    state = begin(archive, PKL, cbase=128, cmax=16, z_dim=16)
    weight = read_source(PKL).tensors["G_ema.synthesis.b16.conv1.weight"]
    assert torch.equal(state.ema.synthesis.b16.conv1.weight, weight)
    assert source.patients is None and source.more_patients and source.kimg is None
    assert explain(source, NewNetworks(BRATS, config.generator, config.discriminator))[0].startswith(
        "channels, 3 contrasts"
    )


def test_a_source_without_g_and_d(tmp_path, archive):
    """As another program may write it."""
    tensors, metadata = checkpoint.load(trained_source(tmp_path, archive), KIND, VERSION)
    averages = {name: tensor for name, tensor in tensors.items() if name.startswith("G_ema.")}
    metadata = {**metadata, "patients": None, "training": None, "discriminator": None}
    checkpoint.save(tmp_path / "ema.safetensors", averages, metadata, KIND, VERSION)
    state, source = begin(archive, tmp_path / "ema.safetensors"), read_source(tmp_path / "ema.safetensors")
    assert source.discriminator is None and source.patients is None and source.more_patients
    assert torch.equal(state.generator.synthesis.b4.const, tensors["G_ema.synthesis.b4.const"])
    fresh = TrainingState.initial(tiny_config(SliceDataset(archive)), torch.device("cpu"))
    assert torch.equal(state.discriminator.b4.out.weight, fresh.discriminator.b4.out.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("D.b4.out.weight"), "lacks the tensor 'D.b4.out.weight'"),
        (lambda t: t.update({"G.mapping.fc0.weight": torch.full([8, 8], torch.nan)}), "not finite"),
        (lambda t: t.update({"G.mapping.fc0.weight": torch.zeros(8, 9)}), r"is \[8, 9\]"),
    ],
)
def test_damaged_sources_are_refused(tmp_path, archive, change, message):
    path = trained_source(tmp_path, archive)
    tensors, metadata = checkpoint.load(path, KIND, VERSION)
    change(tensors)
    checkpoint.save(path, tensors, metadata, KIND, VERSION)
    with pytest.raises(UserError, match=message):
        read_source(path)


# --- frozen layers ----------------------------------------------------------------------------------------------------


def test_layers_are_named_from_the_image_on():
    """As many as there are, each of the network's own."""
    for config in (networks(), networks(residual=False), networks(c_dim=2), networks(resolution=8)):
        with torch.device("meta"):
            found = {name.rpartition(".")[0] for name, _ in Discriminator(config.discriminator).named_parameters()}
        named = config.discriminator.layers
        assert {name for name in found if not name.startswith("mapping")} == set(named) and len(named) == len({*named})
    assert networks(resolution=16).discriminator.layers == (
        *("b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0", "b8.conv1", "b8.skip"),
        *("b4.conv", "b4.fc", "b4.out"),
    )


def test_frozen_layers_keep_their_bits_and_the_others_move(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive, freezed=5)
    frozen = {"b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0"}
    before = {name: p.clone() for name, p in trainer.state.discriminator.named_parameters()}
    for _ in range(3):
        trainer.step()
    for name, parameter in trainer.state.discriminator.named_parameters():
        is_frozen = name.rpartition(".")[0] in frozen
        assert torch.equal(parameter, before[name]) == is_frozen, name
        assert (parameter.grad is None) == (parameter not in trainer.state.d_optimizer.state) == is_frozen
    moments = {name for name in trainer.state.tensors() if name.startswith("D_optimizer.")}
    assert moments and not [name for name in moments if any(f".{layer}." in name for layer in frozen)]
    # A state goes on with it, and is refused where other layers are frozen.
    straight, other = trainer, tiny_trainer(tmp_path, archive, freezed=5)
    other.state.load(
        {name: tensor.clone() for name, tensor in straight.state.tensors().items()}, straight.state.position
    )
    for _ in range(3):
        other.reals.next_parts()
    straight.step()
    other.step()
    for name, tensor in straight.state.tensors().items():
        assert torch.equal(other.state.tensors()[name], tensor), name
    with pytest.raises(UserError, match="of other networks"):
        tiny_trainer(tmp_path, archive).state.load(straight.state.tensors(), straight.state.position)


def test_layers_that_stay_random_are_told(archive):
    config = tiny_config(SliceDataset(archive), freezed=2)
    assert describe_freezing(config, None) == [
        "Frozen in the discriminator: b16.fromrgb, b16.conv0",
        "warning: b16.fromrgb, b16.conv0 will keep random weights, and learn nothing; --freezed is for layers that "
        "--transfer copies",
    ]
    into = NewNetworks(BRATS, config.generator, config.discriminator)
    same = {"resolution": 16, "cbase": 64, "cmax": 8, "z": 8, "w": 8}
    assert len(describe_freezing(config, match(source(**same), into))) == 1
    _, warning = describe_freezing(config, match(source(schema=THREE, **same), into))
    assert warning.startswith("warning: b16.fromrgb will keep")
    assert describe_freezing(replace(config, freezed=0), None) == []


def test_more_layers_than_there_are(archive):
    with pytest.raises(UserError, match="^--freezed 10: this discriminator has 10 layers, .* from 0 to 9$"):
        tiny_config(SliceDataset(archive), freezed=10)
