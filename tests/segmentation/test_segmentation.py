import dataclasses
import errno
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import generate
import train as gan
from dnnlib.errors import UserError
from dnnlib.files import sha256
from segmentation import evaluate, fit, predict, report, scores, unet
from segmentation.__main__ import main
from segmentation.comparison import arms_table
from segmentation.config import TrainUNetConfig
from segmentation.data import PairDataset, loader
from segmentation.draws import Draw, Drawn, Draws
from segmentation.evaluate import evaluate_archive, load_evaluation
from segmentation.predict import predict_examinations, predict_slices
from slices.archive.format import Volume
from slices.archive.reader import ArchiveReader
from slices.archive.writer import ArchiveWriter
from slices.schema import BRATS, LesionClass, Region, Schema
from torch_utils import checkpoint

RING = Schema(
    contrasts=("t1", "flair"),
    classes=(LesionClass("core", "bright core", 1), LesionClass("rim", "grey rim", 2)),
    regions=(Region("whole", ("core", "rim")), Region("core", ("core",))),
)
SIZE = 32


def draw_slice(rng, schema=RING, size=SIZE, lesion=True, empty=False):
    """A head with a lesion of nested discs, each class with its own grey value; `empty`: nothing but background."""
    y, x = np.mgrid[:size, :size] / size
    head = ((y - 0.5) / 0.45) ** 2 + ((x - 0.5) / 0.38) ** 2 < 1
    contrasts = rng.integers(60, 90, (schema.num_contrasts, size, size))
    indices = np.zeros((size, size), np.uint8)
    centre, radius = rng.uniform(0.38, 0.62, 2), rng.uniform(0.14, 0.2)
    if lesion:
        for index in range(len(schema.classes), 0, -1):  # the first class is innermost
            here = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (radius * index / len(schema.classes)) ** 2
            indices[here & head] = index
            contrasts[:, here & head] = 250 - 60 * (index - 1)
    contrasts[:, ~head | empty] = 0
    indices[~head | empty] = 0
    return schema.join(contrasts.astype(np.uint8), indices)


def write_archive(path, slices, schema=RING, part=None, seen=()):
    """slices: (patient, stored slice) in the order of the archive."""
    slices = list(slices)
    with ArchiveWriter(path, schema, slices[0][1].shape[-1], {"tool": "test"}, seen=seen) as writer:
        for patient, stored in slices:
            writer.add(stored, patient=patient, part=part)
    return path


def write_patients(path, patients, part=None, seen=()):
    """An archive with one slice of each patient."""
    rng = np.random.default_rng(0)
    return write_archive(path, ((patient, draw_slice(rng)) for patient in patients), part=part, seen=seen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("segmentation")


@pytest.fixture(scope="module")
def train_zip(folder):
    rng = np.random.default_rng(1)
    slices = ((f"p{i // 4}", draw_slice(rng, lesion=i % 4 > 0)) for i in range(48))
    return write_archive(folder / "train.zip", slices)


@pytest.fixture(scope="module")
def test_zip(folder):
    """Four patients of six slices, two of them empty; the last patient has no lesion, the slices take turns."""
    rng = np.random.default_rng(2)
    slices = []
    for s in range(6):
        for patient in ("a", "b", "c", "d"):
            slices.append((patient, draw_slice(rng, lesion=patient != "d" and s < 3, empty=s in (0, 5))))
    return write_archive(folder / "test.zip", slices)


@pytest.fixture(scope="module")
def trained(folder, train_zip):
    config = TrainUNetConfig(steps=120, batch=8, lr=0.02, width=4)
    return fit.train_unet(config, [train_zip], folder / "trained")


@pytest.fixture(scope="module")
def evaluated(folder, trained, test_zip):
    return evaluate_archive(trained.model, test_zip, folder / "evaluated")


def plain_dice(prediction, truth, classes):
    p, t = np.isin(prediction, classes), np.isin(truth, classes)
    return 1.0 if not p.any() and not t.any() else 2 * (p & t).sum() / (p.sum() + t.sum())


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_small_unet_learns_a_visible_lesion(trained, evaluated):
    lesioned = [p for p in evaluated.examinations if p.patient != "d"]
    assert min(p.regions["whole"].dice for p in lesioned) > 0.8
    assert min(p.labels["rim"].dice for p in lesioned) > 0.7
    assert trained.curve[-1].loss < 0.3 * trained.curve[0].loss
    assert trained.curve[-1].step == 120


def test_training_leaves_the_model_its_record_and_its_log(trained, train_zip, folder):
    record = json.loads((folder / "trained" / "training.json").read_text())
    assert record["unet"]["training"]["steps"] == 120
    assert record["unet"]["archives"] == [
        {"file": "train.zip", "sha256": sha256(train_zip), "slices": 48, "patients": 12, "examinations": 12}
        | {"pixel": None, "unmeasured": 48, "remarks": []}
    ]
    assert record["unet"]["training"]["empty"] == 0.05 and record["unet"]["training"]["lesion_free"] is None
    assert record["unet"]["drawn"] == {"with_lesion": 684, "lesion_free": 228, "empty": 48}, "19 times each of 48"
    assert [point["step"] for point in record["curve"]] == list(range(1, 121))
    assert "step    120 of 120" in (folder / "trained" / "log.txt").read_text()
    assert sorted(p.name for p in (folder / "trained").iterdir()) == ["log.txt", "training.json", "unet.safetensors"]


def test_the_seed_alone_decides_the_result(tmp_path, train_zip):
    def run(name, seed, before):
        torch.manual_seed(before)
        fit.train_unet(TrainUNetConfig(steps=3, batch=4, width=2, seed=seed), [train_zip], tmp_path / name)
        return checkpoint.load(tmp_path / name / fit.MODEL, unet.KIND, unet.VERSION).tensors

    first, again, other = run("first", 5, before=0), run("again", 5, before=1), run("other", 6, before=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "first" / fit.MODEL).read_bytes() == (tmp_path / "again" / fit.MODEL).read_bytes()
    assert not torch.equal(first["final_conv.weight"], other["final_conv.weight"])


def test_training_does_not_disturb_the_callers_random_numbers(tmp_path, train_zip):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit.train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [train_zip], tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_an_interrupted_training_leaves_no_model_and_keeps_the_old_one(tmp_path, train_zip, monkeypatch):
    config = TrainUNetConfig(steps=1, batch=2, width=2)
    fit.train_unet(config, [train_zip], tmp_path / "old")
    before = (tmp_path / "old" / fit.MODEL).read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "_optimize", interrupted)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            fit.train_unet(config, [train_zip], tmp_path / name, force=True)
    assert not (tmp_path / "new" / fit.MODEL).exists() and not (tmp_path / "new" / fit.RECORD).exists()
    assert (tmp_path / "old" / fit.MODEL).read_bytes() == before


