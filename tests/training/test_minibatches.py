"""Minibatches of real slices, and the inputs of fakes, by parts and processes."""

import torch

from helpers.drawn import write_archive
from helpers.trainings import tiny_trainer
from slices.dataset import SliceDataset
from torch_utils.distributed import World


def test_reals_are_network_values_with_their_labels(tmp_path):
    data = write_archive(tmp_path / "data.zip", labels=True)
    source, dataset = tiny_trainer(tmp_path, data, cond=True).reals, SliceDataset(data, use_labels=True)
    label_of = {dataset[n].stored.numpy().tobytes(): dataset.label(n).tolist() for n in range(len(dataset))}
    for _ in range(4):
        ((images, c, _),) = source.next_parts()
        assert images.shape == (4, 8, 16, 16) and images.min() == -1 and images.max() == 1
        for stored, label in zip(source.codec.to_stored(images), c, strict=True):
            assert label_of[stored.numpy().tobytes()] == label.tolist()


def test_parts_of_all_processes_are_the_minibatch(tmp_path, archive):
    """Part p holds samples p, p + P, …; process r of R computes parts r, r + R, …"""
    options = dict(batch=12, mbstd=2)
    whole = tiny_trainer(tmp_path, archive, batch_gpu=12, **options).reals
    cpu = torch.device("cpu")
    shares = [
        tiny_trainer(tmp_path, archive, world=World(rank, 2, device=cpu), batch_gpu=2, **options).reals
        for rank in range(2)
    ]
    for _ in range(3):
        ((minibatch, *_),) = whole.next_parts()
        for rank, share in enumerate(shares):
            parts = share.next_parts()
            assert len(parts) == 3
            for number, (images, *_) in zip((rank, rank + 2, rank + 4), parts, strict=True):
                assert torch.equal(images, minibatch[number::6])


def test_inputs_of_a_fake_do_not_depend_on_the_others(tmp_path):
    data = write_archive(tmp_path / "data.zip", labels=True)
    source = tiny_trainer(tmp_path, data, cond=True).fakes
    whole = source.draw(7, "Gpl", range(6), directed=True)
    some = source.draw(7, "Gpl", range(1, 6, 3), directed=True)
    for name in ("z", "c", "noise", "second_z", "direction"):
        values = getattr(whole, name)
        assert torch.equal(values[1::3], getattr(some, name)), name
        assert len(values.unique(dim=0)) == (6 if name != "c" else len(values.unique(dim=0)))
    assert whole.direction.shape == (6, 8, 16, 16) and whole.z.shape == whole.second_z.shape == (6, 8)
    assert not torch.equal(source.draw(8, "Gpl", range(6)).z, whole.z)


def test_styles_are_mixed_as_often_as_asked_at_all_layers(tmp_path, archive):
    source = tiny_trainer(tmp_path, archive, mixing=0.9).fakes
    crossovers = [source.draw(step, "Gmain", range(1)).crossover for step in range(500)]
    assert abs(sum(c is not None for c in crossovers) / 500 - 0.9) < 0.04
    assert {c for c in crossovers if c is not None} == set(range(1, source.num_ws))
    never, always = (tiny_trainer(tmp_path, archive, mixing=mixing).fakes for mixing in (0, 1))
    assert all(never.draw(step, "Gmain", range(1)).crossover is None for step in range(50))
    assert all(always.draw(step, "Gmain", range(1)).crossover for step in range(50))


def test_fakes_have_class_labels_as_frequent_as_those_of_the_reals(tmp_path):
    data = write_archive(tmp_path / "data.zip", count=9, labels=True)  # patients of classes 0, 1, 0
    c = tiny_trainer(tmp_path, data, cond=True).fakes.draw(0, "Gmain", range(3000)).c
    assert c.sum(dim=1).eq(1).all() and abs(float(c[:, 0].mean()) - 2 / 3) < 0.05
