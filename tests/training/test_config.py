"""Recipes, the configurations made from them, and options that don't go together."""

from dataclasses import replace

import pytest

import train
from dnnlib.config import from_json, to_json
from dnnlib.errors import UserError
from slices.schema import BRATS, Schema
from training.config import TrainingConfig, resolve
from training.division import divide, largest_part
from training.options import DataConfig, FolderOptions
from training.recipes import CFG_NAMES, RECIPES, auto_recipe, find_recipe, notes

DATA = DataConfig("x.zip")


def configure(cfg: str, resolution: int, gpus: int = 1, **given) -> TrainingConfig:
    return resolve(replace(find_recipe(cfg, resolution, gpus), **given), DATA, BRATS, resolution, gpus=gpus)


@pytest.mark.parametrize(
    "resolution, gpus, batch, mbstd, gamma, ema",
    [
        (256, 1, 16, 4, 0.8192, 5),
        (256, 8, 64, 4, 0.2048, 20),
        (1024, 1, 4, 4, 52.4288, 1.25),
        (64, 1, 32, 4, 0.0256, 10),
    ],
)
def test_auto_follows_the_published_formulas(resolution, gpus, batch, mbstd, gamma, ema):
    recipe = auto_recipe(resolution, gpus)
    assert (recipe.batch, recipe.mbstd) == (batch, mbstd)
    assert recipe.gamma == pytest.approx(gamma) and recipe.ema_kimg == pytest.approx(ema)
    assert recipe.cbase == (32768 if resolution >= 512 else 16384)
    assert recipe.lrate == (0.002 if resolution >= 1024 else 0.0025)


def test_stylegan2_as_the_paper_trained_it():
    config = configure("stylegan2", 256)
    g, d = config.generator, config.discriminator
    assert (g.z_dim, g.w_dim, g.mapping_layers, g.channel_base, g.channel_max) == (512, 512, 8, 32768, 512)
    assert (g.num_contrasts, g.num_maps, d.img_channels) == (4, 4, 8)
    assert (config.batch, config.lrate, config.loss.r1_gamma, config.loss.mixing) == (32, 0.002, 10, 0.9)
    assert (config.loss.pl_weight, config.ema_kimg, config.ema_ramp, config.kimg) == (2, 10, None, 25000)


@pytest.mark.parametrize(
    "cfg, batch, mbstd, cbase, lrate, gamma, ema",
    [
        ("paper256", 64, 8, 16384, 0.0025, 1, 20),
        ("paper512", 64, 8, 32768, 0.0025, 0.5, 20),
        ("paper1024", 32, 4, 32768, 0.002, 2, 10),
        ("cifar", 64, 32, 32768, 0.0025, 0.01, 500),
    ],
)
def test_the_other_rows_of_the_published_table(cfg, batch, mbstd, cbase, lrate, gamma, ema):
    config = configure(cfg, 32)
    assert not notes(cfg, 32, {})
    assert (config.batch, config.batch_gpu, config.discriminator.mbstd_group_size) == (batch, batch, mbstd)
    assert (config.generator.channel_base, config.discriminator.channel_base) == (cbase, cbase)
    assert (config.lrate, config.loss.r1_gamma, config.ema_kimg) == (lrate, gamma, ema)


def test_cifar_is_plain():
    config = configure("cifar", 32)
    assert not config.discriminator.residual and config.loss.mixing == 0 and config.loss.pl_weight == 0
    assert (config.kimg, config.ema_ramp, config.generator.mapping_layers) == (100000, 0.05, 2)


def test_what_is_given_by_hand_replaces_the_recipe():
    given = {"batch": 2, "gamma": 5.0, "lrate": 0.01, "fp32": True, "z_dim": 64, "cbase": 1024, "cmax": 16}
    config = configure("auto", 64, **given)
    g, d = config.generator, config.discriminator
    assert (config.batch, config.batch_gpu, d.mbstd_group_size, config.lrate) == (2, 2, 2, 0.01)
    assert (g.z_dim, g.w_dim, g.num_fp16_res, g.conv_clamp, d.conv_clamp) == (64, 64, 0, None, None)
    assert (g.channel_base, g.channel_max, d.channel_base, d.channel_max) == (1024, 16, 1024, 16)
    assert notes("auto", 64, {}) == [] == notes("auto", 64, {"fp32": False})
    assert notes("auto", 64, given) == [
        "By hand: batch 2, gamma 5, lrate 0.01, fp32 1, z-dim 64, cbase 1024, cmax 16",
        "`auto` is tuned for a batch of 32, and keeps its EMA kimg 10",
        "The minibatch standard deviation compares 2 slices, not 4",
    ]
    assert notes("auto", 64, {"batch": 8})[1].endswith(" keeps its gamma 0.0256, learning rate 0.0025, EMA kimg 10")


def test_a_schema_without_labels_is_a_plain_network():
    config = resolve(find_recipe("auto", 64), DATA, Schema(contrasts=("t1", "t2")), 64, c_dim=3, seed=7, snap=0)
    assert (config.generator.num_contrasts, config.generator.num_maps, config.discriminator.img_channels) == (2, 0, 2)
    assert (config.generator.c_dim, config.discriminator.c_dim, config.seed, config.snap) == (3, 3, 7, 0)
    assert from_json(TrainingConfig, to_json(config)) == config


