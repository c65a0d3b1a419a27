"""Network snapshots: written by training, read by whatever generates."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dnnlib import config
from dnnlib.errors import UserError
from dnnlib.files import sha256
from slices.schema import Schema
from torch_utils import checkpoint
from training.config import TrainingConfig
from training.generator import Generator

KIND, VERSION = "network snapshot", 2
_NAME = re.compile(r"network-snapshot-(\d{6})\.safetensors")


@dataclass(frozen=True)
class SnapshotInfo:
    """What travels with the weights.

    patients: whom the networks learned from, sorted: the patients of the slices that were used, not of all in the
    archive; and if those were generated, whom their own generator saw.
    training.data.path: the archive's name without its folder, which is nobody's business; data_sha256: its content.
    label_names: names of the classes that a conditional generator knows.
    """

    schema: Schema
    training: TrainingConfig
    data_sha256: str
    kimg: float
    patients: tuple[str, ...]
    label_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LoadedGenerator:
    """The averaged generator of a snapshot, ready to generate, with what is known of it."""

    generator: Generator
    info: SnapshotInfo
    path: Path
    sha256: str


def snapshot_name(kimg: float) -> str:
    return f"network-snapshot-{int(kimg):06d}.safetensors"


def save_snapshot(path: str | os.PathLike, networks: dict[str, nn.Module], info: SnapshotInfo) -> None:
    """Write G, D and G_ema; `networks` has these as keys, which prefix the names of their tensors."""
    tensors = {
        f"{prefix}.{name}": value
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    }
    checkpoint.save(path, tensors, config.to_json(info), kind=KIND, version=VERSION)


def load_generator(source: str | os.PathLike) -> LoadedGenerator:
    """Load G_ema from a snapshot file, or from the latest snapshot of a run folder.

    Raises UserError naming the file when it is missing, damaged, or no snapshot.
    """
    path = find_snapshot(source)
    tensors, metadata = checkpoint.load(path, kind=KIND, version=VERSION)
    info = config.from_json(SnapshotInfo, metadata, str(path))
    generator = Generator(info.training.generator)
    _fill(generator, tensors, "G_ema", path)
    return LoadedGenerator(generator.eval().requires_grad_(False), info, path, sha256(path))


def _fill(network: nn.Module, tensors: dict, prefix: str, path: Path) -> None:
    own = {name.removeprefix(prefix + "."): t for name, t in tensors.items() if name.startswith(prefix + ".")}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{path}: the tensors of {prefix} do not fit its constructor arguments ({error})") from None


def find_snapshot(source: str | os.PathLike) -> Path:
    """The file itself, or the latest snapshot of a run folder."""
    source = Path(source)
    if not source.is_dir():
        return source
    found = sorted((int(m[1]), p) for p in source.iterdir() if (m := _NAME.fullmatch(p.name)))
    if not found:
        raise UserError(
            f"{source}: no network-snapshot-NNNNNN.safetensors in this folder; give a run folder of train.py, or a file"
        )
    return found[-1][1]
