"""The sheet augmented.png: real slices as the discriminator sees them, at several p."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from slices import render
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.keys import Key
from training.augment.augment import augment
from training.augment.draws import draws
from training.config import TrainingConfig

PROBABILITIES = (0.0, 0.3, 0.6, 0.9)
MOST_READ = 200  # slices among which those with a lesion are looked for


def save_augmented(dataset: SliceDataset, config: TrainingConfig, path: str | os.PathLike) -> None:
    """Save a sheet of the same real slices at each of PROBABILITIES, one below the other. config: has `augment`.

    A slice has the same key at every p. So what happens to it at one p happens to it at all larger ones too.
    """
    schema = dataset.schema
    # With four p, as many pictures as on other sheets.
    chosen = choose(dataset, 3 if dataset.resolution >= 256 else 6, config.seed)  # [n, C + K, H, W]
    fitting = render.fitting_columns(schema, dataset.resolution)
    columns = max(n for n in range(1, len(chosen) + 1) if len(chosen) % n == 0 and n <= fitting)
    rows, titles = [], []
    for first in range(0, len(chosen), columns):
        keys = [(config.seed, "augmented.png", number) for number in range(first, first + columns)]
        for p in PROBABILITIES:
            rows.append(augmented(chosen[first : first + columns], keys, p, dataset, config))
            titles.append(f"p = {p:g}")
    render.save(render.sheet(np.concatenate(rows), schema, columns, titles), path)


def choose(dataset: SliceDataset, count: int, seed: int) -> np.ndarray:
    """Draw `count` different real slices, without mirrored copies: stored [count, C + K, H, W].

    Those with a lesion are preferred, as their labels show how augmentation moves them. There are fewer than `count` if
    the data set has fewer.
    """
    order = np.random.RandomState(seed).permutation(dataset.num_originals)[:MOST_READ]
    with_lesion: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for number in order:
        stored = dataset[int(number)].stored.numpy()
        (with_lesion if dataset.schema.split(stored)[1].any() else others).append(stored)
        if len(with_lesion) == count:
            break
    return np.stack([*with_lesion, *others][:count])


@torch.no_grad()
def augmented(
    stored: np.ndarray, keys: Sequence[Key], p: float, dataset: SliceDataset, config: TrainingConfig
) -> np.ndarray:
    """Augment stored slices [N, C + K, H, W], uint8. Each pixel gets the class of the largest probability."""
    assert config.augment is not None
    codec, contrasts, cpu = SliceCodec(dataset.schema), dataset.schema.num_contrasts, torch.device("cpu")
    drawn = draws(keys, p, config.augment.pipe, contrasts, dataset.resolution, cpu)
    return codec.to_stored(augment(codec.to_network(torch.from_numpy(stored)), drawn, contrasts)).numpy()
