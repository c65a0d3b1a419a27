"""The sheet of augmented slices."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.drawn import SCHEMAS, draw_slice, write_archive, write_slices
from helpers.trainings import tiny_config
from slices import render
from slices.dataset import SliceDataset
from slices.schema import BRATS
from training.augment import sheet


def sheet_of(path, folder, **recipe):
    dataset = SliceDataset(path)
    sheet.save_augmented(dataset, tiny_config(dataset, aug="ada", **recipe), folder / "augmented.png")
    return np.asarray(Image.open(folder / "augmented.png"))


@SCHEMAS
def test_the_same_slices_at_every_p(tmp_path, schema):
    path = write_archive(tmp_path / "drawn.zip", schema=schema)
    drawn = sheet_of(path, tmp_path)
    dataset = SliceDataset(path)
    stored = sheet.choose(dataset, 6, 0)
    columns = 3 if schema is BRATS else 6
    plain = np.asarray(render.sheet(stored[:columns], schema, columns))
    first = drawn[31 : 31 + 96, -plain.shape[1] + 10 :]
    assert (first == plain[31 : 31 + 96, 10:]).all(), "at p = 0 slices are as they are"
    rows = [drawn[31 + 100 * row : 31 + 100 * row + 96] for row in range(4)]
    assert all((row != rows[0])[:, 200:].any() for row in rows[1:])


def test_labels_lie_where_the_contrasts_say(tmp_path):
    """Each class of a drawn slice has a brightness of its own, which geometry moves together with its label."""
    dataset = SliceDataset(write_archive(tmp_path / "drawn.zip", 6, resolution=64))
    config = tiny_config(dataset, aug="ada", augpipe="bg")
    stored = sheet.choose(dataset, 6, 0)
    moved = sheet.augmented(stored, [(0, n) for n in range(6)], 0.9, dataset, config)
    assert moved.dtype == np.uint8 and not (moved == stored).all(axis=(1, 2, 3)).any()
    for before, after in zip(stored, moved, strict=True):
        (contrasts, classes), (moved_contrasts, moved_classes) = BRATS.split(before), BRATS.split(after)
        assert (after[4:].sum(axis=0) == 255).all(), "every pixel has one class"
        for index in np.unique(moved_classes):
            was, is_now = contrasts[0][classes == index], moved_contrasts[0][moved_classes == index]
            if index and len(is_now) > 20:
                assert np.median(is_now) == pytest.approx(np.median(was), abs=10)


def test_slices_with_a_lesion_come_first_and_draws_leave_no_trace(tmp_path):
    random = np.random.RandomState(0)
    slices = [(f"p{n}", draw_slice(random, 16, lesion=n % 5 == 0)) for n in range(20)]
    dataset = SliceDataset(write_slices(tmp_path / "some.zip", slices))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    chosen = sheet.choose(dataset, 6, seed=1)
    with_lesion = BRATS.split(chosen)[1].any(axis=(1, 2))
    assert with_lesion.tolist() == [True] * 4 + [False] * 2
    assert len({one.tobytes() for one in chosen}) == 6
    assert len(sheet.choose(SliceDataset(tmp_path / "some.zip", subset=2), 6, seed=1)) == 2
    sheet_of(tmp_path / "some.zip", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
