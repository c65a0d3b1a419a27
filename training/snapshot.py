"""Network snapshots: written by a training, read for generation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dnnlib import config
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.files import sha256
from slices.schema import Schema, is_plain_name
from torch_utils import checkpoint
from training.config import DiscriminatorConfig, GeneratorConfig, TrainingConfig
from training.networks.generator import Generator
from training.published.networks import is_pickle, read_published

KIND, VERSION = "network snapshot", 3
_NAME = re.compile(r"network-snapshot-(\d{6,})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """Metadata stored beside the weights. A field is None if the fact is unknown, as for an imported network."""

    schema: Schema
    generator: GeneratorConfig  # enough to build G and G_ema again
    kimg: float | None  # real images shown in training, in thousands
    # Sorted names of all patients behind the slices that were used. Slices that were generated themselves count with
    # the patients that their own generator was trained on.
    patients: tuple[str, ...] | None
    discriminator: DiscriminatorConfig | None = None  # None: the file has no D
    training: TrainingConfig | None = None  # data.path without its folder: snapshots are shared, folders are private
    data_sha256: str | None = None  # SHA-256 of the archive
    label_names: tuple[str, ...] | None = None  # names of the class labels; None: unconditional, or without names
    label_counts: tuple[int, ...] | None = config.optional(None)  # training slices of each class label; 0 is possible
    pixel: tuple[float, float] | None = config.optional(None)  # smallest and largest pixel size of the slices, in mm
    # The weights come from a network (--transfer) that does not say its patients: there may be others than `patients`.
    more_patients: bool = config.optional(False)

    def __post_init__(self) -> None:
        """Raise UserError for fields that contradict each other."""
        self._check_networks()
        c_dim = self.generator.c_dim
        if self.kimg is not None and self.kimg < 0:
            raise UserError(f"kimg {self.kimg:g}: expected 0 or more")
        if self.label_names is not None and len(set(self.label_names)) != c_dim:
            raise UserError(f"{len(set(self.label_names))} class names for a generator of {c_dim}")
        if (counts := self.label_counts) is not None and (len(counts) != c_dim or min(counts, default=0) < 0):
            raise UserError(f"slices per class {shorten(counts)} for a generator of {c_dim} classes")
        if self.pixel is not None and not 0 < self.pixel[0] <= self.pixel[1]:
            raise UserError(f"pixels of {self.pixel[0]:g} to {self.pixel[1]:g} mm")
        names = (*(self.patients or ()), *(self.label_names or ()))
        if odd := [name for name in names if not is_plain_name(name)]:
            raise UserError(f"{shorten(odd[0])} can't be a name: it looks like a path, or is too long")

    def _check_networks(self) -> None:
        """Raise UserError if schema, generator and training configuration do not fit together."""
        schema, generator, training = self.schema, self.generator, self.training
        if schema.num_contrasts != generator.num_contrasts or schema.num_maps != generator.num_maps:
            raise UserError(
                f"a generator of {generator.num_contrasts} contrasts and {generator.num_maps} label maps, but a schema "
                f"of {schema.num_contrasts} and {schema.num_maps}"
            )
        if training and (training.generator, training.discriminator) != (generator, self.discriminator):
            raise UserError("the networks differ from those in the training configuration")

    @property
    def all_patients(self) -> tuple[str, ...] | None:
        """Patients behind the network, sorted; None if not all of them are known."""
        return None if self.more_patients else self.patients

    def label_name(self, label: int) -> str:
        """Name of a class, or its number where classes have no names."""
        return self.label_names[label] if self.label_names else str(label)


@dataclass(frozen=True)
class LoadedGenerator:
    """The averaged generator of a snapshot, ready to generate, with its metadata."""

    generator: Generator  # G_ema in eval mode, on the CPU
    info: SnapshotInfo
    path: Path
    sha256: str  # of the file


def snapshot_name(kimg: float) -> str:
    """File name of a snapshot after this many thousand images."""
    return f"network-snapshot-{int(kimg):06d}.safetensors"


def save_snapshot(path: str | os.PathLike, networks: dict[str, nn.Module], info: SnapshotInfo) -> None:
    """Write networks and metadata to a file. Tensor names get the network's name in front, for example G_ema.…"""
    tensors = {
        f"{prefix}.{name}": value
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    }
    checkpoint.save(path, tensors, config.to_json(info), kind=KIND, version=VERSION)


def load_generator(source: str | os.PathLike) -> LoadedGenerator:
    """Load G_ema from a snapshot file, from the latest snapshot of a run folder, or from a published checkpoint.

    It doesn't compute in bfloat16, so that a slice does not depend on its batch.
    Raises UserError with the file's name if it is missing, damaged, or not a snapshot.
    """
    path = find_snapshot(source)
    if is_pickle(path) or path.suffix == ".pkl":
        return _load_published(path)
    info = read_info(path)
    generator = checkpoint.load_network(path, lambda: Generator(info.generator), prefix="G_ema.")
    return LoadedGenerator(generator.without_bfloat16().eval().requires_grad_(False), info, path, sha256(path))


def _load_published(path: Path) -> LoadedGenerator:
    """Load G_ema from a checkpoint of the published StyleGAN2-ADA code, which does not say how it was trained."""
    found = read_published(path, networks=["G_ema"])
    generator = Generator(found.generator)
    generator.load_state_dict({name.removeprefix("G_ema."): tensor for name, tensor in found.tensors.items()})
    info = SnapshotInfo(schema=found.schema, generator=found.generator, kimg=None, patients=None)
    return LoadedGenerator(generator.eval().requires_grad_(False), info, path, found.sha256)


def read_info(path: Path) -> SnapshotInfo:
    """Read the metadata of a snapshot file. Raises UserError as `load_generator` does."""
    metadata = checkpoint.read_metadata(path, KIND, VERSION, upgrades={2: _from_version_2})
    return config.from_json(SnapshotInfo, metadata, str(path))


def _from_version_2(metadata: dict[str, Any]) -> dict[str, Any]:
    """Upgrade metadata of version 2, which had the networks' arguments only inside the training configuration."""
    training = metadata.get("training")
    if not isinstance(training, dict):
        return metadata
    copied = {name: training[name] for name in ("generator", "discriminator") if name in training}
    return {**copied, **metadata}


def find_snapshot(source: str | os.PathLike) -> Path:
    """Return the file itself, or the latest snapshot of a run folder. Raises UserError for a folder without any."""
    source = Path(source)
    if not source.is_dir():
        return source
    # Sort by number, not by name: from a million kimg on, names have more than six digits.
    found = sorted((int(m[1]), p) for p in source.iterdir() if (m := _NAME.fullmatch(p.name)))
    if not found:
        published = any(path.suffix == ".pkl" for path in source.iterdir())
        raise UserError(
            f"{source}: no network-snapshot-NNNNNN.safetensors in this folder; give "
            + ("one of its .pkl files" if published else "a run folder of train.py, or a file")
        )
    return found[-1][1]


def has_snapshot(folder: Path, kimg: float | None = None) -> bool:
    """Return whether a run folder has a whole snapshot of exactly this many thousand images. None: of any number."""
    if kimg is None:
        return any(_NAME.fullmatch(path.name) for path in folder.iterdir())
    path = folder / snapshot_name(kimg)  # the name counts whole thousands
    try:
        return path.exists() and checkpoint.load(path, KIND, VERSION).metadata["kimg"] == kimg
    except UserError:  # damaged
        return False
