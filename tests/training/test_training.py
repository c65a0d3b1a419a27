"""The training loop and its parts: data order, averages, lazy regularisation, what a run leaves behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import slices.dataset
import train
from commands import ROOT
from dnnlib.cli import arguments
from dnnlib.errors import UserError
from dnnlib.files import sha256
from dnnlib.runs import Log
from drawn import draw_slice, write_archive
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.dataset import SliceDataset
from slices.schema import BRATS, Schema
from torch_utils import checkpoint
from torch_utils.sampler import EndlessSampler
from torch_utils.stats import Statistics
from training import loss as losses
from training.config import DataConfig, find_recipe, resolve
from training.ema import ema_beta, update_ema
from training.loss import Minibatch
from training.networks.discriminator import Discriminator
from training.snapshot import KIND, VERSION, find_snapshot, load_generator
from training.training_loop import TrainingRun

TINY = {"kimg": 0.016, "batch": 4, "cbase": 64, "cmax": 8, "z_dim": 8, "map_depth": 2}
TINY_OPTIONS = arguments({**TINY, "workers": 0})


def tiny_config(data: Path, cfg="auto", **changes):
    dataset = SliceDataset(data, use_labels=changes.get("cond", False))
    data_config = DataConfig(str(data), cond=changes.pop("cond", False), workers=0)
    recipe = replace(find_recipe(cfg, dataset.resolution), **{**TINY, **changes})
    return resolve(recipe, data_config, dataset.schema, dataset.resolution, dataset.c_dim, snap=0)


def tiny_run(tmp_path: Path, data: Path, cfg="auto", **changes) -> TrainingRun:
    config = tiny_config(data, cfg, **changes)
    folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
    folder.mkdir()
    return TrainingRun(config, SliceDataset(data, use_labels=config.data.cond), folder, Log(folder / "log.txt"))


# ---- Parts of the loop ---------------------------------------------------------------------------------------


def test_endless_sampler_sees_everything_equally_often_in_an_order_that_changes():
    order = list(islice(EndlessSampler(50, seed=3), 50 * 40))
    assert len(set(order[:25])) == 25, "nothing comes back at once"
    counts = Counter(order)
    assert set(counts) == set(range(50)) and 25 <= min(counts.values()) and max(counts.values()) <= 60
    assert order[:50] != order[50:100]
    assert order == list(islice(EndlessSampler(50, seed=3), 50 * 40))
    assert order != list(islice(EndlessSampler(50, seed=4), 50 * 40))


def test_ema_half_life_and_buffers():
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=10**6, ramp=None) ** (10_000 / 32) == pytest.approx(0.5)
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=20_000, ramp=0.05) ** (1_000 / 32) == pytest.approx(0.5)
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=0, ramp=0.05) == 0
    model, average = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    model.weight.data.fill_(2)
    model.running_mean.fill_(7)
    average.weight.data.fill_(1)
    update_ema(average, model, 0.75)
    torch.testing.assert_close(average.weight.data, torch.full([3], 1.25))
    torch.testing.assert_close(average.running_mean, torch.full([3], 7.0))


def test_statistics_are_moments_since_the_last_look():
    statistics = Statistics()
    values = torch.randn(7)
    statistics.report("x", values[:3])
    statistics.report("x", values[3:])
    moments = statistics.collect()["x"]
    assert moments.num == 7
    assert moments.mean == pytest.approx(float(values.mean()))
    assert moments.std == pytest.approx(float(values.std(unbiased=False)))
    assert statistics.collect() == {}


# ---- A run ---------------------------------------------------------------------------------------------------


def test_lazy_regularisation_scales_the_optimiser(tmp_path, archive):
    run = tiny_run(tmp_path, archive)
    assert [p.name for p in run.phases] == ["Gmain", "Gpl", "Dmain", "Dr1"]
    g, d = run.phases[0].optimizer.defaults, run.phases[2].optimizer.defaults
    assert run.phases[1].optimizer is run.phases[0].optimizer and run.phases[3].optimizer is run.phases[2].optimizer
    assert g["lr"] == pytest.approx(0.0025 * 4 / 5) and g["betas"] == pytest.approx((0, 0.99 ** (4 / 5)))
    assert d["lr"] == pytest.approx(0.0025 * 16 / 17) and d["betas"] == pytest.approx((0, 0.99 ** (16 / 17)))
    plain = tiny_run(tmp_path, archive, pl_weight=0, gamma=0)
    assert [p.name for p in plain.phases] == ["Gmain", "Dmain"]
    assert plain.phases[0].optimizer.defaults["lr"] == pytest.approx(0.0025)


def test_a_minibatch_in_parts_has_the_gradient_of_the_whole(tmp_path, archive):
    """Gradient accumulation. Groups of one take the comparison within the minibatch out of it."""

    def gradients(batch_gpu: int) -> dict[str, torch.Tensor]:
        run = tiny_run(tmp_path, archive, batch=4, batch_gpu=batch_gpu, mixing=0, pl_weight=0)
        run.discriminator.b4.mbstd_group_size = 1
        found = {}
        for phase in run.phases:
            phase.optimizer.step = lambda: None
            torch.manual_seed(1)
            z, no_label = torch.randn(4, 8), torch.zeros(4, 0)
            real = run.codec.to_network(torch.stack([run.dataset[n].stored for n in range(4)]))
            run._optimise(phase, Minibatch(real, no_label, z, no_label))
            for name, parameter in phase.module.named_parameters():
                if parameter.grad is not None and not name.endswith("noise_strength"):  # fresh noise in each part
                    found[f"{phase.name} {name}"] = parameter.grad.clone()
        return found

    whole, parts = gradients(4), gradients(2)
    assert {name.split()[0] for name in whole} == {"Gmain", "Dmain", "Dr1"} and set(whole) == set(parts)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cond", [False, True])
def test_phases_have_the_published_weights(tmp_path, cond):
    """Each phase's gradient is that of its pure function, times its weight and the interval that it makes up for."""
    data = write_archive(tmp_path / "data.zip", labels=True)
    run = tiny_run(tmp_path, data, cond=cond, mixing=0, gamma=3, pl_weight=0.5)
    real = run.codec.to_network(torch.stack([run.dataset[n].stored for n in range(4)]))
    z, c, real_c = torch.randn(4, 8), *torch.randn(2, 4, 2 if cond else 0)
    generator, discriminator = run.generator, run.discriminator

    def fakes():
        return generator.synthesis(generator.mapping(z, c))

    def path_length():
        ws = generator.mapping(z[:2], c[:2])
        images = generator.synthesis(ws)
        lengths = losses.path_lengths(images, ws, torch.randn_like(images))
        return losses.path_length_penalty(lengths, torch.tensor(0.7))[0].mean() * 0.5 * 4

    def r1():
        images = real.clone().requires_grad_()
        return losses.r1_penalty(losses.r1_gradients(discriminator(images, real_c), images)).mean() * 1.5 * 16

    softplus = torch.nn.functional.softplus
    expected = {
        "Gmain": lambda: softplus(-discriminator(fakes(), c)).mean(),
        "Gpl": path_length,
        "Dmain": lambda: (softplus(discriminator(fakes(), c)) + softplus(-discriminator(real, real_c))).mean(),
        "Dr1": r1,
    }
    for phase in run.phases:
        phase.optimizer.step = lambda: None
        run.loss.pl_mean = torch.tensor(0.7)
        torch.manual_seed(2)
        torch.rand([])  # the draw that decides about style mixing
        before = generator.mapping.w_avg.clone()
        phase.module.requires_grad_(True)
        wanted = torch.autograd.grad(expected[phase.name](), list(phase.module.parameters()), allow_unused=True)
        torch.manual_seed(2)
        run._optimise(phase, Minibatch(real, real_c, z, c))
        for (name, parameter), gradient in zip(phase.module.named_parameters(), wanted, strict=True):
            if gradient is not None:
                scale = 1e-4 * float(gradient.abs().max())
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=scale + 1e-7, msg=name)
        moved = not torch.equal(generator.mapping.w_avg, before)
        assert moved == (phase.name != "Dr1"), "w_avg follows the fakes of Gmain, Gpl and Dmain"
        assert torch.equal(run.loss.pl_mean, torch.tensor(0.7)) == (phase.name != "Gpl")
        assert not run.loss.pl_mean.requires_grad


