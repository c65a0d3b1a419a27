"""Published checkpoints as networks of this project: their options, and their tensors by name.

A published checkpoint is a pickle of a dictionary with the networks G, D and G_ema. Its parameters have the same names
as ours. What was computed with them is told by options that the file keeps: they become our configuration, and a file
whose networks compute anything else than ours do is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.text import name_some
from slices.schema import Schema
from torch_utils.ops.upfirdn2d import setup_filter
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.networks.layers import LOWPASS
from training.published.names import Module, read_values
from training.published.storages import StoredTensor
from training.recipes import LARGEST_BATCH

NETWORKS = ("G", "D", "G_ema")
_MOST_MODULES = 10_000  # of a network, each as often as it is named; the largest published ones have about 100
_DEFAULT_BASE, _DEFAULT_MAX = 32768, 512  # of the feature maps, where the file leaves them out


@dataclass(frozen=True)
class PublishedNetworks:
    """The networks of a published checkpoint."""

    generator: GeneratorConfig  # of G and G_ema
    discriminator: DiscriminatorConfig | None  # None: the file has no D
    tensors: dict[str, torch.Tensor]  # with the network's name in front, such as G_ema.synthesis.b4.const; on the CPU
    sha256: str  # of the file

    @property
    def schema(self) -> Schema:
        """The channels of the images, as contrasts without label maps."""
        channels = self.generator.num_contrasts
        return Schema(("red", "green", "blue") if channels == 3 else tuple(f"c{i}" for i in range(channels)))


def is_pickle(path: str | os.PathLike) -> bool:
    """Return whether a file begins like a pickle of protocol 2 or later. False if there is no such file."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    # 0x80 may also be the first byte of a safetensors file, the length of its header. That begins with { at byte 8.
    return start[:1] == b"\x80" and start[8:9] != b"{"


def read_published(path: str | os.PathLike, networks: Collection[str] = NETWORKS) -> PublishedNetworks:
    """Read a checkpoint that the published StyleGAN2-ADA code has saved. Nothing in it is executed.

    networks: names of those whose tensors are wanted. G_ema must be in the file; the others may be missing.
    Beside the file's own bytes, this takes memory for the tensors.
    Raises UserError with the file's name if it is damaged, holds anything else than networks need, or holds networks
    that differ from those of this project.
    """
    content = _mapped(Path(path))
    modules = _networks_in(read_values(content, str(path)), str(path))
    generator = _generator_config(modules["G_ema"], f"{path}: G_ema")
    if "G" in modules and _generator_config(modules["G"], f"{path}: G") != generator:
        raise UserError(f"{path}: G and G_ema have different options; expected two copies of one network")
    discriminator = _discriminator_config(modules["D"], f"{path}: D") if "D" in modules else None
    if discriminator and (discriminator.resolution, discriminator.img_channels, discriminator.c_dim) != (
        generator.resolution,
        generator.num_contrasts,
        generator.c_dim,
    ):
        raise UserError(f"{path}: D judges other images than G_ema makes; expected the networks of one training")

    stored: dict[str, StoredTensor] = {}
    for name, module in modules.items():
        with torch.device("meta"):  # where tensors take no memory, however large the file says they are
            ours = Discriminator(discriminator) if name == "D" and discriminator else Generator(generator)
        found = _check_network(module, ours, str(path), name)
        if name in networks:
            stored |= found
    if sum(tensor.nbytes for tensor in stored.values()) > len(content):
        raise UserError(f"{path}: its tensors have more bytes than the file: they share numbers, as networks never do")
    tensors = {name: _load(name, tensor, str(path)) for name, tensor in stored.items()}
    return PublishedNetworks(generator, discriminator, tensors, hashlib.sha256(content).hexdigest())