def test_a_model_that_appears_meanwhile_stays_and_keeps_its_record(tmp_path, train_zip, monkeypatch):
    def meanwhile(*_):
        (tmp_path / "unet.safetensors").write_text("another's")
        return ()

    monkeypatch.setattr(fit, "_optimize", meanwhile)
    with pytest.raises(UserError, match="unet.safetensors has appeared while its content was made"):
        fit.train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [train_zip], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "unet.safetensors"]
    assert (tmp_path / "unet.safetensors").read_text() == "another's"


def test_a_loss_that_runs_off_is_reported(tmp_path, train_zip):
    with pytest.raises(UserError, match="smaller --lr"):
        fit.train_unet(TrainUNetConfig(steps=6, batch=4, width=2, lr=1e30), [train_zip], tmp_path)
    assert not (tmp_path / fit.MODEL).exists()


def test_the_learning_rate_falls_along_a_cosine(tmp_path, train_zip, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    fit.train_unet(TrainUNetConfig(steps=5, batch=2, width=2, lr=0.01), [train_zip], tmp_path)
    assert rates == pytest.approx([0.005 * (1 + np.cos(np.pi * k / 5)) for k in range(5)])


def test_the_loss_is_dice_of_the_lesions_plus_cross_entropy_of_all_classes():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(2, 3, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_hot = np.moveaxis(np.eye(3)[truth], -1, 1)
    cross_entropy = -(one_hot * np.log(p)).sum(axis=1).mean()
    soft = 2 * (p * one_hot).sum(axis=(0, 2, 3)) / (p.sum(axis=(0, 2, 3)) + one_hot.sum(axis=(0, 2, 3)))
    expected = cross_entropy + 1 - soft[1:].mean()
    found = fit.segmentation_loss()(torch.from_numpy(logits), torch.from_numpy(truth)[:, None])
    assert found.item() == pytest.approx(expected, rel=1e-4)


# --- data -------------------------------------------------------------------------------------------------------------


def test_flips_move_image_and_labels_together(train_zip):
    union = PairDataset([train_zip])
    stored = union.archives[0].read(3)
    contrasts, indices = RING.split(stored)
    plain, flipped = union[Draw(3, False)], union[Draw(3, True)]
    assert (plain.contrasts.numpy() == contrasts).all() and (plain.indices.numpy() == indices).all()
    assert (flipped.contrasts.numpy() == contrasts[:, :, ::-1]).all()
    assert (flipped.indices.numpy() == indices[:, ::-1]).all() and not (indices == indices[:, ::-1]).all()


def test_mixing_draws_every_slice_of_the_union_equally_often(tmp_path):
    rng = np.random.default_rng(0)
    few = write_archive(tmp_path / "few.zip", (("f", draw_slice(rng)) for _ in range(3)))
    many = write_archive(tmp_path / "many.zip", (("m", draw_slice(rng)) for _ in range(7)))
    union = PairDataset([few, many])
    assert len(union) == 10
    assert (union[Draw(2, False)].contrasts.numpy() == union.archives[0].read(2)[:2]).all()
    assert (union[Draw(3, False)].contrasts.numpy() == union.archives[1].read(0)[:2]).all()
    draws = [draw for batch in Draws(union.has_lesion, TrainUNetConfig(steps=500, batch=4, empty=0)) for draw in batch]
    assert Counter(draw.slice for draw in draws) == {n: 200 for n in range(10)}
    assert 850 < sum(draw.flip for draw in draws) < 1150
    assert {draw.slice for draw in draws[:10]} == set(range(10)), "shuffled, not drawn with replacement"
    assert [d.slice for d in draws[:10]] != [d.slice for d in draws[10:20]]


def test_a_batch_may_be_larger_than_the_archive():
    (batch,) = Draws(np.ones(3, bool), TrainUNetConfig(steps=1, batch=8, empty=0))
    assert len(batch) == 8 and {draw.slice for draw in batch} == {0, 1, 2}


@pytest.mark.parametrize("batch, steps, empty, lesion_free", [(8, 40, 0.05, 0.2), (7, 29, 0.29, 0.31), (3, 5, 0, 0.9)])
def test_shares_are_exact_over_a_whole_training_and_even_in_it(train_zip, batch, steps, empty, lesion_free):
    union = PairDataset([train_zip])  # 36 of 48 slices have a lesion
    assert np.flatnonzero(~union.has_lesion).tolist() == list(range(0, 48, 4))
    draws = union.draws(TrainUNetConfig(steps, batch, seed=3, empty=empty, lesion_free=lesion_free))
    batches = [[d.slice for d in one] for one in draws]
    assert [len(one) for one in batches] == [batch] * steps
    sorts = {"empty": lambda n: n is None, "lesion_free": lambda n: n is not None and not union.has_lesion[n]}
    for name, is_of in sorts.items():
        share = {"empty": empty, "lesion_free": lesion_free}[name]
        counts = np.array([sum(map(is_of, one)) for one in batches])
        assert counts.sum() == round(share * batch * steps) == getattr(draws.count(), name)
        assert np.abs(counts - share * batch).max() < 2, "in every batch as nearly as can be"
    assert sum(draws.count().__dict__.values()) == batch * steps
    times = Counter(n for one in batches for n in one if n is not None)
    for lesion in (True, False):  # of a sort, every slice is used equally often
        of_sort = [times[n] for n in np.flatnonzero(union.has_lesion == lesion).tolist()]
        assert max(of_sort) - min(of_sort) <= 1
    assert batches == [[d.slice for d in one] for one in draws]


@pytest.mark.parametrize("lesion_free, steps", [(None, 1), (None, 35), (0.0, 7), (0.3, 35)])
def test_what_is_drawn_is_counted_without_drawing_it(train_zip, lesion_free, steps):
    union = PairDataset([train_zip])
    draws = union.draws(TrainUNetConfig(steps, batch=7, seed=1, lesion_free=lesion_free))
    numbers = list(draws.numbers())
    lesion = [union.has_lesion[n] for n in numbers if n is not None]
    assert draws.count() == Drawn(sum(lesion), len(lesion) - sum(lesion), numbers.count(None))
    many = union.draws(TrainUNetConfig(48 * 10**9, batch=20, lesion_free=lesion_free)).count()
    assert many.empty == 48 * 10**9 and many.lesion_free == {None: 228, 0.0: 0, 0.3: 288}[lesion_free] * 10**9


def test_a_blank_slice_is_background_in_every_contrast_and_in_truth(train_zip):
    blank = PairDataset([train_zip])[Draw(None, True)]
    assert blank.contrasts.shape == (2, SIZE, SIZE) and blank.indices.shape == (SIZE, SIZE)
    assert blank.contrasts.dtype == blank.indices.dtype == torch.uint8
    assert not blank.contrasts.any() and not blank.indices.any()


def test_answers_that_are_no_numbers_are_refused():
    schema, contrasts = RING, np.zeros((1, 2, SIZE, SIZE), np.uint8)
    network = unet.build_unet(unet.configure_unet(schema, SIZE, width=1))
    torch.nn.init.constant_(network.final_conv.weight, 3e38)
    model = unet.TrainedUNet(network, SimpleNamespace(schema=schema))
    with pytest.raises(UserError, match="not finite numbers"):
        predict_slices(model, contrasts + np.arange(SIZE, dtype=np.uint8))


@pytest.mark.parametrize("name, value", [("seed", 10**20), ("steps", 10**23), ("batch", 10**12), ("workers", 10**5)])
def test_numbers_that_nothing_can_hold_are_refused(name, value):
    with pytest.raises(UserError, match=f"--{name} {value}: expected a whole number from"):
        TrainUNetConfig(**{"steps": 1, name: value})


def test_a_network_leaves_empty_slices_alone(trained):
    """It has seen some, though no archive has any."""
    assert not predict_slices(unet.load_unet(trained.model), np.zeros((1, 2, SIZE, SIZE), np.uint8)).any()


def test_slices_read_by_workers_are_those_held_in_memory(train_zip):
    def batches(memory):
        union = PairDataset([train_zip], memory=memory)
        assert union.in_memory == bool(memory)
        return list(
            loader(
                union, Draws(union.has_lesion, TrainUNetConfig(steps=4, batch=5, seed=7, empty=0)), workers=2, pin=False
            )
        )

    held, read = batches(1 << 30), batches(0)
    assert len(held) == len(read) == 4 and held[0].contrasts.shape == (5, 2, SIZE, SIZE)
    assert held[0].contrasts.dtype == held[0].indices.dtype == torch.uint8
    for one, other in zip(held, read, strict=True):
        assert torch.equal(one.contrasts, other.contrasts) and torch.equal(one.indices, other.indices)


# --- the network ------------------------------------------------------------------------------------------------------


def test_a_loaded_unet_gives_the_same_logits(trained, tmp_path):
    first = unet.load_unet(trained.model)
    unet.save_unet(tmp_path / "again.safetensors", first)
    again = unet.load_unet(tmp_path / "again.safetensors")
    assert again.info == first.info == trained.unet
    x = torch.rand(2, 2, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        assert torch.equal(first.network(x), again.network(x))
        assert first.network(x).shape == (2, 3, SIZE, SIZE)


def test_width_scales_every_level():
    config = unet.configure_unet(BRATS, 256, 32)
    assert (config.in_channels, config.out_channels) == (4, 4)
    assert config.features == (32, 32, 64, 128, 256, 32)
    small, large = (
        sum(p.numel() for p in unet.build_unet(dataclasses.replace(config, width=w)).parameters()) for w in (4, 8)
    )
    assert 3 < large / small < 4.2


def test_the_prediction_is_the_networks_own_answer_everywhere(trained):
    rng = np.random.default_rng(0)
    net = unet.load_unet(trained.model)
    for p in net.network.final_conv.parameters():
        torch.nn.init.zeros_(p)
    net.network.final_conv.bias.data[2] = 5.0  # class 2 everywhere
    found = predict_slices(net, np.stack([RING.split(draw_slice(rng, empty=e))[0] for e in (False, True)]))
    assert found.dtype == np.uint8 and (found == 2).all(), "nothing is hidden"


# --- scores -----------------------------------------------------------------------------------------------------------


def test_dice_is_that_of_the_stacked_volume():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (6, 16, 16)) * (rng.random((6, 16, 16)) < 0.2)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 4, truth.shape))
    truth[3:], prediction[3:] = 0, 0  # half of the slices are empty, as in a real volume
    result = scores.score_examination("p", prediction, truth, np.ones(truth.shape, bool), BRATS)
    for target in scores.targets_of(BRATS):
        overlap = result.result(target)
        assert overlap.dice == pytest.approx(plain_dice(prediction, truth, target.classes), abs=1e-6)
        assert overlap.truth == np.isin(truth, target.classes).sum()
        assert overlap.predicted == np.isin(prediction, target.classes).sum()
        of_slices = np.mean([plain_dice(p, t, target.classes) for p, t in zip(prediction, truth, strict=True)])
        assert overlap.dice < of_slices - 0.1, "averaging slices would flatter"
    assert result.regions["ET"] == result.labels["ET"]
    assert result.regions["WT"].truth == sum(o.truth for o in result.labels.values())


