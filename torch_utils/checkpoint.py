"""Checkpoints: safetensors files with named tensors and one JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch

from dnnlib import config, files
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.system import plain_text
from dnnlib.text import name_some

FORMAT, VERSION = "stylegan2-mr", 1
LONGEST_METADATA = 1 << 24  # characters; the names of all patients take far fewer
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
Network = TypeVar("Network", bound=torch.nn.Module)
_KEY = "checkpoint"  # safetensors' metadata maps strings to strings: this key holds our JSON document


class Checkpoint(NamedTuple):
    """Content of a file."""

    tensors: dict[str, torch.Tensor]  # on the CPU
    metadata: dict[str, Any]  # the caller's


def save(
    path: str | os.PathLike,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, Any],
    kind: str,
    version: int = VERSION,
) -> None:
    """Write tensors and metadata to a .safetensors file, which appears only when it is complete.

    kind: purpose of the file, for example "snapshot". version: version of this kind's content. `load` checks both.
    Raises TypeError or ValueError for metadata that JSON can't represent, such as NaN.
    """
    document = {"format": FORMAT, "kind": kind, "version": version, "metadata": metadata}
    text = json.dumps(document, allow_nan=False)
    # Copy: safetensors refuses tensors that share memory, such as shared parameters and views.
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    files.write_bytes(path, safetensors.torch.save(plain, metadata={_KEY: text}))


def load(path: str | os.PathLike, kind: str, version: int = VERSION) -> Checkpoint:
    """Read a file that `save` has written.

    Raises UserError with the file's name if it is missing, damaged, or not a checkpoint of this kind and version.
    """
    with _open(path) as file:
        metadata = _metadata(path, file, kind, version, {})
        return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, metadata)


def read_metadata(
    path: str | os.PathLike, kind: str, version: int = VERSION, upgrades: Mapping[int, Upgrade] | None = None
) -> dict[str, Any]:
    """Read the caller's metadata without the tensors. Raises UserError as `load` does.

    upgrades: older version that is also readable -> function that converts its metadata to the next version.
    """
    with _open(path) as file:
        return _metadata(path, file, kind, version, upgrades or {})


def load_network(path: str | os.PathLike, build: Callable[[], Network], prefix: str = "") -> Network:
    """Build a network, and load the tensors whose names begin with `prefix` into it.

    Raises UserError with the names of file and tensor if a tensor is missing, unknown, has another shape or type, or
    contains values that are not finite.
    """
    # `build` follows the file's own metadata, which may be forged. So build on the meta device first, where tensors of
    # any size take no memory, and again only if the file really has these tensors.
    with torch.device("meta"):
        expected = {prefix + name: tensor for name, tensor in build().state_dict().items()}
    with _open(path) as file:
        found = {name for name in file.keys() if name.startswith(prefix)}
        # At most one message: about the first missing tensor, or else the first unknown one.
        for names, words in ((expected.keys() - found, "lacks the tensor"), (found - expected.keys(), "has a tensor")):
            if names:
                raise UserError(
                    f"{path} {words} {shorten(min(names))}, which doesn't fit the network that it describes"
                )
        for name, tensor in expected.items():
            if (shape := file.get_slice(name).get_shape()) != list(tensor.shape):
                raise UserError(f"{path}: {name} is {shape}; the network that it describes has {list(tensor.shape)}")
        tensors = {
            name.removeprefix(prefix): _checked(path, name, file.get_tensor(name), expected) for name in expected
        }
    network = build()
    network.load_state_dict(tensors)
    return network


def _checked(
    path: str | os.PathLike, name: str, tensor: torch.Tensor, expected: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Return the tensor. Raises UserError if it has another type than expected, or values that are not finite."""
    if tensor.dtype != expected[name].dtype:
        raise UserError(f"{path}: {name} holds {tensor.dtype}; expected {expected[name].dtype}")
    if not tensor.isfinite().all():
        raise UserError(f"{path}: {name} holds values that are not finite numbers; take another snapshot")
    return tensor


def _open(path: str | os.PathLike) -> Any:
    """Open a safetensors file. Raises UserError that says what the file is instead."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .safetensors file")
    if not path.is_file():  # reading from a pipe might wait forever
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            # safetensors refuses names that are not UTF-8. The system has a second name for every open file.
            name = path if plain_text(str(path)) == str(path) else f"/dev/fd/{file.fileno()}"
            return safetensors.safe_open(name, framework="pt", device="cpu")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: {_what_else(path)} ({error})") from None


def _what_else(path: Path) -> str:
    """Guess the kind of a file that safetensors can't read, from its first bytes."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "an empty file"
    if start.startswith(b"PK\x03\x04"):
        return "a zip file (an archive of slices, or PyTorch's .pt); expected a .safetensors file"
    # A pickle begins with 0x80 and its protocol's number.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which is never opened here; expected a .safetensors file"
    # safetensors begins with the length of its JSON header, in 8 bytes.
    if start[8:9] == b"{":
        return "an incomplete or damaged .safetensors file; copy or make it again"
    return "not a .safetensors file"


def _metadata(
    path: str | os.PathLike, file: Any, kind: str, version: int, upgrades: Mapping[int, Upgrade]
) -> dict[str, Any]:
    """Return the caller's metadata of an open file, converted to the newest version."""
    try:
        text = (file.metadata() or {})[_KEY]
        if len(text) > LONGEST_METADATA:
            raise ValueError
        document = config.parse_json(text)
        ours, found, found_version = document["format"] == FORMAT, document["kind"], document["version"]
        metadata = document["metadata"]
    except (KeyError, TypeError, ValueError):
        ours = False
    if not ours or not isinstance(metadata, dict) or not isinstance(found, str):
        raise UserError(f"{path}: a .safetensors file, but not one of this project; expected a {kind}")
    if found != kind:
        raise UserError(f"{path} is a {name_some([found])}; expected a {kind}")
    readable = [*sorted(upgrades), version]
    if type(found_version) is not int or found_version not in readable:
        raise UserError(
            f"{path}: version {shorten(found_version)} of the {kind} format; this program reads version "
            f"{' and '.join(map(str, readable))}: make it again"
        )
    # From one version to the next, until they are up to date.
    for older in range(found_version, version):
        metadata = upgrades[older](metadata)
    return metadata
