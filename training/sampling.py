"""Generation of joint slices from a snapshot and seeds. A slice depends on its seed, not on the others in its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.text import name_some
from slices.codec import SliceCodec
from torch_utils.distributed import default_device
from training.snapshot import LoadedGenerator


class Sample(NamedTuple):
    """One generated slice."""

    seed: int
    stored: np.ndarray  # uint8 [C + K, H, W], label maps one-hot


def latent_of_seed(seed: int, z_dim: int) -> torch.Tensor:
    """Draw the latent z of a seed, [z_dim], in the same way as StyleGAN2's own generation program."""
    return torch.from_numpy(np.random.RandomState(seed).randn(z_dim)).to(torch.float32)


def noise_of_seed(seed: int, size: int) -> torch.Tensor:
    """Draw the noise of a seed, [size]. It does not depend on the other slices in a batch."""
    return torch.randn([size], generator=torch.Generator().manual_seed(seed))


def find_class(network: LoadedGenerator, wanted: str | None) -> int | None:
    """Return the number of a class that is given by name or number. None: the generator is unconditional.

    Raises UserError if a conditional generator gets no class, an unknown class, or a class that it has never seen, and
    if an unconditional generator gets a class.
    """
    info, c_dim = network.info, network.generator.config.c_dim
    if c_dim == 0:
        if wanted is not None:
            raise UserError(f"--class {name_some([wanted])}: {network.path} was trained without --cond; leave it out")
        return None
    names, numbers = [info.label_name(label) for label in range(c_dim)], list(map(str, range(c_dim)))
    counts = info.label_counts or (1,) * c_dim  # unknown counts: any class may have been seen
    # "2" where a class has no name, otherwise "2 (LGG)".
    described = [n if n == name else f"{n} ({name})" for n, name in zip(numbers, names, strict=True)]
    choices = name_some([words for words, seen in zip(described, counts, strict=True) if seen], most=20)
    if wanted is None:
        raise UserError(f"{network.path} was trained with --cond: choose a --class from {choices}")
    if wanted not in names and wanted not in numbers:
        raise UserError(f"--class {name_some([wanted])} is unknown; choose from {choices}")
    label = (names if wanted in names else numbers).index(wanted)
    if not counts[label]:
        raise UserError(
            f"--class {wanted}: {network.path} saw no slice of this class while it was trained; choose from {choices}"
        )
    return label


def class_vector(network: LoadedGenerator, wanted: str | None) -> torch.Tensor:
    """Return the one-hot class label, [c_dim]. Raises UserError as `find_class` does."""
    c = torch.zeros(network.generator.config.c_dim)
    if (label := find_class(network, wanted)) is not None:
        c[label] = 1
    return c


@torch.inference_mode()
def generate(
    network: LoadedGenerator,
    seeds: Sequence[int],
    c: torch.Tensor | None = None,
    truncation_psi: float = 1,
    noise_mode: str = "const",
    batch: int = 8,
) -> Iterator[Sample]:
    """Yield one Sample per seed, in the order of the seeds.

    c: class label [c_dim]. truncation_psi: 1 is the full variety, 0 the average slice.
    noise_mode: "const" uses the noise stored in the network, "random" draws it from the seed, "none" leaves it out.
    batch: slices computed at a time. Raises UserError if slices are not finite numbers.
    """
    device = default_device()
    generator = network.generator.to(device)
    codec = SliceCodec(network.info.schema)
    for first in range(0, len(seeds), batch):
        chunk = list(seeds[first : first + batch])
        z = torch.stack([latent_of_seed(seed, generator.config.z_dim) for seed in chunk]).to(device)  # [N, z_dim]
        labels = None if c is None else c.to(device).expand(len(chunk), -1)  # [N, c_dim]
        noise = None
        if noise_mode == "random":
            size = generator.synthesis.noise_size
            noise = torch.stack([noise_of_seed(seed, size) for seed in chunk]).to(device)  # [N, noise_size]
        # [N, C + K, H, W]
        images = generator(z, labels, truncation_psi=truncation_psi, noise_mode=noise_mode, noise=noise)
        if not images.isfinite().all():
            raise UserError(f"{network.path}: slices of seeds {chunk[0]} to {chunk[-1]} are not finite numbers")
        for seed, stored in zip(chunk, codec.to_stored(images).cpu().numpy(), strict=True):
            yield Sample(seed, stored)