@pytest.mark.parametrize("in_truth, in_prediction, expected", [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0)])
def test_dice_of_what_is_empty(in_truth, in_prediction, expected):
    truth, prediction = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    truth[0, 0, 0], prediction[0, 0, 0] = in_truth, in_prediction
    one = Schema(("t1",), (LesionClass("MS", "lesion", 1),))  # a single target: MONAI treats one channel apart
    everywhere = np.ones(truth.shape, bool)
    assert scores.score_examination("p", prediction, truth, everywhere, one).labels["MS"].dice == expected
    assert scores.score_examination("p", prediction, truth, everywhere, BRATS).labels["NCR"].dice == expected
    assert scores.score_examination("p", prediction, truth, everywhere, BRATS).labels["ET"].dice == 1


def test_both_dice_and_the_voxels_between_them_by_hand():
    """4 voxels of core are found, and 4 more of core and 2 of rim outside the head; 2 of the truth's rim lie there."""
    truth, prediction = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    inside = np.ones(truth.shape, bool)
    inside[1] = False
    truth[0, 0], prediction[0, 0] = 1, 1
    prediction[1, 0], prediction[1, 1, :2], truth[1, 1, :2] = 1, 2, 2
    found = scores.score_examination("p", prediction, truth, inside, RING, volume="v", of=9)
    core, rim, whole = found.labels["core"], found.labels["rim"], found.regions["whole"]
    assert (core.dice, core.masked_dice, core.removed) == (pytest.approx(2 * 4 / (8 + 4)), 1.0, 4)
    assert (rim.dice, rim.masked_dice, rim.removed) == (1.0, 0.0, 2), "a mask may also take what is right"
    assert (whole.truth, whole.predicted, whole.removed, found.removed) == (6, 10, 6, 6)
    assert whole.dice == pytest.approx(2 * 6 / 16) and whole.masked_dice == pytest.approx(2 * 4 / 10)
    assert (found.slices, found.of, found.volume) == (2, 9, "v")