def _mapped(path: Path) -> memoryview:
    """View a file. Its bytes come into memory when they are looked at. Raises UserError if it can't be a pickle."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .pkl file")
    if not path.is_file():  # reading from a pipe might wait forever
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise UserError(f"{path}: an empty file; expected a checkpoint of StyleGAN2-ADA (.pkl)")
        # A private copy of the file: torch wants memory that it could write to.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _networks_in(values: Any, where: str) -> dict[str, Module]:
    """Return the networks in a file by name. Raises UserError if it has no G_ema."""
    values = values if type(values) is dict else {}
    modules = {name: values[name] for name in NETWORKS if isinstance(values.get(name), Module)}
    if "G_ema" not in modules:
        raise UserError(
            f"{where} holds no network G_ema; expected a checkpoint of the published StyleGAN2-ADA code, which has the "
            "networks G, D and G_ema"
        )
    for name, module in modules.items():
        for _, part in _walk(module, where):
            if part.class_name == "SynthesisInput" or "magnitude_ema" in _dict(part.state.get("_buffers")):
                raise UserError(
                    f"{where} is a checkpoint of StyleGAN3: its {name} is another network than StyleGAN2's; give a "
                    "checkpoint of StyleGAN2-ADA"
                )
    return modules


# --- modules of the file ----------------------------------------------------------------------------------------------


def _dict(value: Any) -> dict[str, Any]:
    """Return the value if it is a dictionary, else an empty one."""
    return value if type(value) is dict else {}


def _walk(module: Module, where: str) -> Iterator[tuple[str, Module]]:
    """Yield a module and all its parts, with their names, such as "synthesis.b4"; "" is the module itself.

    Raises UserError if there are too many: a part may contain another one any number of times.
    """
    waiting, count = [("", module)], 1
    while waiting:
        name, part = waiting.pop()
        yield name, part
        parts = _dict(part.state.get("_modules"))
        if (count := count + len(parts)) > _MOST_MODULES:
            raise UserError(f"{where}: a network of more than {_MOST_MODULES} parts, far more than networks have")
        inner = [(f"{name}.{key}".lstrip("."), value) for key, value in parts.items() if isinstance(value, Module)]
        waiting += inner[::-1]  # the first one comes next


def _part(module: Module, name: str, where: str) -> Module:
    """Return a part of a module. Raises UserError if it has no such part."""
    part = _dict(module.state.get("_modules")).get(name)
    if not isinstance(part, Module):
        raise UserError(f"{where} has no {name}; expected a network of StyleGAN2-ADA")
    return part


def _number(facts: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    """Return a whole number. Raises UserError if it is missing without a default, or is none."""
    value = facts.get(name, default)
    if type(value) is not int:
        raise UserError(f"{where}: {name} is {shorten(value)}; expected a whole number")
    return value


def _clamp(part: Module, where: str) -> float | None:
    """Return the clamp of a layer's activations."""
    value = part.state.get("conv_clamp")
    if value is not None and type(value) not in (int, float):
        raise UserError(f"{where}: conv_clamp is {shorten(value)}; expected a number")
    return value


def _group_size(part: Module, where: str) -> int:
    """Return how many samples the minibatch standard deviation compares."""
    if part.state.get("group_size", 0) is None:  # the whole minibatch, as where networks of TensorFlow were converted
        return LARGEST_BATCH
    return _number(part.state, "group_size", where)


def _blocks(module: Module, where: str) -> list[Module]:
    """Return the blocks that are one for each resolution, without the one at 4×4."""
    parts = _dict(module.state.get("_modules"))
    return [part for name, part in parts.items() if name[:1] == "b" and name != "b4" and isinstance(part, Module)]


def _common(module: Module, given: Module, layer: Module, where: str) -> dict[str, Any]:
    """Return the options that generator and discriminator share.

    given: the part that got the options of the feature maps. layer: one of the layers of convolution.
    """
    kwargs = _dict(given.state.get("_init_kwargs"))
    return {
        "resolution": _number(module.state, "img_resolution", where),
        "c_dim": _number(module.state, "c_dim", where),
        "channel_base": _number(kwargs, "channel_base", where, _DEFAULT_BASE),
        "channel_max": _number(kwargs, "channel_max", where, _DEFAULT_MAX),
        "num_fp16_res": sum(part.state.get("use_fp16") is True for part in _blocks(given, where)),
        "conv_clamp": _clamp(layer, where),
    }


def _generator_config(module: Module, where: str) -> GeneratorConfig:
    """Return the options of a generator. Raises UserError for those that ours does not have."""
    synthesis, mapping = _part(module, "synthesis", where), _part(module, "mapping", where)
    layer = _part(_part(synthesis, "b4", where), "conv1", where)
    options = {
        "num_contrasts": _number(module.state, "img_channels", where),
        "num_maps": 0,
        "z_dim": _number(module.state, "z_dim", where),
        "w_dim": _number(module.state, "w_dim", where),
        "mapping_layers": _number(mapping.state, "num_layers", where),
        **_common(module, synthesis, layer, where),
    }
    with _naming(where):
        return GeneratorConfig(**options)


def _discriminator_config(module: Module, where: str) -> DiscriminatorConfig:
    """Return the options of a discriminator. Raises UserError for those that ours does not have."""
    last = _part(module, "b4", where)
    architecture = last.state.get("architecture")
    if architecture not in ("resnet", "orig"):
        raise UserError(f"{where} has the architecture {shorten(architecture)}; this project has resnet and orig")
    options = {
        "img_channels": _number(module.state, "img_channels", where),
        "mbstd_group_size": _group_size(_part(last, "mbstd", where), where),
        "residual": architecture == "resnet",
        **_common(module, module, _part(last, "conv", where), where),
    }
    with _naming(where):
        return DiscriminatorConfig(**options)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the name of the network before messages about options."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# --- the file's networks beside ours ----------------------------------------------------------------------------------

