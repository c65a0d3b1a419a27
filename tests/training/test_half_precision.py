"""Blocks that compute in 16 bits: bfloat16 on the CPU, and both half types where there is a GPU."""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from dnnlib.errors import UserError
from dnnlib.files import sha256
from helpers.drawn import write_archive
from helpers.trainings import TINY_OPTIONS, tiny_trainer
from slices.dataset import SliceDataset
from slices.schema import BRATS
from torch_utils.distributed import World
from torch_utils.ops.synthesis_tail import synthesis_tail
from training.beginning import remarks_on_precision
from training.config import DiscriminatorConfig, GeneratorConfig, resolve
from training.networks.discriminator import Discriminator, DiscriminatorEpilogue, minibatch_std
from training.networks.generator import Generator, SynthesisBlock, SynthesisLayer, ToRGBLayer
from training.networks.layers import Conv2dLayer, modulated_conv2d
from training.networks.shapes import block_type, half_type
from training.options import DataConfig
from training.recipes import find_recipe
from training.reporter import describe_precision
from training.sampling import generate
from training.snapshot import load_generator
from training.training_loop import describe_training, save

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
EVERYWHERE = [
    pytest.param("cpu", "bf16", id="cpu-bf16"),
    pytest.param("cuda", "bf16", id="cuda-bf16", marks=needs_gpu),
    pytest.param("cuda", "fp16", id="cuda-fp16", marks=needs_gpu),
]


def networks(resolution=16, **size) -> tuple[Generator, Discriminator]:
    """A generator and a discriminator with four resolutions in bfloat16, and noise that is heard."""
    torch.manual_seed(0)
    size = (
        dict(resolution=resolution, channel_base=256, channel_max=16, num_fp16_res=4, conv_clamp=256, half="bfloat16")
        | size
    )
    generator = Generator(GeneratorConfig(num_contrasts=4, num_maps=4, z_dim=8, w_dim=8, mapping_layers=2, **size))
    for layer in generator.synthesis.layers:
        layer.noise_strength.data.fill_(0.1)
    return generator, Discriminator(DiscriminatorConfig(img_channels=8, **size))


def trainer(tmp_path, archive, precision, device="cpu", **changes):
    """A trainer whose biases and noise are not zero, so that all gradients exist."""
    world = World(device=torch.device(device))
    changes = dict(mbstd=4, cbase=256, cmax=16, z_dim=16, gamma=1.0, precision=precision) | changes
    found = tiny_trainer(tmp_path, archive, "stylegan2", world=world, **changes)
    random = torch.Generator().manual_seed(1)
    for network in (found.state.generator, found.state.discriminator):
        for name, parameter in network.named_parameters():
            if name.endswith(("noise_strength", "bias")) and "affine" not in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=random) * 0.2)
    return found


def trained_config(precision):
    recipe = replace(find_recipe("auto", 16), precision=precision)
    return resolve(recipe, DataConfig("x.zip"), BRATS, 16)


def gradients(trainer, phase, reals) -> dict[str, torch.Tensor]:
    """The gradients that one application of a phase gives the weights, which stay as they are."""
    before = copy.deepcopy(phase.network.state_dict())
    trainer.apply(phase, reals)
    phase.network.load_state_dict(before)
    return {name: p.grad.cpu().clone() for name, p in phase.network.named_parameters() if p.grad is not None}


