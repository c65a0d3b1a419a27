"""Input of a training step: real slices in shuffled order, and the random numbers that fakes are made of.

A minibatch has P parts of batch_gpu samples: part p holds samples p, p + P, p + 2P, … So the members of a group of the
minibatch standard deviation, which lie as far apart as possible, come into the same part, whatever P is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dnnlib.runs import Log
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils import keys
from torch_utils.data_loading import minibatches
from torch_utils.distributed import World
from torch_utils.sampler import ShareOfMinibatches, ShuffledOrder
from torch_utils.sending import send
from training.augment.draws import Draws, draws
from training.config import TrainingConfig
from training.networks.generator import Generator


class Labeled(NamedTuple):
    """Images and their class labels, for the discriminator."""

    images: torch.Tensor  # network values [N, C + K, H, W]
    c: torch.Tensor  # class labels [N, c_dim]
    augmentation: Draws | None = None  # what happens to the images first; None: nothing


@dataclass(frozen=True)
class FakeInputs:
    """All that N fakes are made of, drawn by key."""

    z: torch.Tensor  # latents [N, z_dim]
    c: torch.Tensor  # class labels [N, c_dim]
    noise: torch.Tensor  # [N, noise_size]
    second_z: torch.Tensor  # latents for style mixing [N, z_dim]
    crossover: int | None = None  # first layer that takes its style from second_z; None: no style mixing
    direction: torch.Tensor | None = None  # of the image, for path length: unit normal [N, C + K, H, W]
    augmentation: Draws | None = None  # of the images, before the discriminator judges them


@dataclass(frozen=True)
class Part:
    """Share of a minibatch that is computed at a time."""

    reals: Labeled
    fakes: FakeInputs | None  # None: the phase needs none


class RealSource:
    """Endless source of real slices, of the parts that one process computes."""

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, world: World, log: Log, step: int = 0) -> None:
        """step: number of the first step to read for; the order of the data is a function of seed and position."""
        self.device, self.batch_gpu = world.device, config.batch_gpu
        self.codec = SliceCodec(dataset.schema)
        self.dtype = torch.get_default_dtype()
        order = ShuffledOrder(len(dataset), config.seed)
        self._stored = minibatches(
            dataset,
            ShareOfMinibatches(order, config.batch, config.parts, world.rank, world.size, step),
            # Reading from memory is fast. Worker processes would only take CPU time from the networks.
            0 if dataset.in_memory else config.data.workers,
            log,
            pin_memory=world.device.type == "cuda",
        )

    def next_parts(self) -> list[Labeled]:
        """Return the real slices of the next minibatch, one element for each part of this process."""
        stored, c = next(self._stored)  # uint8 [N, C + K, H, W], [N, c_dim]; part by part
        images = self.codec.to_network(send(stored, self.device)).to(self.dtype)
        columns = images.split(self.batch_gpu), send(c, self.device).to(self.dtype).split(self.batch_gpu)
        return [Labeled(*part) for part in zip(*columns, strict=True)]


class FakeSource:
    """Draws the inputs of fakes. They are functions of (seed, step, phase, sample), and of the kind of device."""

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, generator: Generator) -> None:
        self.seed, self.mixing = config.seed, config.loss.mixing
        self.z_dim, self.num_ws, self.noise_size = (
            config.generator.z_dim,
            generator.synthesis.num_ws,
            generator.synthesis.noise_size,
        )
        self.image_shape = (dataset.schema.num_channels, dataset.resolution, dataset.resolution)
        w_avg = generator.mapping.w_avg
        self.device, self.dtype = w_avg.device, w_avg.dtype
        # A fake gets the class label of a slice drawn at random, so that they are as frequent as among the reals.
        labels = torch.stack([dataset.label(n) for n in range(len(dataset))])  # [len(dataset), c_dim]
        self.labels = labels.to(self.device, self.dtype)

    def draw(self, step: int, phase: str, samples: Sequence[int], directed: bool = False) -> FakeInputs:
        """Draw the inputs of some samples of a minibatch. directed: also the directions for path length."""
        of_phase: keys.Key = (self.seed, step, phase)
        of_samples = [(*of_phase, sample) for sample in samples]
        channels, height, width = self.image_shape
        sizes = [self.noise_size, self.z_dim, self.z_dim, channels * height * width if directed else 0]
        # One draw for each sample, cut into pieces, because a generator is costly to start.
        drawn = keys.normal(of_samples, sum(sizes), self.device).to(self.dtype)
        noise, z, second_z, direction = drawn.split(sizes, dim=1)
        classes = torch.tensor([keys.integer(len(self.labels), *key, "class") for key in of_samples])
        return FakeInputs(
            z,
            self.labels[send(classes, self.device)],
            noise,
            second_z,
            self._crossover(of_phase),
            direction.unflatten(1, self.image_shape) if directed else None,
        )

    def _crossover(self, of_phase: keys.Key) -> int | None:
        """Draw whether the styles of this minibatch are mixed, and from which layer on."""
        if keys.uniform(*of_phase, "mixing") >= self.mixing:
            return None
        return 1 + keys.integer(self.num_ws - 1, *of_phase, "crossover")


class AugmentationSource:
    """Draws what happens to images before the discriminator judges them: functions of their key and of p."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.seed, self.device = config.seed, device
        self.pipe = config.augment.pipe if config.augment is not None else ()
        self.num_contrasts, self.resolution = config.generator.num_contrasts, config.generator.resolution

    def draw(self, step: int, phase: str, kind: str, samples: Sequence[int], p: float) -> Draws:
        """Draw for some samples of a minibatch. kind: of images, "real" or "fake"."""
        of_samples = [(self.seed, step, phase, sample, kind) for sample in samples]
        return draws(of_samples, p, self.pipe, self.num_contrasts, self.resolution, self.device)
