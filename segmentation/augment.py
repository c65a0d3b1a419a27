"""Augmentation: what happens to a slice when it is drawn, by chance. Which slices are drawn is decided in draws.py.

All randomness is a function of the seed and the number of the draw, so it doesn't depend on who makes the slice.
Augmentations take and give stored bytes. In between they work on gray levels, 0 to 255 as float32, in which the
background is 0: whatever is scaled or padded is scaled and padded from the background.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from segmentation.arms import FLIP, FULL
from segmentation.config import TrainUNetConfig
from slices.schema import BRIGHTEST, DARKEST, OUTSIDE
from torch_utils.keys import seed_of, uniform

# The list of nnU-Net's 2-D augmentation: probabilities and ranges. Gray levels of heads have an SD of about 43 (in
# patients and phantoms), which is nnU-Net's unit of noise.
ROTATION, ZOOM = (-math.pi, math.pi), (0.7, 1.4)  # radians; edge of the part that is seen, 1: all
GEOMETRY_PROB = 0.2  # of a rotation, and of a zoom
NOISE_PROB, NOISE = 0.1, 14.0  # largest SD in gray levels
BLUR_PROB, BLUR = 0.2, (0.5, 1.0)  # SD of the Gaussian in pixels
BRIGHTNESS_PROB, CONTRAST_PROB, SCALE = 0.15, 0.15, 0.25  # largest relative change
LOW_RESOLUTION_PROB, LOW_RESOLUTION = 0.25, (0.5, 1.0)  # relative to that of the slice
GAMMA_PROB, INVERTED_GAMMA_PROB, GAMMA = 0.3, 0.1, (0.7, 1.5)


class Augmentation(Protocol):
    """Contrasts uint8 [C, H, W] and class indices uint8 [H, W] of draw `number` -> the same, augmented."""

    def __call__(self, contrasts: np.ndarray, indices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]: ...


def augmentation(config: TrainUNetConfig) -> Augmentation:
    """What a training does to slices. It can be sent to other processes."""
    if config.augment == FULL:
        return Full(config.seed)
    return functools.partial(_flipped, config.seed) if config.augment == FLIP else unchanged


def unchanged(contrasts: np.ndarray, indices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    return contrasts, indices


def _flipped(seed: int, contrasts: np.ndarray, indices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Flip every other slice left to right, by chance."""
    if uniform(seed, FLIP, number) < 0.5:
        return contrasts[..., ::-1], indices[..., ::-1]
    return contrasts, indices


class Full:
    """MONAI's transforms in the manner of nnU-Net: geometry of image and labels alike, intensity of contrasts only.

    Pixels of the background stay 0, and all others at least 1, in every contrast.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # One generator for all transforms. It is seeded for every draw, which costs less than a generator for each.
        self._random = np.random.RandomState()

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self._seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, contrasts: np.ndarray, indices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        self._random.seed(seed_of(self._seed, FULL, number) % 2**32)
        gray = torch.from_numpy(contrasts.astype(np.float32))  # [C, H, W]
        # Maps that are moved by whole pixels: where each contrast isn't background, and the classes.
        maps = torch.from_numpy(np.concatenate([contrasts != OUTSIDE, indices[None]], dtype=np.float32))  # [C + 1, …]
        with _plain_tensors():
            gray, maps = self._moved(gray, maps)
            for change in self._intensity:
                gray = change(gray)
        inside, classes = maps[:-1] > 0, maps[-1]
        stored = torch.where(inside, gray.round().clamp(DARKEST, BRIGHTEST), OUTSIDE).to(torch.uint8)
        return stored.numpy(), classes.to(torch.uint8).numpy()

    def _moved(self, gray: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate, zoom and mirror by chance. What comes from outside the slice is background."""
        from monai.transforms import AffineGrid, Resample

        angle = self._random.uniform(*ROTATION) if self._random.random() < GEOMETRY_PROB else 0.0
        zoom = self._random.uniform(*ZOOM) if self._random.random() < GEOMETRY_PROB else 1.0
        if angle or zoom != 1:
            # One interpolation for both.
            grid, _ = AffineGrid(rotate_params=angle, scale_params=(zoom, zoom))(spatial_size=gray.shape[1:])
            kind: Any = torch.float32  # MONAI takes torch's types as well as numpy's
            resample = Resample(padding_mode="zeros", dtype=kind)
            gray, maps = resample(gray, grid, mode="bilinear"), resample(maps, grid, mode="nearest")
        if mirrored := [axis for axis in (1, 2) if self._random.random() < 0.5]:
            gray, maps = gray.flip(mirrored), maps.flip(mirrored)
        return gray, maps

    @functools.cached_property
    def _intensity(self) -> Sequence[Callable[[torch.Tensor], torch.Tensor]]:
        """Changes of gray levels [C, H, W], in nnU-Net's order."""
        from monai import transforms as t  # takes seconds to import

        changes = [
            t.RandGaussianNoise(NOISE_PROB, std=NOISE),
            t.RandGaussianSmooth(BLUR, BLUR, prob=BLUR_PROB),
            t.RandScaleIntensity(SCALE, BRIGHTNESS_PROB, channel_wise=True),
            t.RandScaleIntensityFixedMean(CONTRAST_PROB, SCALE, preserve_range=True, channel_wise=True),
            t.RandSimulateLowResolution(LOW_RESOLUTION_PROB, upsample_mode="bilinear", zoom_range=LOW_RESOLUTION),
            t.RandAdjustContrast(INVERTED_GAMMA_PROB, GAMMA, invert_image=True, retain_stats=True),
            t.RandAdjustContrast(GAMMA_PROB, GAMMA, retain_stats=True),
        ]
        for change in changes:
            change.set_random_state(state=self._random)
        return changes


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """Let MONAI work on plain tensors in the block, which takes a third of the time of its own kind."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
