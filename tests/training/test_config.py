"""Recipes, the configurations made from them, and options that don't go together."""

from dataclasses import replace

import pytest

import train
from dnnlib.config import from_json, to_json
from dnnlib.errors import UserError
from slices.schema import BRATS, Schema
from training.config import CFG_NAMES, DataConfig, TrainingConfig, auto_recipe, find_recipe, notes, resolve

DATA = DataConfig("x.zip")


def configure(cfg: str, resolution: int, **given) -> TrainingConfig:
    return resolve(replace(find_recipe(cfg, resolution), **given), DATA, BRATS, resolution)


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
        ({"batch": 6}, "6 images at a time do not divide into groups of 4.*of 4 or 8"),
        ({"batch": 32, "batch_gpu": 12}, "--batch 32 is not a multiple of --batch-gpu 12: use --batch-gpu 8"),
        ({"cbase": 32}, "--cbase 32 leaves no feature map at 64"),
        ({"gamma": -1.0}, "^--gamma -1: expected a number from 0 up$"),
        ({"map_depth": 101}, "^--map-depth 101: expected a whole number from 1 to 100$"),
    ],
)
def test_impossible_options_are_refused_with_what_would_do(given, message):
    with pytest.raises(UserError, match=message):
        configure("auto", 64, **given)


@pytest.mark.parametrize("resolution", [4, 48])
def test_pixels_that_no_network_has_are_refused(resolution):
    with pytest.raises(UserError, match=f"x.zip: {resolution}×{resolution} pixels; .* a power of two from 8 up"):
        configure("auto", resolution)


def test_the_command_line_offers_every_recipe():
    (option,) = (p for p in train.main.params if p.name == "cfg")
    assert tuple(option.type.choices) == CFG_NAMES
