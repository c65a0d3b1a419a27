"""What a step learns from: minibatches of real slices, and latents for the fakes beside them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dnnlib.runs import Log
from slices.codec import SliceCodec
from slices.dataset import SliceDataset
from torch_utils.loading import minibatches
from torch_utils.sampler import EndlessSampler
from training.config import TrainingConfig


class Labeled(NamedTuple):
    """Images for the discriminator."""

    images: torch.Tensor  # network values [N, C + K, H, W]
    c: torch.Tensor  # class labels [N, c_dim]


class Latents(NamedTuple):
    """What the generator makes fakes of."""

    z: torch.Tensor  # [N, z_dim]
    c: torch.Tensor  # class labels [N, c_dim]


@dataclass(frozen=True)
class Minibatch:
    """What one phase of one step works on; or a microbatch, the share of it that is computed at a time."""

    reals: Labeled
    latents: Latents

    def microbatches(self, size: int) -> Iterator[Minibatch]:
        """Yield the minibatch in shares of `size` images."""
        columns = (column.split(size) for column in (*self.reals, *self.latents))
        for images, real_c, z, c in zip(*columns, strict=True):
            yield Minibatch(Labeled(images, real_c), Latents(z, c))


class MinibatchSource:
    """The real slices of a data set in an endless stirred order, and latents, all on one device.

    Latents come from torch's global generator. Fakes have the class labels of slices drawn at random, so both have the
    same distribution.
    """

    def __init__(self, config: TrainingConfig, dataset: SliceDataset, device: torch.device, log: Log) -> None:
        self.device, self.z_dim = device, config.generator.z_dim
        self.codec = SliceCodec(dataset.schema)
        labels = [dataset.label(n) for n in range(len(dataset))]
        self.labels = torch.stack(labels).to(device)  # [len(dataset), c_dim]
        order = EndlessSampler(len(dataset), seed=config.seed)
        self._stored = minibatches(
            dataset,
            torch.utils.data.BatchSampler(order, config.batch, drop_last=False),
            # What fits in memory is soon there; on a CPU, processes beside would take time from the networks.
            0 if dataset.in_memory else config.data.workers,
            log,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            pin_memory=device.type == "cuda",
        )

    def next_reals(self) -> Labeled:
        """The next minibatch of real slices, as network values."""
        stored, c = next(self._stored)
        return Labeled(self.codec.to_network(stored.to(self.device)), c.to(self.device))

    def draw_latents(self, count: int) -> Latents:
        """Fresh latents for `count` fakes."""
        z = torch.randn([count, self.z_dim], device=self.device)
        return Latents(z, self.labels[torch.randint(len(self.labels), [count], device=self.device)])


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    """Make a worker process ignore Ctrl-C, which reaches it too; the run still needs its data for the last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