# ---- Where it is used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, precision", EVERYWHERE)
def test_exactly_the_four_highest_resolutions_compute_in_the_half_type(device, precision):
    half = {torch.float16: "float16", torch.bfloat16: "bfloat16"}[TYPES[precision]]
    generator, discriminator = (n.to(device) for n in networks(128, channel_max=4, half=half))
    convolutions, images, epilogue = defaultdict(set), set(), set()
    for network in (generator.synthesis, discriminator):
        for name, module in network.named_modules():
            if isinstance(module, (SynthesisLayer, ToRGBLayer, Conv2dLayer)):
                resolution = int(name.split(".")[0].removeprefix("b"))
                module.register_forward_hook(
                    lambda module, x, y, resolution=resolution: convolutions[resolution].update({x[0].dtype, y.dtype})
                )
            elif isinstance(module, SynthesisBlock):
                module.register_forward_hook(lambda module, x, y: images.add(y[1].dtype))
            elif isinstance(module, DiscriminatorEpilogue):
                module.register_forward_hook(lambda module, x, y: epilogue.add(y.dtype))
    z = torch.randn(2, 8, device=device)
    fakes = generator(z, noise_mode="const")
    logits = discriminator(fakes)
    expected = {resolution: {TYPES[precision]} for resolution in (128, 64, 32, 16)}
    assert convolutions == expected | {8: {torch.float32}, 4: {torch.float32}}
    # Skips add up in float32, and the joint head's probabilities with them.
    assert images == epilogue == {torch.float32} == {fakes.dtype, logits.dtype}
    probabilities = (fakes[:, 4:] + 1) / 2
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones_like(fakes[:, 0]), rtol=0, atol=1e-5)


def test_block_types():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    config = networks()[0].config
    assert half_type(config, 8) == half_type(config, 16) == torch.bfloat16 and half_type(config, 4) is None
    assert half_type(replace(config, half="float16"), 16) == torch.float16
    assert half_type(replace(config, num_fp16_res=0), 16) is None
    assert block_type(torch.bfloat16, single) == torch.bfloat16
    assert block_type(torch.float16, single) == block_type(None, single) == torch.float32
    assert {block_type(half, double) for half in (None, *TYPES.values())} == {torch.float64}


def test_float16_on_a_cpu_is_float32_to_the_bit():
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    images = [networks(**size)[0](z, noise_mode="const") for size in ({"half": "float16"}, {"num_fp16_res": 0}, {})]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_the_minibatch_standard_deviation_is_computed_in_float32():
    """In bfloat16, the squares of small differences would vanish beside those of the mean."""
    x = (100 + torch.randn(4, 3, 4, 4)).to(torch.bfloat16)
    exact = minibatch_std(x.double(), 4)[:, -1]
    torch.testing.assert_close(minibatch_std(x, 4)[:, -1].double(), exact, rtol=0.01, atol=0)  # rounded once


# ---- Pre-normalization ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", TYPES.values(), ids=str)
@pytest.mark.parametrize("exponent", [70, 20, -20])
def test_the_size_of_weights_and_styles_makes_no_difference(half, exponent):
    """Demodulation takes it out, and pre-normalization before that, so not even their squares overflow or vanish."""
    random = torch.Generator().manual_seed(0)
    x, w, s = (torch.randn(shape, generator=random) for shape in ((2, 16, 8, 8), (8, 16, 3, 3), (2, 16)))
    plain, scaled = (
        synthesis_tail(*modulated_conv2d(x.to(half), w * size, s * size, padding=1), bias=torch.ones(8), act="lrelu")
        for size in (1, 2.0**exponent)
    )
    assert plain.dtype == half and torch.equal(plain, scaled)
    exact = synthesis_tail(*modulated_conv2d(x, w, s, padding=1), bias=torch.ones(8), act="lrelu")
    torch.testing.assert_close(plain.float(), exact, rtol=0.02, atol=0.03)


def test_sums_stay_within_float16():
    """Without pre-normalization, 256 channels of large activations would leave its range of ±65504."""
    x, w, s = torch.full((1, 256, 4, 4), 256.0), torch.ones(1, 256, 3, 3), torch.full((1, 256), 4.0)
    y = synthesis_tail(*modulated_conv2d(x.half(), w, s, padding=1))
    # Demodulated, the sum of 2304 equal products has the size of one, times √2304.
    expected = torch.full((1, 1, 2, 2), 256 * math.sqrt(256 * 9))
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1].float(), expected, rtol=0.001, atol=0)


