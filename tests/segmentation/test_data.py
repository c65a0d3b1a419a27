"""The U-Net's data set: image and truth of slices, and archives that are refused."""

import numpy as np
import pytest
import torch

from rings import RING, SIZE, TINY, draw_ring, refused, run, write_rings
from segmentation.arms import AUGMENTATIONS
from segmentation.augment import augmentation
from segmentation.config import TrainUNetConfig
from segmentation.data import PairDataset, loader
from segmentation.draws import Draw
from segmentation.selection import select_all
from slices.archive.reader import ArchiveReader
from slices.schema import BRATS, Schema


def test_without_augmentation_slices_are_learned_as_they_are_stored(train_zip):
    data, archive = PairDataset(select_all([train_zip])), ArchiveReader(train_zip)
    for n in range(len(archive)):
        contrasts, indices = RING.split(archive.read(n))
        pair = data[Draw(n, number=n)]
        assert (pair.contrasts.numpy() == contrasts).all() and (pair.indices.numpy() == indices).all()


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_blank_slice_is_background_in_every_contrast_and_in_truth(train_zip, augment):
    augments = augmentation(TrainUNetConfig(steps=1, augment=augment))
    blank = PairDataset(select_all([train_zip]), augments)[Draw(None, 1)]
    assert blank.contrasts.shape == (2, SIZE, SIZE) and blank.indices.shape == (SIZE, SIZE)
    assert blank.contrasts.dtype == blank.indices.dtype == torch.uint8
    assert not blank.contrasts.any() and not blank.indices.any()


@pytest.mark.slow
def test_slices_made_by_workers_are_those_made_here(train_zip):
    def batches(memory):
        config = TrainUNetConfig(steps=4, batch=5, seed=7, augment="full")
        data = PairDataset(select_all([train_zip]), augmentation(config), memory=memory)
        assert data.in_memory == bool(memory)
        return list(loader(data, data.draws(config), workers=2, pin=False))

    held, read = batches(1 << 30), batches(0)
    assert len(held) == len(read) == 4 and held[0].contrasts.shape == (5, 2, SIZE, SIZE)
    assert held[0].contrasts.dtype == held[0].indices.dtype == torch.uint8
    for one, other in zip(held, read, strict=True):
        assert torch.equal(one.contrasts, other.contrasts) and torch.equal(one.indices, other.indices)


def test_a_share_of_slices_that_are_not_there_is_refused(tmp_path, train_zip):
    random = np.random.RandomState(0)
    archives = {
        "real": write_rings(tmp_path / "real.zip", [("a", draw_ring(random))]),
        "fake": write_rings(tmp_path / "fake.zip", [("g", draw_ring(random))], seen=["a"]),
        "healthy": write_rings(tmp_path / "healthy.zip", [("h", draw_ring(random, lesion=False))]),
    }

    def train(*names, share=0.2):
        data = [word for name in names for word in ("--data", archives[name])]
        return ("train", *data, "--lesion-free", share, "--outdir", tmp_path / "new", *TINY)

    output = refused(*train("fake"))
    assert "all 1 slices have a lesion, but --lesion-free 0.2 asks for slices without: train their GAN" in output
    assert "make an archive with convert --lesion-free" in refused(*train("real", "fake"))
    assert "healthy.zip: none of the 1 slices has a lesion" in refused(*train("healthy"))
    assert not (tmp_path / "new").exists()
    assert run(*train("real", share=0))[0] == 0
    code, output = run(*train("real", "healthy", share=0.5), "--force")
    assert code == 0 and "slices to draw: 1 with lesion, 1 without, 0 empty" in output


def test_archives_that_cannot_be_trained_on_are_refused(tmp_path, train_zip):
    random = np.random.RandomState(0)
    bare = Schema(("t1", "flair"))
    archives = {
        "no classes": write_rings(tmp_path / "bare.zip", [("p", draw_ring(random, bare))], bare),
        "too small": write_rings(tmp_path / "small.zip", [("p", draw_ring(random, size=16))]),
        "large": write_rings(tmp_path / "large.zip", [("p", draw_ring(random, size=64))]),
        "brats": write_rings(tmp_path / "brats.zip", [("p", draw_ring(random, BRATS))], BRATS),
    }

    def train(*paths):
        data = [word for path in paths for word in ("--data", path)]
        return refused("train", *data, "--steps", 1, "--outdir", tmp_path / "new")

    assert "no lesion classes" in train(archives["no classes"])
    assert "--resolution 32 or more" in train(archives["too small"])
    assert "64×64" in train(train_zip, archives["large"])
    assert "use archives of one schema" in train(train_zip, archives["brats"])
    assert "no such file" in train(tmp_path / "nothing.zip")
    assert not (tmp_path / "new").exists()