def test_summaries_are_over_patients():
    target = scores.targets_of(RING)[0]

    def examination(dice, truth, patient):
        return scores.ExaminationDice(patient, None, 1, None, {"whole": scores.TargetDice(dice, truth, 5, 1, 7)}, {})

    three = [examination(0.5, 9, "p"), examination(1.0, 0, "q"), examination(0.9, 3, "r")]
    summary = scores.summarize(three, target)
    assert summary.mean == pytest.approx(0.8) and summary.empty_truth == 1
    assert summary.sd == pytest.approx(np.std([0.5, 1.0, 0.9], ddof=1))
    assert str(summary) == "0.800 ± 0.265" and summary.masked == "1.000 ± 0.000" and summary.removed == 21
    assert str(scores.summarize([examination(0.5, 9, "p")], target)) == "0.500"
    twice = scores.summarize([*three, examination(0.1, 0, "r"), examination(0.2, 0, "r")], target)
    assert twice.mean == pytest.approx((0.5 + 1.0 + (0.9 + 0.1 + 0.2) / 3) / 3) and twice.empty_truth == 3
    assert twice.sd == pytest.approx(np.std([0.5, 1.0, 0.4], ddof=1)), "n is the number of patients"


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_the_numbers_of_results_json_add_up(evaluated, trained, test_zip, folder):
    content = json.loads((folder / "evaluated" / "results.json").read_text())
    assert content["data"] == (
        {"file": "test.zip", "sha256": sha256(test_zip), "slices": 24, "patients": 4, "examinations": 4}
        | {"pixel": None, "unmeasured": 24, "remarks": []}
    )
    assert content["model"]["sha256"] == sha256(trained.model)
    assert [p["patient"] for p in content["examinations"]] == ["a", "b", "c", "d"]
    assert [(p["slices"], p["of"]) for p in content["examinations"]] == [(6, None)] * 4
    for kind, names in (("regions", ["whole", "core"]), ("labels", ["core", "rim"])):
        assert list(content[kind]) == names
        for name in names:
            for dice, mean, sd in (("dice", "mean", "sd"), ("masked_dice", "masked_mean", "masked_sd")):
                values = [p[kind][name][dice] for p in content["examinations"]]
                assert content[kind][name][mean] == pytest.approx(np.mean(values))
                assert content[kind][name][sd] == pytest.approx(np.std(values, ddof=1))
            assert content[kind][name]["removed"] == sum(p[kind][name]["removed"] for p in content["examinations"])
            assert content[kind][name]["empty_truth"] == 1
    assert load_evaluation(folder / "evaluated" / "results.json") == evaluated


def test_patients_are_put_together_from_slices_that_take_turns(evaluated, trained, test_zip):
    reader, net = ArchiveReader(test_zip), unet.load_unet(trained.model)
    names = [("c", None), ("a", None)]
    for name, one in zip(names, predict_examinations(net, reader, names, batch=5), strict=True):
        stored = np.stack([reader.read(i) for i in reader.by_examination()[name]])
        contrasts, truth = RING.split(stored)
        assert (one.truth == truth).all() and (one.background == contrasts[:, -1]).all()
        assert (one.inside == (contrasts > 0).any(axis=1)).all()
        (found,) = (e for e in evaluated.examinations if e.patient == name[0])
        answer = predict_slices(net, contrasts)
        assert found.regions["whole"].dice == pytest.approx(plain_dice(answer, truth, (1, 2)), abs=1e-3)
        masked = np.where(one.inside, answer, 0)
        assert found.regions["whole"].masked_dice == pytest.approx(plain_dice(masked, truth, (1, 2)), abs=1e-3)
        assert abs(found.removed - (answer[~one.inside] > 0).sum()) <= 3  # answers may differ by the batch's size


