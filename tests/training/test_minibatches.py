"""Minibatches of real slices and latents, and their microbatches."""

import torch

from helpers.drawn import write_archive
from helpers.trainings import tiny_trainer
from slices.dataset import SliceDataset
from training.minibatches import Labeled, Latents, Minibatch


def test_microbatches_are_the_minibatch_in_order():
    whole = Minibatch(
        Labeled(torch.arange(6).reshape(6, 1, 1, 1), torch.arange(6, 12)),
        Latents(torch.arange(12, 18), torch.arange(18, 24)),
    )
    found = list(whole.microbatches(2))
    assert len(found) == 3 and found[1].reals.images.shape == (2, 1, 1, 1)
    for n, column in enumerate((*whole.reals, *whole.latents)):
        assert torch.equal(torch.cat([(*m.reals, *m.latents)[n] for m in found]), column)


def test_reals_are_network_values_with_their_labels(tmp_path):
    data = write_archive(tmp_path / "data.zip", labels=True)
    source, dataset = tiny_trainer(tmp_path, data, cond=True).source, SliceDataset(data, use_labels=True)
    label_of = {dataset[n].stored.numpy().tobytes(): dataset.label(n).tolist() for n in range(len(dataset))}
    for _ in range(4):
        images, c = source.next_reals()
        assert images.shape == (4, 8, 16, 16) and images.min() == -1 and images.max() == 1
        for stored, label in zip(source.codec.to_stored(images), c, strict=True):
            assert label_of[stored.numpy().tobytes()] == label.tolist()


def test_fakes_have_class_labels_as_frequent_as_those_of_the_reals(tmp_path):
    data = write_archive(tmp_path / "data.zip", count=9, labels=True)  # patients of classes 0, 1, 0
    torch.manual_seed(0)
    z, c = tiny_trainer(tmp_path, data, cond=True).source.draw_latents(3000)
    assert z.shape == (3000, 8) and c.sum(dim=1).eq(1).all()
    assert abs(float(c[:, 0].mean()) - 2 / 3) < 0.05
