"""The U-Net that judges slices: MONAI's 2-D BasicUNet, built from a configuration, saved and loaded with its schema."""

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

KIND, VERSION = "unet", 3


@dataclass(frozen=True)
class UNetInfo:
    """What a saved U-Net says of itself."""

    schema: Schema
    resolution: int
    network: UNetConfig
    training: TrainUNetConfig
    archives: tuple[ArchiveFacts, ...]  # that it learned from
    patients: tuple[str, ...]  # of these archives' slices, sorted
    seen: tuple[str, ...]  # patients that it knows through a GAN that made some of the slices, sorted
    drawn: Drawn  # what it learned from

    def __post_init__(self) -> None:
        if (self.network.in_channels, self.network.out_channels) != (self.schema.num_contrasts, self.schema.num_maps):
            raise UserError(
                f"a network of {self.network.in_channels} contrasts and {self.network.out_channels} classes, but a "
                f"schema of {self.schema.num_contrasts} and {self.schema.num_maps}"
            )
        if not SMALLEST <= self.resolution <= LARGEST_RESOLUTION:
            raise UserError(f"resolution {self.resolution}: expected {SMALLEST} to {LARGEST_RESOLUTION}")

    @property
    def known_patients(self) -> frozenset[str]:
        """Patients that it must not be tested on."""
        return frozenset((*self.patients, *self.seen))


@dataclass(frozen=True)
class TrainedUNet:
    """A U-Net ready to predict."""

    network: torch.nn.Module  # [N, C, H, W] in [−1, 1] -> logits [N, K, H, W]
    info: UNetInfo


def configure_unet(schema: Schema, resolution: int, width: int) -> UNetConfig:
    """The network for slices of a schema. Raises UserError if there is nothing to segment, or too few pixels."""
    if not schema.num_maps:
        raise UserError(f"the slices have no lesion classes ({schema.describe()}), so there is nothing to segment")
    if resolution < SMALLEST:
        raise UserError(
            f"{resolution}×{resolution} pixels are too few for this U-Net: convert at --resolution {SMALLEST} or more"
        )
    return UNetConfig(schema.num_contrasts, schema.num_maps, width)


def build_unet(network: UNetConfig, seed: int = 0) -> torch.nn.Module:
    """A new network on the CPU; its weights depend on the seed alone, and torch's global generator stays as it was."""
    from monai.networks.nets import BasicUNet  # takes seconds to import

    # Some versions of MONAI print the widths.
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
    """Write a U-Net, network and info, as one safetensors file."""
    metadata: dict[str, Any] = configs.to_json(unet.info)
    checkpoint.save(path, unet.network.state_dict(), metadata, kind=KIND, version=VERSION)


def load_unet(path: str | os.PathLike, device: torch.device | str = "cpu") -> TrainedUNet:
    """Read what `save_unet` wrote, ready to predict. Raises UserError naming the file when it is something else."""
    info = configs.from_json(UNetInfo, checkpoint.read_metadata(path, KIND, VERSION), str(path))
    network = checkpoint.load_network(path, lambda: build_unet(info.network))
    return TrainedUNet(network.to(device).eval(), info)