# Options that a layer of the file and ours note under the same name, and under which name their user gave them.
_SHARED = {
    "activation": "activation",
    "bias_gain": "lr_multiplier",
    "weight_gain": "weight_gain",
    "conv_clamp": "conv_clamp",
    "resolution": "resolution",
    "up": "up",
    "down": "down",
    "padding": "padding",
    "num_layers": "num_layers",
    "cmap_dim": "cmap_dim",
}
# Class of a part -> options that ours have no name for, because they all have this value.
_FIXED: dict[str, dict[str, Any]] = {
    "SynthesisBlock": {"architecture": "skip"},
    "SynthesisLayer": {"activation": "lrelu", "use_noise": True},
    "MinibatchStdLayer": {"num_channels": 1},
}


_DEVIATIONS = "b4.mbstd"  # part for the minibatch standard deviation, which is a function in ours
_NOT_OURS = "unlike the network of StyleGAN2-ADA that it describes"


def _check_network(module: Module, ours: nn.Module, where: str, name: str) -> dict[str, StoredTensor]:
    """Return the tensors of a network of the file, with its name in front.

    ours: the network of this project with the same options. Raises UserError that names the first difference.
    """
    our_parts = dict(ours.named_modules())
    expected = {f"{name}.{key}": tensor for key, tensor in ours.state_dict().items()}
    found: dict[str, StoredTensor] = {}
    for inner, part in _walk(module, where):
        if inner not in our_parts and inner != _DEVIATIONS:
            raise UserError(f"{where} has {name_some([f'{name}.{inner}'])}, {_NOT_OURS}")
        full = f"{name}.{inner}".rstrip(".")
        _check_options(part, our_parts.get(inner), f"{where}: {full}", getattr(ours.config, "residual", True))
        for key, tensor in _tensors(part).items():
            if f"{full}.{key}" not in expected:
                raise UserError(f"{where} has {name_some([f'{full}.{key}'])}, {_NOT_OURS}")
            found[f"{full}.{key}"] = _fitting(tensor, expected[f"{full}.{key}"], f"{where}: {full}.{key}")
    if missing := expected.keys() - found.keys():
        raise UserError(f"{where} lacks {min(missing)}, {_NOT_OURS}")
    return found


def _tensors(part: Module) -> dict[str, Any]:
    """Return the parameters and buffers of a part, without those of its own parts."""
    both = _dict(part.state.get("_parameters")) | _dict(part.state.get("_buffers"))
    return {key: value for key, value in both.items() if value is not None}


def _fitting(tensor: Any, expected: torch.Tensor, where: str) -> StoredTensor:
    """Return the tensor. Raises UserError if it is none, or of another shape or type."""
    if not isinstance(tensor, StoredTensor):
        raise UserError(f"{where} is {shorten(tensor)}; expected a tensor")
    if tensor.shape != tuple(expected.shape) or tensor.storage.dtype != expected.dtype:
        raise UserError(
            f"{where} is {list(tensor.shape)} of {tensor.storage.dtype}; the network that it describes has "
            f"{list(expected.shape)} of {expected.dtype}"
        )
    return tensor


def _check_options(part: Module, ours: nn.Module | None, where: str, residual: bool) -> None:
    """Raise UserError if a part of the file's network computes anything else than ours."""
    wanted = dict(_FIXED.get(part.class_name, {}))
    if part.class_name == "DiscriminatorBlock":
        wanted["architecture"] = "resnet" if residual else "orig"
    if ours is not None and hasattr(ours, "half_type"):
        wanted["use_fp16"] = ours.half_type is not None
    # What ours notes under the same name.
    wanted |= {key: getattr(ours, key) for key in _SHARED if hasattr(ours, key)}
    for key, value in wanted.items():
        if key in part.state and not _same(part.state[key], value):
            raise UserError(
                f"{where} has {_SHARED.get(key, key)} {shorten(part.state[key])}; this project's networks have "
                f"{shorten(value)} there"
            )


def _same(found: Any, ours: Any) -> bool:
    """Return whether two options are the same, numbers but for rounding."""
    if isinstance(found, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(found, ours, rel_tol=1e-6)
    return type(found) is type(ours) and found == ours


def _load(name: str, stored: StoredTensor, where: str) -> torch.Tensor:
    """Return a tensor. Raises UserError for values that are not finite, and for another filter than ours."""
    tensor = stored.load()
    # Not isfinite().all(), which takes as much memory again.
    if not torch.stack(tensor.aminmax()).isfinite().all():
        raise UserError(f"{where}: {name} holds values that are not finite numbers; take another checkpoint")
    if name.endswith(".resample_filter") and not torch.allclose(tensor, setup_filter(LOWPASS)):
        raise UserError(f"{where}: {name} is another filter than [1, 3, 3, 1], the only one of this project's networks")
    return tensor