@pytest.mark.parametrize(
    "given, message",
    [
        ({"batch": 6}, "^--batch 6 does not divide into groups of 4: use 4 or 8$"),
        ({"batch_gpu": 6}, "^--batch-gpu 6 does not divide into groups of 4: use 4 or 8$"),
        (
            {"batch": 32, "batch_gpu": 12},
            "^--batch 32 does not divide into parts of --batch-gpu 12: use --batch 24 or 36, or --batch-gpu 8$",
        ),
        (
            {"batch": 30, "gpus": 4},
            "^--batch 30 over 4 GPUs does not divide into groups of 4 on each: use 16 or 32$",
        ),
        ({"batch": 30, "gpus": 4, "cfg": "paper256"}, " into groups of 7 on each: use 28 or 32$"),
        ({"batch": 3, "gpus": 4}, "^--batch 3 over 4 GPUs does not divide: use 4$"),
        (
            {"batch": 32, "batch_gpu": 16, "gpus": 4},
            "^--batch 32 over 4 GPUs does not divide into parts of --batch-gpu 16 on each: "
            "use --batch 64, or --batch-gpu 8$",
        ),
        ({"batch": 30, "batch_gpu": 8, "gpus": 4}, " into parts of --batch-gpu 8 on each: use --batch 32$"),
        ({"cbase": 32}, "--cbase 32 leaves no feature map at 64"),
        ({"gamma": -1.0}, "^--gamma -1: expected a number from 0 up$"),
        ({"map_depth": 101}, "^--map-depth 101: expected a whole number from 1 to 100$"),
    ],
)
def test_impossible_options_are_refused_with_what_would_do(given, message):
    with pytest.raises(UserError, match=message):
        configure(**{"cfg": "auto", "resolution": 64, **given})


@pytest.mark.parametrize(
    "cfg, resolution, gpus, batch, batch_gpu, group",
    [
        ("auto", 256, 5, 60, 12, 4),
        ("auto", 64, 3, 60, 20, 4),
        ("auto", 64, 7, 56, 8, 4),
        ("auto", 1024, 20, 60, 3, 3),
        ("auto", 64, 100, 100, 1, 1),
        ("stylegan2", 256, 3, 36, 12, 4),
        ("stylegan2", 256, 16, 32, 2, 2),
        ("paper256", 256, 5, 80, 16, 8),
        ("cifar", 32, 4, 64, 16, 16),
    ],
)
def test_batches_divide_over_the_processes(cfg, resolution, gpus, batch, batch_gpu, group):
    config = configure(cfg, resolution, gpus)
    assert (config.batch, config.batch_gpu, config.discriminator.mbstd_group_size) == (batch, batch_gpu, group)


@pytest.mark.parametrize("cfg", CFG_NAMES)
@pytest.mark.parametrize("gpus", range(1, 18))
def test_every_process_computes_whole_groups(cfg, gpus):
    """For every recipe and number of processes; and a note names each batch that is not the published one."""
    for resolution in (8, 64, 256, 1024):
        config = configure(cfg, resolution, gpus)
        assert config.batch == config.batch_gpu * gpus
        assert config.batch_gpu % config.discriminator.mbstd_group_size == 0
        published = max(min(gpus * min(4096 // resolution, 32), 64), gpus) if cfg == "auto" else RECIPES[cfg].batch
        told = f"batch {config.batch} instead of {published}, which does not divide over {gpus} processes"
        assert (told in notes(cfg, resolution, {}, gpus)) == (config.batch != published)


def test_notes_on_a_batch_that_does_not_divide():
    assert notes("auto", 256, {}, gpus=5) == ["batch 60 instead of 64, which does not divide over 5 processes"]
    assert notes("stylegan2", 256, {}, gpus=5) == [
        "batch 40 instead of 32, which does not divide over 5 processes",
        "`stylegan2` is tuned for a batch of 32, and keeps its gamma 10, learning rate 0.002, EMA kimg 10",
    ]
    assert notes("auto", 64, {"batch_gpu": 2}, gpus=2)[1:] == [
        "The minibatch standard deviation compares 2 slices, not 4"
    ]


@pytest.mark.parametrize("batch, most, gpus, found", [(32, 16, 4, 8), (32, 12, 1, 8), (24, 24, 3, 8), (30, 8, 4, None)])
def test_largest_part(batch, most, gpus, found):
    assert largest_part(batch, most, 4, gpus) == found
    assert found is None or divide(batch, found, 4, gpus)[0] == found


def test_a_run_has_one_folder():
    FolderOptions(outdir="x")
    for places, message in [
        ({}, "--outdir=DIR begins in a new one"),
        ({"outdir": "x", "resume": "y"}, "^--outdir and --resume exclude each other"),
        ({"run_dir": "x", "resume": "y"}, "^--run-dir and --resume exclude each other"),
    ]:
        with pytest.raises(UserError, match=message):
            FolderOptions(**places)


@pytest.mark.parametrize("resolution", [4, 48])
def test_pixels_that_no_network_has_are_refused(resolution):
    with pytest.raises(UserError, match=f"x.zip: {resolution}×{resolution} pixels; .* a power of two from 8 up"):
        configure("auto", resolution)


def test_the_command_line_offers_every_recipe():
    (option,) = (p for p in train.main.params if p.name == "cfg")
    assert tuple(option.type.choices) == CFG_NAMES