def test_image_outputs_keep_the_size_of_their_styles():
    x, w, s = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16), torch.ones(3, 4, 1, 1), torch.full((1, 4), 8.0)
    y, scale = modulated_conv2d(x, w, s, demodulate=False)
    assert scale is None and torch.equal(y, torch.full((1, 3, 2, 2), 32.0, dtype=torch.bfloat16))


# ---- Training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, precision", EVERYWHERE)
def test_gradients_are_those_of_float32(tmp_path, archive, device, precision):
    """In their direction and, as no loss is scaled, in their size. Second derivatives are in two of the phases."""
    exact, found = (trainer(tmp_path, archive, p, device) for p in ("fp32", precision))
    sides = [(t, t.reals.next_parts()) for t in (exact, found)]
    for phases in zip(exact.phases, found.phases, strict=True):
        a, b = (gradients(t, phase, reals) for phase, (t, reals) in zip(phases, sides, strict=True))
        assert a.keys() == b.keys() and all(g.dtype == torch.float32 for g in b.values())
        a, b = (torch.cat([g.flatten() for g in side.values()]) for side in (a, b))
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99, phases[0].name
        assert 0.93 < float(b.norm() / a.norm()) < 1.07 and not torch.equal(a, b), phases[0].name
    assert [phase.name for phase in exact.phases] == ["Gmain", "Gpl", "Dmain", "Dr1"]


def test_second_derivatives_come_through_bfloat16(tmp_path, archive):
    """R1 and path length differentiate gradients: these cross the blocks in bfloat16, and arrive in float32."""
    state = trainer(tmp_path, archive, "bf16").state
    seen = set()
    for module in (state.discriminator.b16.conv1, state.generator.synthesis.b16.conv1):
        module.register_full_backward_hook(lambda module, dx, dy: seen.update(g.dtype for g in dy))
    state.generator.requires_grad_(True)
    reals = torch.randn(4, 8, 16, 16, requires_grad=True)
    (slopes,) = torch.autograd.grad(state.discriminator(reals).sum(), reals, create_graph=True)
    assert seen == {torch.bfloat16} and slopes.dtype == torch.float32
    ws = torch.randn(2, state.generator.synthesis.num_ws, 16, requires_grad=True)
    (slopes,) = torch.autograd.grad(state.generator.synthesis(ws, noise_mode="const").sum(), ws, create_graph=True)
    assert seen == {torch.bfloat16} and slopes.dtype == torch.float32
    slopes.square().sum().backward()
    found = state.generator.synthesis.b16.conv1.weight.grad
    assert found.dtype == torch.float32 and found.isfinite().all() and found.any()


def test_weights_moments_and_means_are_float32(tmp_path, archive):
    running = trainer(tmp_path, archive, "bf16")
    running.step()
    assert {t.dtype for name, t in running.state.tensors().items() if not name.startswith("statistics")} == {
        torch.float32
    }