def test_generated_slices_are_patients_of_their_own(tmp_path, trained):
    rng = np.random.default_rng(0)
    fakes = tmp_path / "fake.zip"
    with ArchiveWriter(fakes, RING, SIZE, {"tool": "test"}) as writer:
        for seed in range(70):
            writer.add(draw_slice(rng), patient=f"seed{seed:04d}", seed=seed)
    result = evaluate_archive(Path(trained.model).parent, fakes, tmp_path / "out")
    assert len(result.patients) == 70 and result.regions["whole"].mean > 0.8
    assert report.describe_data(result) == "fake.zip: 70 patients, 70 slices (1 per patient)"


LPS = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def write_volumes(path, volumes, slices=range(4), of=4, pixel=1.0, made=None, **options):
    """An archive of volumes, {name: patient}, with these slices of as many as `of`."""
    rng = np.random.default_rng(5)
    windows = dict.fromkeys(RING.contrasts, (0.0, 1.0))
    with ArchiveWriter(path, RING, SIZE, made or {}, **options) as writer:
        for name, patient in volumes.items():
            writer.volumes[name] = Volume(patient, (SIZE, SIZE, of), LPS, pixel, windows)
            for k in slices:
                writer.add(draw_slice(rng), patient=patient, volume=name, index=k)
    return path


def test_examinations_of_a_patient_are_evaluated_apart(tmp_path, trained):
    made = {"voxels": {"labels that are ignored": 7, "odd": "x"}, "split": {"part": "test", "test": ["p", "q", "z"]}}
    visits = write_volumes(tmp_path / "v.zip", {"p-000": "p", "q-000": "q", "p-001": "p"}, made=made)
    result = evaluate_archive(trained.model, visits, tmp_path / "out")
    assert [(e.patient, e.volume, e.slices, e.of) for e in result.examinations] == [
        ("p", "p-000", 4, 4),
        ("q", "q-000", 4, 4),
        ("p", "p-001", 4, 4),
    ]
    dice = [e.regions["whole"].dice for e in result.examinations]
    assert len(set(dice)) == 3
    assert result.regions["whole"].mean == pytest.approx(((dice[0] + dice[2]) / 2 + dice[1]) / 2)
    assert (result.data.patients, result.data.examinations) == (2, 3)
    assert report.describe_data(result) == "v.zip: 3 examinations of 2 patients, 12 slices (4 per examination)"
    notes = report.evaluation_table(result).notes
    assert notes[0] == (
        "mean ± SD over patients: 3 examinations of 2 patients, 12 slices, all that their volumes have; "
        "a patient counts once, with the mean of the examinations"
    )
    assert notes[1:3] == (
        "v.zip: 1 of the 3 patients on this side of the split have no slice here",
        "v.zip: labels that are ignored: 7 voxels",
    )
    assert not any("lacks" in note or "unknown volume" in note for note in notes)


def test_incomplete_volumes_are_told(tmp_path, trained):
    some = write_volumes(tmp_path / "some.zip", {"a": "a", "b": "b"}, slices=(1, 5), of=7)
    code, output = run("evaluate", "--model", trained.model, "--data", some, "--outdir", tmp_path / "out")
    words = (
        "Dice of 4 of 14 slices: the archive lacks slices of 2 of 2 examinations, so this is not the Dice of whole "
        "volumes"
    )
    assert code == 0 and words in output, output
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert words in content["notes"] and [(e["slices"], e["of"]) for e in content["examinations"]] == [(2, 7)] * 2
    result = load_evaluation(tmp_path / "out" / "results.json")
    table = arms_table({"R": result})
    assert words in table.text() and words in table.markdown()


def test_pixels_of_another_size_are_refused_unless_one_insists(tmp_path):
    fine = write_volumes(tmp_path / "fine.zip", {"a": "a"}, pixel=3.125)
    nearly = write_volumes(tmp_path / "nearly.zip", {"b": "b"}, pixel=3.13)
    coarse = write_volumes(tmp_path / "coarse.zip", {"c": "c"}, pixel=3.75)
    fakes = write_archive(tmp_path / "fakes.zip", [("f", draw_slice(np.random.default_rng(0)))], seen=["z"])
    known = tmp_path / "known.zip"
    with ArchiveWriter(known, RING, SIZE, {}, seen=["z"], pixel=(3.125, 3.125)) as writer:
        writer.add(draw_slice(np.random.default_rng(0)), patient="g", seed=1)
    for name, data in {"real": [fine], "both": [fine, coarse], "fake": [fakes], "known": [known]}.items():
        code, output = run("train", *(w for d in data for w in ("--data", d)), "--outdir", tmp_path / name, *TINY)
        assert code == 0 and ("pixels of 3.12 to 3.75 mm: was it meant" in output) == (name == "both"), output
        assert ("pixel size unknown: 1 slice of fakes.zip" in output) == (name == "fake")
    assert unet.load_unet(tmp_path / "both" / fit.MODEL).info.archives[1].pixel == (3.75, 3.75)

    def evaluate(model, data, *options):
        return ("evaluate", "--model", tmp_path / model, "--data", data, "--outdir", tmp_path / "out", *options)

    for model in ("real", "known"):
        output = refused(*evaluate(model, coarse))
        assert "coarse.zip has pixels of 3.75 mm, but" in output and "learned from pixels of 3.12 mm" in output
        assert "--fov" in output and "--allow-other-pixels" in output and not (tmp_path / "out").exists()
    assert run(*evaluate("both", write_volumes(tmp_path / "between.zip", {"d": "d"}, pixel=3.4)))[0] == 0
    assert run(*evaluate("real", nearly, "--force"))[0] == 0
    code, output = run(*evaluate("fake", coarse, "--force"))
    assert code == 0 and "pixel size unknown and not compared: 1 slice of fakes.zip" in output
    code, output = run(*evaluate("real", coarse, "--force", "--allow-other-pixels"))
    words = "the U-Net learned from pixels of 3.12 mm and was tested on pixels of 3.75 mm"
    assert code == 0 and words in output, output
    result = load_evaluation(tmp_path / "out" / "results.json")
    assert any(words in note for note in result.notes) and f"R: {words}" in arms_table({"R": result}).text()


