"""Snapshots and U-Nets that lie: each is refused with its name and a reason before it takes memory."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dnnlib.errors import UserError
from forge import NAN, find
from helpers.drawn import write_archive
from runner import Cases, require
from segmentation.config import TrainUNetConfig
from segmentation.draws import Drawn
from segmentation.unet import TrainedUNet, UNetInfo, build_unet, configure_unet, load_unet, save_unet
from slices.dataset import SliceDataset
from slices.schema import BRATS
from training.config import resolve
from training.networks.generator import Generator
from training.options import DataConfig
from training.recipes import find_recipe
from training.snapshot import SnapshotInfo, load_generator, save_snapshot

HUGE = 1 << 62


def write_snapshot(path: Path) -> None:
    data = write_archive(path.with_suffix(".zip"), count=2)
    recipe = replace(find_recipe("auto", 16), batch=4, cbase=64, cmax=8, z_dim=8, map_depth=2)
    config = resolve(recipe, DataConfig(str(data)), BRATS, 16, snap=0)
    info = SnapshotInfo(
        schema=BRATS,
        generator=config.generator,
        discriminator=config.discriminator,
        kimg=1.5,
        patients=SliceDataset(data).patients,
        training=config,
        data_sha256="0" * 64,
    )
    save_snapshot(path, {"G_ema": Generator(config.generator)}, info)


def write_unet(path: Path) -> None:
    network = configure_unet(BRATS, 32, 2)
    info = UNetInfo(BRATS, 32, network, TrainUNetConfig(1, width=2), "", (), (), ("a",), (), Drawn(1, 0, 0))
    save_unet(path, TrainedUNet(build_unet(network), info))


NETWORKS = {"snapshot": (write_snapshot, load_generator), "unet": (write_unet, load_unet)}
G = "generator."
LIES = [  # which file, what its metadata say instead, words of the refusal
    ("snapshot", {G + "resolution": 1 << 30}, "power of two from 4 to 4096"),
    ("snapshot", {G + "resolution": 24}, "power of two"),
    ("snapshot", {G + "resolution": 4096, G + "channel_base": 1 << 30, G + "channel_max": 65536}, "lacks the tensor"),
    ("snapshot", {G + "channel_base": 1 << 30, G + "channel_max": 65536}, "the network that it describes has"),
    ("snapshot", {G + "channel_base": 8}, "leaves no feature map"),
    ("snapshot", {G + "channel_max": -8}, "--cmax -8: expected a whole number from 1"),
    ("snapshot", {G + "mapping_layers": 10**9}, "--map-depth 1000000000: expected a whole number from 1 to 100"),
    ("snapshot", {G + "mapping_layers": 1}, "has a tensor 'G_ema.mapping.fc1.bias'"),
    ("snapshot", {G + "num_maps": HUGE}, "num_maps 4611686018427387904: expected"),
    ("snapshot", {G + "num_maps": 0}, "4 contrasts and 0 label maps, but a schema of 4 and 4"),
    ("snapshot", {G + "num_contrasts": 16}, "16 contrasts and 4 label maps, but a schema"),
    ("snapshot", {G + "z_dim": HUGE}, "--z-dim"),
    ("snapshot", {G + "z_dim": 65536, G + "w_dim": 65536}, "the network that it describes has"),
    ("snapshot", {G + "c_dim": 65536}, "lacks the tensor"),
    ("snapshot", {G + "c_dim": -1}, "c_dim -1: expected"),
    ("snapshot", {G + "num_fp16_res": HUGE}, "num_fp16_res 4611686018427387904: expected"),
    ("snapshot", {G + "conv_clamp": -1.0}, "conv_clamp -1: expected a number from 0"),
    ("snapshot", {"discriminator.mbstd_group_size": 0}, "mbstd_group_size 0"),
    ("snapshot", {"training.discriminator.mbstd_group_size": 0}, "mbstd_group_size 0"),
    ("snapshot", {"training.discriminator.mbstd_group_size": 2}, "the networks differ from those in the training"),
    ("snapshot", {"training.generator.w_dim": 16}, "the networks differ from those in the training"),
    ("snapshot", {"discriminator": None}, "the networks differ from those in the training"),
    ("snapshot", {"generator": None}, "expected an object"),
    ("snapshot", {"training.batch": HUGE, "training.batch_gpu": HUGE - 1}, "--batch"),
    ("snapshot", {"kimg": -0.5}, "kimg -0.5: expected 0 or more"),
    ("snapshot", {"patients": ["../../x"]}, "can't be a name"),
    ("snapshot", {"label_names": ["HGG", "LGG"]}, "2 class names for a generator of 0"),
    ("snapshot", {"label_counts": [3]}, "slices per class (3,) for a generator of 0 classes"),
    ("snapshot", {"pixel": [0.0, 1.0]}, "pixels of 0 to 1 mm"),
    ("unet", {"network.width": 10**12}, "width 1000000000000: expected a whole number from 1 to 4096"),
    ("unet", {"network.width": 4096}, "the network that it describes has"),
    ("unet", {"network.width": 0}, "width 0"),
    ("unet", {"network.in_channels": HUGE}, "in_channels"),
    ("unet", {"network.in_channels": 3}, "the network has 3 contrasts and 4 classes, but the schema has 4 and 4"),
    ("unet", {"network.out_channels": 16}, "16 classes"),
    ("unet", {"resolution": 1 << 30}, "resolution 1073741824: expected 32 to 4096"),
    ("unet", {"resolution": -32}, "resolution -32"),
]
SPOILED = [  # what becomes of a tensor; None: it is left out
    (lambda t: None, "lacks the tensor"),
    (lambda t: t.flatten(), "the network that it describes has"),
    (lambda t: t[None], "the network that it describes has"),
    (lambda t: t.to(torch.float64), "holds torch.float64; expected torch.float32"),
    (lambda t: t.to(torch.uint8), "holds torch.uint8"),
    (lambda t: t * NAN, "values that are not finite numbers"),
    (lambda t: t / 0, "values that are not finite numbers"),
]
OF_NETWORK = {"snapshot": "G_ema.mapping.fc0.weight", "unet": "conv_0.conv_0.conv.weight"}
_VERSION = re.compile(rb'(\\"version\\": )\d+')
HEADERS = [  # the 8 bytes of the header's length and the header, as other bytes
    lambda n, text: (HUGE.to_bytes(8, "little"), text),
    lambda n, text: ((n + (1 << 20)).to_bytes(8, "little"), text),
    lambda n, text: ((n - 1).to_bytes(8, "little"), text),
    lambda n, text: (bytes(8), text),
    lambda n, text: _of(b"[" * 10000 + b"]" * 10000),
    lambda n, text: _of(text.replace(b"[0,", b"[4,", 1)),
    lambda n, text: _of(text.rstrip()[:-1] + b',"more":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'),
    lambda n, text: _of(text.replace(b'\\"format\\"', b'\\"x\\":' + b"[" * 5000 + b"]" * 5000 + b',\\"format\\"')),
    lambda n, text: _of(text.replace(b'\\"format\\"', b'\\"format\\":1,\\"format\\"')),
    lambda n, text: _of(_VERSION.sub(rb"\1NaN", text)),
    lambda n, text: _of(_VERSION.sub(rb"\1[" + b"7" * 10000 + b"]", text)),
    lambda n, text: _of(text.replace(b'\\"kind\\": \\"', b'\\"kind\\": \\"' + b"x" * 10000)),
]


def _of(text: bytes) -> tuple[bytes, bytes]:
    return len(text).to_bytes(8, "little"), text


class Networks:
    """A good file of each kind, to be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.n, self.folder = 0, folder
        for kind, (write, load) in NETWORKS.items():
            write(self.good(kind))
            load(self.good(kind))

    def good(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"

    def content(self, kind: str) -> tuple[dict, dict[str, torch.Tensor]]:
        """The document in a good file's metadata, and its tensors."""
        with safetensors.safe_open(self.good(kind), framework="pt") as file:
            document = json.loads(file.metadata()["checkpoint"])
            return document, {name: file.get_tensor(name) for name in file.keys()}

    def refuse(self, kind: str, content: bytes, words: str) -> None:
        """Load a spoiled file, which must be refused in one line of at most 400 characters with its name and words."""
        path = self.folder / "hostile.safetensors"
        path.write_bytes(content)
        try:
            NETWORKS[kind][1](path)
        except UserError as error:
            message = str(error)
            require(str(path) in message and words in message, f"expected {words!r}, found", message[:400])
            require("\n" not in message and len(message) <= 400, "no line for a terminal:", repr(message[:500]))
        else:
            require(False, "was read, but must be refused")


CASES = Cases(__file__, Networks)
KINDS = list(NETWORKS)


def packed(document: dict, tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(tensors, {"checkpoint": json.dumps(document)})


@CASES.way("metadata", len(LIES))
def it_lies_about_the_network(bench, random, k):
    kind, changes, words = LIES[k]
    document, tensors = bench.content(kind)
    for path, value in changes.items():
        *outer, name = path.split(".")
        find(document["metadata"], tuple(outer))[name] = value
        if path.startswith(G):  # the training configuration says it again
            document["metadata"]["training"]["generator"][name] = value
    bench.refuse(kind, packed(document, tensors), words)


@CASES.way("tensor", 2 * len(SPOILED))
def it_is_missing_or_another(bench, random, k):
    kind, (change, words) = KINDS[k % 2], SPOILED[k // 2]
    document, tensors = bench.content(kind)
    spoiled = change(tensors.pop(OF_NETWORK[kind]))
    bench.refuse(kind, packed(document, tensors | ({} if spoiled is None else {OF_NETWORK[kind]: spoiled})), words)


@CASES.way("header", 2 * len(HEADERS))
def it_is_no_header_of_safetensors(bench, random, k):
    kind = KINDS[k % 2]
    content = bench.good(kind).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = b"".join(HEADERS[k // 2](length, content[8 : 8 + length]))
    bench.refuse(kind, header + content[8 + length :], "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("way", CASES.ways)
def test_what_a_file_says_of_its_network_is_compared_with_its_tensors_first(way):
    CASES.check(way)