def test_a_state_goes_on_to_the_bit(tmp_path, archive):
    straight, first, second = (trainer(tmp_path, archive, "bf16") for _ in range(3))
    for _ in range(3):
        straight.step()
    first.step()
    tensors = {name: tensor.clone() for name, tensor in first.state.tensors().items()}
    second.state.load(tensors, first.state.position)
    second.reals.next_parts()
    for _ in range(2):
        second.step()
    for name, tensor in straight.state.tensors().items():
        assert torch.equal(tensor, second.state.tensors()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_training_in_bfloat16_goes_like_float32(tmp_path, seed):
    """All numbers stay finite, and the mean losses are those of float32 within 10 %, over the same 200 draws.

    Rounding grows in a training. At 16×16, 200 steps are few enough: two trainings in float32 whose first weights
    differ by a millionth are also within 5 %. At 32×32 these differ by 9 %.
    """
    archive = write_archive(tmp_path / "data.zip", count=48, seed=seed)
    size = dict(batch=8, cbase=256, cmax=32, z_dim=32, gamma=1.0)
    means = []
    for precision in ("fp32", "bf16"):
        running = tiny_trainer(tmp_path, archive, "stylegan2", precision=precision, **size)
        for _ in range(200):
            running.step()
        moments = running.state.statistics.collect()
        assert not any(m.mean for name, m in moments.items() if name.startswith("Health/bad_steps"))
        assert all(tensor.isfinite().all() for tensor in running.state.tensors().values())
        means.append({name: moments[f"Loss/{name}/loss"].mean for name in "GD"})
    for name in "GD":
        assert means[1][name] == pytest.approx(means[0][name], rel=0.1)


# ---- The command line -------------------------------------------------------------------------------------------


def train_py(*options, expected=0) -> str:
    result = CliRunner().invoke(train.main, [str(option) for option in options], catch_exceptions=False)
    assert result.exit_code == expected, result.output
    return result.output


def test_a_run_says_how_it_computes_and_keeps_to_it(tmp_path, archive):
    folder, begin = tmp_path / "run", ("--data", archive, *TINY_OPTIONS)
    output = train_py("--run-dir", folder, *begin, "--precision=bf16")
    assert "\nPrecision  bfloat16 from 8×8 up, float32 below\n" in output
    assert ", precision bf16, " in output and "fp16" not in output
    stored = json.loads((folder / "training_options.json").read_text())["config"]
    assert {stored[network]["half"] for network in ("generator", "discriminator")} == {"bfloat16"}
    row = train_py("--resume", folder, "--fp32=1", "--kimg=1", expected=2).splitlines()[-1]
    assert row.split() == ["--precision", "bf16", "fp32"]
    assert "Continuing from" in train_py("--resume", folder, "--kimg=0.02")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about CPUs")
def test_float16_asked_for_on_a_cpu_is_float32_and_says_so(tmp_path, archive):
    begin = ("--outdir", tmp_path / "runs", "--data", archive, *TINY_OPTIONS)
    told = "fp16 is for GPUs: on this device all is computed in float32; --precision=bf16 works here too\n"
    assert told in train_py(*begin, "--precision=fp16", "--dry-run")
    assert told not in train_py(*begin, "--dry-run")
    assert describe_precision(Generator(trained_config("fp16").generator)) == "float32"
    assert "contradict" in train_py(*begin, "--precision=fp16", "--fp32=1", expected=2)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    config, gpu = trained_config("bf16"), torch.device("cuda")
    monkeypatch.setattr("training.beginning.has_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match="^--precision=bf16: Tesla T4 has no bfloat16, .* use --precision=fp16$"):
        remarks_on_precision(config, "bf16", gpu)
    assert remarks_on_precision(trained_config("fp16"), "fp16", gpu) == []


# ---- Generation -------------------------------------------------------------------------------------------------


def test_generation_and_sheets_do_not_compute_in_bfloat16(tmp_path):
    """A slice does not depend on the others in its batch. In bfloat16 it would, by several gray levels."""
    archive = write_archive(tmp_path / "data.zip", resolution=64, count=4)
    running = trainer(tmp_path, archive, "bf16", cbase=2048, cmax=64)
    state, info = running.state, describe_training(running.config, SliceDataset(archive), sha256(archive))
    state.ema.load_state_dict(state.generator.state_dict())
    network = load_generator(save(state, info, tmp_path))
    assert network.info.generator.half == network.generator.config.half == "bfloat16"

    def compute_in(generator):
        return {block.half_type for block in generator.synthesis.blocks}

    assert compute_in(state.generator) == {None, torch.bfloat16}
    assert compute_in(state.ema) == compute_in(network.generator) == {None}
    alone, together = (
        np.stack([sample.stored for sample in generate(network, range(8), batch=n)]).astype(int) for n in (1, 8)
    )
    differences = np.abs(alone - together)
    assert differences[:, :4].max() <= 1 and differences[:, 4:].any(axis=1).mean() <= 0.001
    # And it is what the run has trained, up to rounding.
    z = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    in_half, found = state.generator(z, noise_mode="const"), network.generator(z, noise_mode="const")
    assert torch.equal(state.ema(z, noise_mode="const"), found) and not torch.equal(in_half, found)
    assert (in_half - found).square().mean() < 1e-3 * found.square().mean()