def test_training_moves_both_networks_and_is_reproducible(tmp_path, archive):
    runs = [tiny_run(tmp_path, archive) for _ in range(2)]
    before = [p.clone() for p in runs[0].generator.parameters()]
    for run in runs:
        torch.manual_seed(5)
        for _ in range(3):
            run._step()
    after = list(runs[0].generator.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for module in ("generator", "discriminator", "ema"):
        for a, b in zip(getattr(runs[0], module).parameters(), getattr(runs[1], module).parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_non_finite_gradients_are_counted_and_replaced(tmp_path, archive):
    run = tiny_run(tmp_path, archive)
    phase = run.phases[0]
    for parameter in phase.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    first = next(phase.module.parameters())
    first.grad.flatten()[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    run._replace_non_finite_gradients(phase)
    assert first.grad.flatten()[:3].tolist() == [0, 1e5, -1e5]
    assert run.statistics.collect()["Health/non_finite_gradients/Gmain"].mean == 3


@pytest.mark.parametrize("cfg, cond", [("auto", False), ("stylegan2", True), ("cifar", False)])
def test_a_run_leaves_its_files(tmp_path, cfg, cond):
    data = write_archive(tmp_path / "data.zip", labels=True)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", f"--cfg={cfg}", f"--cond={int(cond)}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"00000-data{'-cond' * cond}-{cfg}-batch4"
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("tick")]
    assert all(word in lines[-1] for word in ("kimg 0.0", "sec/tick", "sec/kimg", "maintenance", "cpumem", "gpumem"))
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert stats[-1]["Progress/kimg"]["mean"] == pytest.approx(0.016)
    assert {"Loss/G/loss", "Loss/D/loss", "Loss/D/label_share"} <= set(stats[0])
    assert 0 < stats[0]["Loss/D/label_share"]["mean"] < 1
    for name in ("reals.png", "fakesinit.png", "fakes000000.png"):
        Image.open(folder / name).verify()
    loaded = load_generator(folder)
    assert loaded.info.schema == BRATS and loaded.info.kimg == pytest.approx(0.016)
    assert loaded.generator.config.c_dim == (2 if cond else 0)
    assert loaded.info.label_names == (("HGG", "LGG") if cond else None)
    assert loaded.info.label_counts == ((12, 12) if cond else None)
    assert ("Classes: HGG (12 slices), LGG (12 slices)" in (folder / "log.txt").read_text()) == cond
    assert json.loads((folder / "training_options.json").read_text())["batch"] == 4


def test_another_schema_trains_as_well(tmp_path):
    plain = Schema(contrasts=("t1", "pd", "t2"))
    data = write_archive(tmp_path / "data.zip", schema=plain, count=8)
    run = tiny_run(tmp_path, data)
    outcome = run.run()
    assert load_generator(outcome.snapshot).generator(torch.zeros(1, 8)).shape == (1, 3, 16, 16)


def test_snapshot_holds_all_three_networks(tmp_path, archive):
    run = tiny_run(tmp_path, archive)
    snapshot = run.run().snapshot
    x = torch.randn(4, 8, 16, 16)
    tensors, metadata = checkpoint.load(snapshot, KIND, VERSION)
    discriminator = Discriminator(run.config.discriminator)
    discriminator.load_state_dict({k.removeprefix("D."): v for k, v in tensors.items() if k.startswith("D.")})
    assert torch.equal(discriminator(x), run.discriminator(x))
    for name, value in run.generator.state_dict().items():
        assert torch.equal(tensors[f"G.{name}"], value)
    assert metadata["training"]["data"]["path"] == "drawn.zip" and metadata["data_sha256"] == sha256(archive)
    z = torch.randn(2, 8)
    assert torch.equal(load_generator(snapshot).generator(z, noise_mode="const"), run.ema(z, noise_mode="const"))


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
    run = tiny_run(tmp_path, data)
    assert load_generator(run.run().snapshot).info.patients == ("drawn0-0", "drawn0-1", "drawn0-2", "real1", "real2")


def test_a_snapshot_that_does_not_say_whom_it_learned_from_is_refused(tmp_path, archive):
    tensors, metadata = checkpoint.load(tiny_run(tmp_path, archive).run().snapshot, KIND, VERSION)
    del metadata["patients"]
    for version, message in [
        (1, "version 1 of the network snapshot format; this program reads version 2"),
        (VERSION, "the field 'patients' is missing"),
    ]:
        checkpoint.save(tmp_path / "old.safetensors", tensors, metadata, KIND, version)
        with pytest.raises(UserError, match=message):
            load_generator(tmp_path / "old.safetensors")


def test_held_out_patients_are_refused(tmp_path):
    """Neither the test part, nor archives that share patients with what --exclude names; --exclude may be repeated."""
    real = write_archive(tmp_path / "train.zip", part="train")
    test = write_archive(tmp_path / "test.zip", count=6, part="test", seed=1)
    fake = write_archive(tmp_path / "fake.zip", count=2, per_patient=1, seed=2, seen=["drawn0-0", "drawn0-1"])
    common = [f"--outdir={tmp_path / 'runs'}", *TINY_OPTIONS]

    def invoke(*options):
        return CliRunner().invoke(train.main, [*common, *(str(o) for o in options)])

    for options, message in [
        (["--data", test], f"{test}: 6 of its 6 slices (2 of its 2 patients) are of the test part"),
        (["--data", test, "--dry-run"], "are of the test part"),
        (["--data", test, "--subset", 1], "are of the test part"),
        (["--data", real, "--exclude", test, "--exclude", real], "slices of drawn0-0, drawn0-1, drawn0-2 and 5 more;"),
        (["--data", fake, "--exclude", real], "generated slices of a GAN that learned from drawn0-0, drawn0-1;"),
        (
            ["--data", real, "--exclude", fake],
            "their GAN learned from count), but holds slices of drawn0-0",
        ),
        (["--data", real, "--exclude", tmp_path / "none.zip"], "none.zip: no such file"),
    ]:
        result = invoke(*options)
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()
    result = invoke("--data", real, "--exclude", test)
    assert result.exit_code == 0 and f"{real} shares no patient with {test}" in result.output, result.output


def test_dry_run_writes_nothing(tmp_path, archive):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "-n"])
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    assert '"r1_gamma"' in result.output and "By hand: batch 8\nWhat `auto` has" in result.output


