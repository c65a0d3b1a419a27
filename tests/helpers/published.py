"""Files in the form of published checkpoints, of networks of ours: what the published code's pickles look like."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from training.networks.discriminator import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue
from training.networks.generator import Generator, SynthesisBlock, SynthesisLayer, SynthesisNetwork

SOURCE = "# source code of the published networks\n" * 100

Change = Callable[[str, dict[str, Any]], None]  # of the state of a module, given its name, such as "synthesis.b4"


class Name:
    """A name that a pickle asks for, whether or not it exists."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Called:
    """What a pickle makes by a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state


class Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes pickles with names and calls that Python's own pickler would look up first."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_name(self, name: Name) -> None:
        if self.proto >= 4:
            self.save(name.module)
            self.save(name.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def save_called(self, called: Called) -> None:
        self.save(called.function)
        self.save(called.arguments)
        self.write(pickle.REDUCE)
        self.memoize(called)
        if called.state is not None:
            self.save(called.state)
            self.write(pickle.BUILD)

    dispatch[Name], dispatch[Called] = save_name, save_called


def dumps(value: Any, protocol: int = 4) -> bytes:
    """Pickle a value with names and calls."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


PERSISTENT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
TENSOR, PARAMETER = Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_parameter")
STORAGE, ORDERED = Name("torch.storage", "_load_from_bytes"), Name("collections", "OrderedDict")


def storage_bytes(tensor: torch.Tensor) -> bytes:
    """The storage of a tensor, as torch saves it within a pickle."""
    buffer = io.BytesIO()
    torch.save(tensor._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tensor_as_saved(tensor: torch.Tensor) -> Called:
    layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), False, Called(ORDERED))
    return Called(TENSOR, Called(STORAGE, storage_bytes(tensor)), *layout)


def object_as_saved(class_name: str, state: dict[str, Any]) -> Called:
    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}
    return Called(PERSISTENT, meta)


def module_as_saved(module: nn.Module, change: Change | None = None, name: str = "") -> Called:
    """A module as the published code saves the one that has its name. change: of the state, before it is saved."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str)) and k[0] != "_"}
    state: dict[str, Any] = plain | published_options(module)
    state["_parameters"] = {
        key: Called(PARAMETER, tensor_as_saved(tensor.detach()), True, Called(ORDERED))
        for key, tensor in module._parameters.items()
        if tensor is not None
    }
    state["_buffers"] = {key: tensor_as_saved(tensor) for key, tensor in module._buffers.items() if tensor is not None}
    state["_modules"] = {
        key: module_as_saved(inner, change, f"{name}.{key}".lstrip("."))
        for key, inner in module._modules.items()
        if inner is not None and not isinstance(inner, nn.Identity)
    }
    if isinstance(module, DiscriminatorEpilogue):
        compared = {"group_size": module.mbstd_group_size, "num_channels": 1}
        if change:
            change(f"{name}.mbstd", compared)
        state["_modules"]["mbstd"] = object_as_saved("MinibatchStdLayer", compared)
    if change:
        change(name, state)
    return object_as_saved(type(module).__name__, state)


def published_options(module: nn.Module) -> dict[str, Any]:
    """What the published code's module notes, and ours does not, or elsewhere."""
    if isinstance(module, (Generator, Discriminator)):
        config = module.config
        channels = {"channel_base": config.channel_base, "channel_max": config.channel_max}
        if isinstance(module, Generator):
            module.synthesis.published_kwargs = channels
            options = {"z_dim": config.z_dim, "w_dim": config.w_dim, "img_channels": config.num_contrasts}
        else:
            options = {"img_channels": config.img_channels, "_init_kwargs": channels}
        return options | {"img_resolution": config.resolution, "c_dim": config.c_dim}
    if isinstance(module, SynthesisNetwork):
        return {"_init_kwargs": module.published_kwargs}
    if isinstance(module, SynthesisBlock):
        return {"architecture": "skip", "use_fp16": module.half_type is not None}
    if isinstance(module, SynthesisLayer):
        return {"activation": "lrelu", "use_noise": True}
    if isinstance(module, DiscriminatorBlock):
        architecture = "resnet" if module.residual else "orig"
        return {"architecture": architecture, "use_fp16": module.half_type is not None}
    if isinstance(module, DiscriminatorEpilogue):
        return {"architecture": module.published_architecture}
    return {}


def network_as_saved(network: nn.Module, change: Change | None = None) -> Called:
    """A generator or discriminator as the published code saves it. change: of the state of a module."""
    if isinstance(network, Discriminator):
        network.b4.published_architecture = "resnet" if network.config.residual else "orig"
    return module_as_saved(network, change)


def checkpoint_as_saved(
    networks: Mapping[str, nn.Module], change: Change | None = None, protocol: int = 4, **more: Any
) -> bytes:
    """A checkpoint with these networks. change: of the state of a module. more: values beside the networks."""
    saved: dict[str, Any] = {name: network_as_saved(network, change) for name, network in networks.items()}
    return dumps(saved | {"augment_pipe": None, "training_set_kwargs": {"path": "x.zip"}} | more, protocol)
