"""The U-Net: MONAI's 2-D BasicUNet, built from a configuration, and saved and loaded with its schema."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib import config as configs
from dnnlib.errors import UserError
from segmentation.archive_facts import ArchiveFacts
from segmentation.config import SMALLEST, TrainUNetConfig, UNetConfig
from segmentation.draws import Drawn
from slices.archive.format import LARGEST_RESOLUTION
from slices.codec import SliceCodec
from slices.schema import Schema
from torch_utils import checkpoint

KIND, VERSION = "unet", 4


@dataclass(frozen=True)
class UNetInfo:
    """What a saved U-Net stores beside its weights."""

    schema: Schema
    resolution: int
    network: UNetConfig
    training: TrainUNetConfig
    arm: str  # notation of its arm, such as 3F+R*full; empty: all slices of the archives
    archives: tuple[ArchiveFacts, ...]  # archives that it learned from
    learned: tuple[int, ...]  # how many slices of each of these archives it learned from, R's flips included
    patients: tuple[str, ...]  # patients of these slices, sorted
    seen: tuple[str, ...]  # patients that the generator of some slices saw, sorted
    drawn: Drawn  # how many slices it learned from

    def __post_init__(self) -> None:
        if (self.network.in_channels, self.network.out_channels) != (self.schema.num_contrasts, self.schema.num_maps):
            raise UserError(
                f"the network has {self.network.in_channels} contrasts and {self.network.out_channels} classes, but "
                f"the schema has {self.schema.num_contrasts} and {self.schema.num_maps}"
            )
        if not SMALLEST <= self.resolution <= LARGEST_RESOLUTION:
            raise UserError(f"resolution {self.resolution}: expected {SMALLEST} to {LARGEST_RESOLUTION}")

    @property
    def known_patients(self) -> frozenset[str]:
        """Patients that the U-Net must not be tested on."""
        return frozenset((*self.patients, *self.seen))


@dataclass(frozen=True)
class TrainedUNet:
    """A U-Net ready to predict."""

    network: torch.nn.Module  # [N, C, H, W] in [−1, 1] -> logits [N, K, H, W]
    info: UNetInfo


def configure_unet(schema: Schema, resolution: int, width: int) -> UNetConfig:
    """Configure a network for slices of a schema. Raises UserError without classes, or for too few pixels."""
    if not schema.num_maps:
        raise UserError(f"the slices have no lesion classes ({schema.describe()}), so there is nothing to segment")
    if resolution < SMALLEST:
        raise UserError(
            f"{resolution}×{resolution} pixels are too few for this U-Net: convert at --resolution {SMALLEST} or more"
        )
    return UNetConfig(schema.num_contrasts, schema.num_maps, width)


def build_unet(network: UNetConfig, seed: int = 0) -> torch.nn.Module:
    """Build a network on the CPU. Its weights depend on the seed only; torch's global generator is left unchanged."""
    from monai.networks.nets import BasicUNet  # takes seconds to import

    # fork_rng restores the global generator afterwards. stdout is caught because some versions of MONAI print widths.
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        torch.default_generator.manual_seed(seed)
        return BasicUNet(
            spatial_dims=2,
            in_channels=network.in_channels,
            out_channels=network.out_channels,
            features=network.features,
        )


def to_input(contrasts: torch.Tensor, schema: Schema) -> torch.Tensor:
    """Stored contrasts, uint8 [N, C, H, W] -> float32 in [−1, 1]."""
    return SliceCodec(schema).to_network(contrasts)


def save_unet(path: str | os.PathLike, unet: TrainedUNet) -> None:
    """Write a U-Net as one safetensors file: its weights, and its info as metadata."""
    metadata: dict[str, Any] = configs.to_json(unet.info)
    checkpoint.save(path, unet.network.state_dict(), metadata, kind=KIND, version=VERSION)


def load_unet(path: str | os.PathLike, device: torch.device | str = "cpu") -> TrainedUNet:
    """Load a U-Net, ready to predict. Raises UserError naming the file if `save_unet` didn't write it."""
    info = configs.from_json(UNetInfo, checkpoint.read_metadata(path, KIND, VERSION), str(path))
    network = checkpoint.load_network(path, lambda: build_unet(info.network))
    return TrainedUNet(network.to(device).eval(), info)
