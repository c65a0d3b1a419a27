"""Input of a training step: minibatches of real slices, and latents for the fakes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dnnlib.runs import Log
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.data_loading import minibatches
from torch_utils.sampler import ShareOfMinibatches, ShuffledOrder
from training.config import TrainingConfig


class Labeled(NamedTuple):
    """Images and their class labels, for the discriminator."""

    images: torch.Tensor  # network values [N, C + K, H, W]
    c: torch.Tensor  # class labels [N, c_dim]


class Latents(NamedTuple):
    """Inputs of the generator."""

    z: torch.Tensor  # [N, z_dim]
    c: torch.Tensor  # class labels [N, c_dim]


@dataclass(frozen=True)
class Minibatch:
    """Data of one phase in one step, or a microbatch: the share of it that is computed at a time."""

    reals: Labeled  # N real images
    latents: Latents  # for N fakes

    def microbatches(self, size: int) -> Iterator[Minibatch]:
        """Split the minibatch into microbatches of `size` images."""
        # Split each of the four tensors along N, then walk through their shares side by side.
        columns = (column.split(size) for column in (*self.reals, *self.latents))
        for images, real_c, z, c in zip(*columns, strict=True):
            yield Minibatch(Labeled(images, real_c), Latents(z, c))


class MinibatchSource:
    """Endless source of real slices in shuffled order, and of latents, on one device.

    Latents come from torch's global random generator. A fake gets the class label of a slice drawn at random, so that
    reals and fakes have the same distribution of class labels.
    """

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, device: torch.device, log: Log) -> None:
        self.device, self.z_dim = device, config.generator.z_dim
        self.codec = SliceCodec(dataset.schema)
        labels = [dataset.label(n) for n in range(len(dataset))]
        self.labels = torch.stack(labels).to(device)  # [len(dataset), c_dim]
        order = ShuffledOrder(len(dataset), config.seed)
        self._stored = minibatches(
            dataset,
            ShareOfMinibatches(order, config.batch, parts=1),
            # Reading from memory is fast. Worker processes would only take CPU time from the networks.
            0 if dataset.in_memory else config.data.workers,
            log,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            pin_memory=device.type == "cuda",
        )

    def next_reals(self) -> Labeled:
        """Return the next minibatch of real slices, as network values."""
        stored, c = next(self._stored)  # uint8 [N, C + K, H, W], [N, c_dim]
        return Labeled(self.codec.to_network(stored.to(self.device)), c.to(self.device))

    def draw_latents(self, count: int) -> Latents:
        """Draw latents for `count` fakes."""
        z = torch.randn([count, self.z_dim], device=self.device)  # [N, z_dim]
        return Latents(z, self.labels[torch.randint(len(self.labels), [count], device=self.device)])


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    """Make a worker process ignore Ctrl-C. A terminal sends it to all processes, but the last step still needs data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