def test_label_maps_of_another_coding_are_refused(tmp_path, trained):
    """As 0 and 1, which `split` would take for nothing but background or anything."""
    rng = np.random.default_rng(0)
    good = draw_slice(rng)
    for i, wrong in enumerate([np.where(good[2:] > 0, 1, 0), np.where(good[2:] > 0, 254, 1), good[2:] * 0]):
        stored = np.concatenate([good[:2], wrong.astype(np.uint8)])
        path = write_archive(tmp_path / f"{i}.zip", [("a", good), ("b", stored)])
        for command in (
            ("train", "--data", path, "--steps", 1, "--outdir", tmp_path / "new"),
            ("evaluate", "--model", trained.model, "--data", path, "--outdir", tmp_path / "new"),
        ):
            output = refused(*command)
            assert f"{path}: the label maps of slices/00000/00000001.npy are not one-hot" in output
        assert not (tmp_path / "new").exists()


def test_a_schema_without_regions_is_evaluated_by_its_labels(tmp_path):
    one = Schema(("t1", "t2", "flair"), (LesionClass("MS", "", 1),))
    rng = np.random.default_rng(0)
    archive = write_archive(tmp_path / "ms.zip", (("p", draw_slice(rng, one)) for _ in range(2)), one)
    record = fit.train_unet(TrainUNetConfig(steps=1, batch=2, width=2), [archive], tmp_path)
    result = evaluate_archive(record.model, archive, tmp_path, allow_overlap=True)
    assert result.regions == {} and result.labels["MS"].sd is None
    assert (tmp_path / "patients.png").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def refused(*arguments):
    """Run a command that must end with exit code 2 and one line."""
    code, output = run(*arguments)
    assert code == 2 and output.startswith("error: ") and output.count("\n") == 1, output
    return output


def test_the_commands_work_together(tmp_path, train_zip, test_zip):
    options = ("--steps", 2, "--batch", 2, "--width", 2, "--lr", 0.01, "--seed", 3, "--workers", 0)
    code, output = run("train", "--data", train_zip, "--data", train_zip, "--outdir", tmp_path, *options)
    assert code == 0 and "train.zip (48 slices, 12 patients) + train.zip" in output, output
    code, output = run("evaluate", "--model", tmp_path, "--data", test_zip, "--outdir", tmp_path)
    assert code == 0 and "4 patients, 24 slices (6 per patient)" in output, output
    assert "whole (region)" in output and "rim (label)" in output and "empty truth" in output
    assert "unet.safetensors exists already" in refused(
        "train", "--data", train_zip, "--steps", 1, "--outdir", tmp_path
    )
    again = (
        "evaluate",
        "--model",
        tmp_path / "unet.safetensors",
        "--data",
        test_zip,
        "--outdir",
        tmp_path,
        "--batch",
        5,
    )
    assert "results.json exists already" in refused(*again)
    assert run(*again, "--force")[0] == 0


@pytest.mark.parametrize(
    "option, value", [("steps", 0), ("batch", 0), ("lr", 0), ("lr", "nan"), ("width", 0), ("seed", -1), ("workers", -1)]
)
def test_options_out_of_range_are_refused(tmp_path, train_zip, option, value):
    steps = () if option == "steps" else ("--steps", 1)
    output = refused("train", "--data", train_zip, "--outdir", tmp_path / "new", *steps, f"--{option}", value)
    assert f"--{option}" in output and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "shares, words",
    [
        (("--empty", 1), "--empty 1: expected a share from 0"),
        (("--lesion-free", "nan"), "--lesion-free nan"),
        (("--empty", 0.5, "--lesion-free", 0.5), "leave no slice with lesion"),
    ],
)
def test_shares_out_of_range_are_refused(tmp_path, train_zip, shares, words):
    output = refused("train", "--data", train_zip, "--outdir", tmp_path / "new", "--steps", 1, *shares)
    assert words in output and not (tmp_path / "new").exists()


def test_a_share_of_slices_that_are_not_there_is_refused(tmp_path, train_zip):
    rng = np.random.default_rng(0)
    archives = {
        "real": write_archive(tmp_path / "real.zip", [("a", draw_slice(rng))]),
        "fake": write_archive(tmp_path / "fake.zip", [("g", draw_slice(rng))], seen=["a"]),
        "healthy": write_archive(tmp_path / "healthy.zip", [("h", draw_slice(rng, lesion=False))]),
    }

    def train(*names, share=0.2):
        data = [word for name in names for word in ("--data", archives[name])]
        return ("train", *data, "--lesion-free", share, "--outdir", tmp_path / "new", *TINY)

    output = refused(*train("fake"))
    assert "fake.zip: all 1 slices have a lesion, but --lesion-free 0.2 asks for others: train their GAN" in output
    assert "make the archive with convert --lesion-free" in refused(*train("real", "fake"))
    assert "healthy.zip: none of the 1 slices has a lesion" in refused(*train("healthy"))
    assert not (tmp_path / "new").exists()
    assert run(*train("real", share=0))[0] == 0
    code, output = run(*train("real", "healthy", share=0.5), "--force")
    assert code == 0 and "slices to draw: 1 with lesion, 1 without, 0 empty" in output


def test_names_alike_are_told_in_training_in_results_and_in_tables(tmp_path):
    train = write_patients(tmp_path / "train.zip", ["TCGA_DU_7294", "a"])
    test = write_patients(tmp_path / "test.zip", ["tcga-du-07294", "b"])
    code, output = run("train", "--data", train, "--exclude", test, "--outdir", tmp_path / "unet", *TINY)
    assert code == 0 and "as far as their names tell" in output
    assert "warning: names so alike that they may be of one patient: TCGA_DU_7294 and tcga-du-07294\n" in output
    code, output = run("evaluate", "--model", tmp_path / "unet", "--data", test, "--outdir", tmp_path / "out")
    assert code == 0 and "TCGA_DU_7294 and tcga-du-07294" in output
    found = load_evaluation(tmp_path / "out" / "results.json")
    (note,) = [note for note in found.notes if "names so alike" in note]
    assert [n for n in arms_table({"R": found}).notes if "alike" in n] == [f"R: {note}"]


