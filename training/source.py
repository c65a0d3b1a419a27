"""Source of a transfer: the networks from which a new run begins, read from a snapshot or a published checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dnnlib.errors import UserError
from dnnlib.files import sha256
from slices.schema import Schema
from torch_utils import checkpoint
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.published.networks import is_pickle, read_published
from training.snapshot import find_snapshot, read_info


@dataclass(frozen=True, kw_only=True)
class Source:
    """Networks to begin from, and what is known of them."""

    path: Path
    sha256: str  # of the file
    schema: Schema
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig | None  # None: the file has no D
    kimg: float | None  # real images shown in its training, in thousands; None: unknown
    patients: tuple[str, ...] | None  # all that are known to be behind it; None: the file doesn't say any
    more_patients: bool  # there may be others than `patients`
    label_names: tuple[str, ...] | None  # names of the class labels
    # Named as in a snapshot: G_ema.…, and G.… and D.… if the file has them. On the CPU; cleared when they are copied.
    tensors: dict[str, torch.Tensor] = field(repr=False)

    def name_of(self, network: str) -> str:
        """Name here of the network that is to become G, D or G_ema. A G that is missing is made of G_ema."""
        has_it = any(name.startswith(f"{network}.") for name in self.tensors)
        return "G_ema" if network == "G" and not has_it else network


def find_source(path: str | os.PathLike) -> Path:
    """Return the file of `--transfer`: the file itself, or the latest snapshot of a run folder."""
    if not os.path.exists(path):
        raise UserError(f"--transfer {path}: no such file or folder; give a snapshot, a run folder or a .pkl")
    found = find_snapshot(path)
    if found.name.startswith("training-state-"):
        raise UserError(f"--transfer {found} is a state; it takes a snapshot, or the run folder: {found.parent}")
    return found


def read_source(path: Path) -> Source:
    """Read the networks of a file. Raises UserError if it is missing, damaged, or holds no networks that are known."""
    return _read_published(path) if is_pickle(path) or path.suffix == ".pkl" else _read_snapshot(path)


def _read_snapshot(path: Path) -> Source:
    """Read a snapshot. It must have G_ema; the others may be missing."""
    info = read_info(path)
    builders: dict[str, Callable[[], nn.Module]] = dict.fromkeys(("G_ema", "G"), partial(Generator, info.generator))
    if info.discriminator is not None:
        builders["D"] = partial(Discriminator, info.discriminator)
    found = {name.partition(".")[0] for name in checkpoint.read_names(path)}
    tensors: dict[str, torch.Tensor] = {}
    for network, build in builders.items():
        if network in found or network == "G_ema":
            of_network = checkpoint.load_tensors(path, build, prefix=f"{network}.")
            tensors |= {f"{network}.{name}": tensor for name, tensor in of_network.items()}
    return Source(
        path=path,
        sha256=sha256(path),
        schema=info.schema,
        generator=info.generator,
        discriminator=info.discriminator if "D" in found else None,
        kimg=info.kimg,
        patients=info.patients,
        more_patients=info.all_patients is None,
        label_names=info.label_names,
        tensors=tensors,
    )


def _read_published(path: Path) -> Source:
    """Read a published checkpoint, which says nothing of its training."""
    found = read_published(path)
    return Source(
        path=path,
        sha256=found.sha256,
        schema=found.schema,
        generator=found.generator,
        discriminator=found.discriminator,
        kimg=None,
        patients=None,
        more_patients=True,
        label_names=None,
        tensors=found.tensors,
    )