def test_learning_rate_by_hand(tmp_path, archive):
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", "--batch=8", "--lrate=0.01", "-n"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 0 and '"lrate": 0.01' in result.output, result.output
    assert "By hand: batch 8, lrate 0.01\n" in result.output and "learning rate" not in result.output
    rates = {g["lr"] for phase in tiny_run(tmp_path, archive, lrate=0.01).phases for g in phase.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.01 * 4 / 5, 0.01 * 16 / 17])


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda p: p, [], "no such file"),
        (lambda p: p.write_bytes(b"nonsense"), [], "not a complete zip archive"),
        (write_archive, ["--cond=1"], "no class labels, which --cond needs"),
        (write_archive, ["--subset=99"], "--subset 99"),
        (write_archive, ["--batch=5"], "do not divide into groups"),
        (write_archive, ["--outdir=/dev/null/runs"], "a file is where a folder is needed"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(tmp_path, make, options, message):
    data = tmp_path / "data.zip"
    make(data)
    result = CliRunner().invoke(
        train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, *options]
    )
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_label_maps_that_are_not_one_hot_are_refused(tmp_path):
    """0 and 1 in place of 0 and 255: the GAN would see blank labels."""
    stored = draw_slice(np.random.RandomState(0), 16)
    stored[4:] //= 255
    with ArchiveWriter(tmp_path / "data.zip", BRATS, 16, {}) as archive:
        archive.add(stored, patient="a")
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={tmp_path / 'data.zip'}", *TINY_OPTIONS]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "00000000.npy are not one-hot" in result.stderr, result.output


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["in a worker", "in memory"])
def test_damage_met_while_training_is_one_message(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(slices.dataset, "MEMORY", memory)
    data = write_archive(tmp_path / "data.zip", count=8)
    content = bytearray(data.read_bytes())
    with zipfile.ZipFile(data) as archive:
        third = archive.getinfo(SliceDataset(data).archive.info.slices[2].file)
    content[third.header_offset + 90] ^= 0xFF
    data.write_bytes(content)
    options = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", *TINY_OPTIONS, "--workers=1", "--kimg=1"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2 and "Traceback" not in result.output and "worker" not in result.output
    assert f"{data}: the member {third.filename} is damaged" in result.output


NO_NUMBERS = ["kimg=inf", "kimg=nan", "lrate=nan", "lrate=inf", "lrate=0", "gamma=nan", "pl-weight=inf"]


@pytest.mark.parametrize("option", [*NO_NUMBERS, "seed=5000000000"])
def test_numbers_that_are_none(tmp_path, archive, option):
    result = CliRunner().invoke(train.main, [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", f"--{option}"])
    assert result.exit_code == 2 and not (tmp_path / "runs").exists(), result.output


def test_run_folders_are_numbered(tmp_path, archive):
    for _ in range(2):
        options = [f"--outdir={tmp_path / 'runs'}", f"--data={archive}", *TINY_OPTIONS]
        assert CliRunner().invoke(train.main, options, catch_exceptions=False).exit_code == 0
    assert sorted(p.name[:5] for p in (tmp_path / "runs").iterdir()) == ["00000", "00001"]


def test_find_snapshot_takes_the_latest(tmp_path):
    for kimg in (0, 200, 1000):
        (tmp_path / f"network-snapshot-{kimg:06d}.safetensors").touch()
    assert find_snapshot(tmp_path).name == "network-snapshot-001000.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no network-snapshot-NNNNNN.safetensors"):
        find_snapshot(tmp_path / "empty")


@pytest.mark.slow
def test_ctrl_c_saves_a_snapshot_first(tmp_path, archive):
    options = [f"--outdir={tmp_path}", f"--data={archive}", *TINY_OPTIONS, "--kimg=1000", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-c", "import slices.dataset, train; slices.dataset.MEMORY = 0; train.main()", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tick 0"):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the data workers too
    assert process.wait(timeout=60) == 130
    text = "".join(lines)
    assert "Traceback" not in text and "Saved" in text
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert 0 < load_generator(folder).info.kimg < 1000


def test_hostile_names_do_not_reach_the_run_folder():
    assert train.describe_run(DataConfig("../a b;c.zip"), "auto", None) == "a_b_c-auto"
    assert np.all([c.isprintable() for c in train.describe_run(DataConfig("ü\n.zip", mirror=True), "auto", 4)])