def test_where_results_cannot_be_written_no_network_runs(tmp_path, trained, test_zip, monkeypatch):
    monkeypatch.setattr(predict, "predict_slices", lambda *_: pytest.fail("the network ran"))
    (tmp_path / "file").write_text("")
    command = ("evaluate", "--model", trained.model, "--data", test_zip, "--outdir")
    assert "a file is where a folder is needed" in refused(*command, tmp_path / "file")
    assert "a file is where a folder is needed" in refused(*command, tmp_path / "file" / "below")
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    assert "results.json is a folder" in refused(*command, tmp_path / "out")

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(evaluate.tempfile, "TemporaryFile", read_only)
    assert "Read-only file system" in refused(*command, tmp_path / "new") and not (tmp_path / "new").exists()


def test_want_of_memory_names_what_to_lower(tmp_path, trained, train_zip, test_zip, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(fit, "to_input", out_of_memory)
    monkeypatch.setattr(predict, "to_input", out_of_memory)
    code, output = run("train", "--data", train_zip, "--outdir", tmp_path / "a", *TINY)
    assert code == 2 and re.search(r"^error: out of memory .*: lower --batch or --width$", output, re.MULTILINE)
    output = refused("evaluate", "--model", trained.model, "--data", test_zip, "--outdir", tmp_path / "b")
    assert "out of memory" in output and "lower --batch" in output and "--width" not in output


def test_archives_that_cannot_be_trained_on_are_refused(tmp_path, train_zip):
    rng = np.random.default_rng(0)
    bare = Schema(("t1", "flair"))
    archives = {
        "no classes": write_archive(tmp_path / "bare.zip", [("p", draw_slice(rng, bare))], bare),
        "too small": write_archive(tmp_path / "small.zip", [("p", draw_slice(rng, size=16))]),
        "large": write_archive(tmp_path / "large.zip", [("p", draw_slice(rng, size=64))]),
        "brats": write_archive(tmp_path / "brats.zip", [("p", draw_slice(rng, BRATS))], BRATS),
    }

    def train(*paths):
        data = [part for path in paths for part in ("--data", path)]
        return refused("train", *data, "--steps", 1, "--outdir", tmp_path / "new")

    assert "no lesion classes" in train(archives["no classes"])
    assert "--resolution 32 or more" in train(archives["too small"])
    assert "64×64" in train(train_zip, archives["large"])
    assert "use archives of one schema" in train(train_zip, archives["brats"])
    assert "no such file" in train(tmp_path / "nothing.zip")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_evaluated_is_refused(tmp_path, trained, train_zip, test_zip):
    rng = np.random.default_rng(0)
    large = write_archive(tmp_path / "large.zip", [("p", draw_slice(rng, size=64))])
    brats = write_archive(tmp_path / "brats.zip", [("p", draw_slice(rng, BRATS))], BRATS)
    checkpoint.save(tmp_path / "snapshot.safetensors", {"G.w": torch.zeros(1)}, {}, kind="snapshot")
    (tmp_path / "empty").mkdir()

    def evaluate(model, data):
        return refused("evaluate", "--model", model, "--data", data, "--outdir", tmp_path / "new")

    assert "convert the archive at --resolution 32" in evaluate(trained.model, large)
    assert "was trained on t1, flair | core, rim" in evaluate(trained.model, brats)
    halves = dataclasses.replace(RING, regions=(Region("half", ("rim",)),))
    other = write_archive(tmp_path / "halves.zip", [("p", draw_slice(rng))], halves)
    assert "| core, rim | half = rim, but" in evaluate(trained.model, other), "says in what they differ"
    assert "is a snapshot; expected a unet" in evaluate(tmp_path / "snapshot.safetensors", test_zip)
    assert "a zip file" in evaluate(test_zip, test_zip)
    assert "holds no unet.safetensors" in evaluate(tmp_path / "empty", test_zip)
    assert "no such file" in evaluate(tmp_path / "nothing", test_zip)
    assert "not a complete zip archive" in evaluate(trained.model, trained.model)
    assert not (tmp_path / "new").exists()


def test_results_of_another_kind_are_refused(tmp_path, folder, evaluated):
    with pytest.raises(UserError, match="training.json: not the results of an evaluation"):
        load_evaluation(folder / "trained" / "training.json")
    content = json.loads((folder / "evaluated" / "results.json").read_text())
    for version in (99, 1, 2):
        (tmp_path / "new.json").write_text(json.dumps({**content, "version": version}))
        with pytest.raises(UserError, match=f"version {version}; .* evaluate again"):
            load_evaluation(tmp_path / "new.json")


# --- no leaks ---------------------------------------------------------------------------------------------------------


TINY = ("--steps", 1, "--batch", 2, "--width", 2, "--workers", 0)


@pytest.fixture(scope="module")
def fake_zip(folder):
    """Fakes with the seeds 0 to 3, and 4 to 7 in other.zip, by a GAN that learned from the patients r0 to r4."""
    real = write_patients(folder / "real.zip", [f"r{i}" for i in range(5)], part="train")
    options = ["--kimg=0.004", "--batch=4", "--cbase=64", "--cmax=4", "--z-dim=4", "--map-depth=1", "--workers=0"]
    for command, arguments in [
        (gan.main, ["--data", real, "--outdir", folder / "gan", *options]),
        (
            generate.main,
            ["--network", folder / "gan/00000-real-auto-batch4", "--seeds=0-3", "--dest", folder / "f.zip"],
        ),
        (
            generate.main,
            ["--network", folder / "gan/00000-real-auto-batch4", "--seeds=4-7", "--dest", folder / "o.zip"],
        ),
    ]:
        done = CliRunner().invoke(command, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
    return folder / "f.zip"


def test_a_unet_of_fakes_is_not_tested_on_whom_the_gan_saw(tmp_path, fake_zip, test_zip):
    code, output = run("train", "--data", fake_zip, "--outdir", tmp_path, *TINY)
    assert code == 0, output
    info = unet.load_unet(tmp_path / fit.MODEL).info
    assert info.seen == ("r0", "r1", "r2", "r3", "r4") and info.patients == tuple(ArchiveReader(fake_zip).info.patients)
    some = write_patients(tmp_path / "some.zip", ["new", "r3", "r1"])
    evaluate = ("evaluate", "--model", tmp_path, "--outdir", tmp_path / "out", "--data")
    output = refused(*evaluate, some)
    assert "was trained on generated slices of a GAN that learned from r1, r3: it knows 2 of the 3 patients" in output
    assert f"{some}, so its Dice would say nothing about others" in output and "--allow-overlap" in output
    assert "slices of generated-" in refused(*evaluate, fake_zip)
    assert not (tmp_path / "out").exists()

    code, output = run(*evaluate, some, "--allow-overlap")
    assert code == 0 and "note: the U-Net was trained on generated slices of a GAN that learned from r1, r3" in output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["overlap"] == ["r1", "r3"]
    assert load_evaluation(tmp_path / "out" / "results.json").overlap == ("r1", "r3")
    for strangers in (test_zip, fake_zip.with_name("o.zip")):  # other patients; other fakes of the same GAN
        code, output = run(*evaluate, strangers, "--force")
        assert code == 0 and "note:" not in output, output
        assert json.loads((tmp_path / "out" / "results.json").read_text())["overlap"] == []


def test_a_merged_archive_counts_its_patients_and_those_behind_its_fakes(tmp_path, fake_zip):
    sources = [ArchiveReader(fake_zip), ArchiveReader(write_patients(tmp_path / "more.zip", ["m1", "m2"]))]
    with ArchiveWriter(tmp_path / "merged.zip", RING, SIZE, {}, seen=sources[0].info.seen) as writer:
        for source in sources:
            for i, record in enumerate(source.info.slices):
                writer.add_packed(source.packed(i), patient=record.patient, seed=record.seed)
    assert run("train", "--data", tmp_path / "merged.zip", "--outdir", tmp_path, *TINY)[0] == 0
    test = write_patients(tmp_path / "test.zip", ["m2", "new", "r0"])
    output = refused("evaluate", "--model", tmp_path, "--data", test, "--outdir", tmp_path / "out")
    assert "slices of m2, and generated slices of a GAN that learned from r0: it knows 2 of the 3 patients" in output


def test_training_on_held_out_patients_is_refused(tmp_path, fake_zip, train_zip):
    test = write_patients(tmp_path / "test.zip", ["r1", "r9", "p3"], part="test")
    new = write_patients(tmp_path / "new.zip", ["n1"], part="test")

    def train(*options):
        return refused("train", *options, "--outdir", tmp_path / "unet", *TINY)

    assert f"{test}: 3 of its 3 slices (3 of its 3 patients) are of the test part" in train(
        "--data", train_zip, "--data", test
    )
    output = train("--data", fake_zip, "--exclude", new, "--exclude", test)
    assert f"{fake_zip} must share no patient with {test}" in output and "a GAN that learned from r1;" in output
    output = train("--data", fake_zip.with_name("o.zip"), "--data", train_zip, "--exclude", fake_zip)
    assert "learned from r0, r1, r2 and 2 more;" in output
    assert "holds slices of p3;" in train("--data", train_zip, "--exclude", test)
    assert "none.zip: no such file" in train("--data", train_zip, "--exclude", tmp_path / "none.zip")
    assert not (tmp_path / "unet").exists()
    code, output = run("train", "--data", train_zip, "--exclude", new, "--outdir", tmp_path / "unet", *TINY)
    assert code == 0 and f"no patient is shared with {new}" in output
    assert unet.load_unet(tmp_path / "unet" / fit.MODEL).info.patients == tuple(sorted(f"p{i}" for i in range(12)))


def test_evaluation_is_refused_if_and_only_if_a_patient_is_known(trained):
    rng, names = random.Random(0), [f"n{i}" for i in range(10)]
    refusals = 0
    for _ in range(1000):
        patients, seen, tested = (rng.sample(names, rng.choice([0, 1, 1, 2, 4])) for _ in range(3))
        info = dataclasses.replace(trained.unet, patients=tuple(patients), seen=tuple(seen))
        reader = SimpleNamespace(path="test.zip", info=SimpleNamespace(patients=tested, seen=tuple(names)))
        common = tuple(sorted({*patients, *seen} & set(tested)))
        assert evaluate.find_overlap(info, "unet", reader, allow=True) == common
        try:
            assert evaluate.find_overlap(info, "unet", reader, allow=False) == ()
        except UserError as error:
            assert common and all(name in str(error) for name in common[:1])
            refusals += 1
        else:
            assert not common
    assert 200 < refusals < 800, "both happen often"


def test_a_unet_that_does_not_say_whom_it_knows_is_refused(tmp_path, trained, test_zip):
    tensors, metadata = checkpoint.load(trained.model, unet.KIND, unet.VERSION)
    old = {key: value for key, value in metadata.items() if key not in ("patients", "seen")}
    command = ("evaluate", "--model", tmp_path / "old.safetensors", "--data", test_zip, "--outdir", tmp_path / "out")
    checkpoint.save(tmp_path / "old.safetensors", tensors, old, unet.KIND, version=1)
    assert "old.safetensors: version 1 of the unet format; this program reads version 3" in refused(*command)
    checkpoint.save(tmp_path / "old.safetensors", tensors, old, unet.KIND, unet.VERSION)
    assert "old.safetensors: the field 'patients' is missing" in refused(*command)


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from segmentation.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "finally: assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--width" in done.stdout, done.stderr
