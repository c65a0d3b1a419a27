"""Checkpoints: a safetensors file of named tensors with one JSON document, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from dnnlib import files
from dnnlib.errors import UserError

FORMAT, VERSION = "stylegan2-mr", 1
_KEY = "checkpoint"  # safetensors' own metadata maps strings to strings: ours is one JSON document under one key


class Checkpoint(NamedTuple):
    """What a file holds: tensors on the CPU, and the caller's metadata."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def save(
    path: str | os.PathLike,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, Any],
    kind: str,
    version: int = VERSION,
) -> None:
    """Write tensors and JSON-able metadata to a .safetensors file, which appears only when complete.

    kind: what the file is for, for example "snapshot"; version: of that kind's content. `load` asks for both again.
    Raises TypeError or ValueError for metadata that JSON doesn't know (NaN included).
    """
    document = {"format": FORMAT, "kind": kind, "version": version, "metadata": metadata}
    text = json.dumps(document, allow_nan=False)
    # Copies, not views: safetensors refuses two names for one memory, as shared parameters and slices would give.
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    files.write_bytes(path, safetensors.torch.save(plain, metadata={_KEY: text}))


def load(path: str | os.PathLike, kind: str, version: int = VERSION) -> Checkpoint:
    """Read what `save` wrote.

    Raises UserError naming the file when it is missing, damaged, or something else than a checkpoint of this kind and
    version.
    """
    with _open(path) as file:
        metadata = _metadata(path, file, kind, version)
        return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, metadata)


def _open(path: str | os.PathLike) -> Any:
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .safetensors file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: {_what_else(path)} ({error})") from None


def _what_else(path: Path) -> str:
    """Say what a file that safetensors can't read most likely is."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "an empty file"
    if start.startswith(b"PK\x03\x04"):
        return "a zip file (an archive of slices, or PyTorch's .pt); expected a .safetensors file"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which is never opened here; expected a .safetensors file"
    if start[8:9] == b"{":
        return "an incomplete or damaged .safetensors file; copy or make it again"
    return "not a .safetensors file"


def _metadata(path: str | os.PathLike, file: Any, kind: str, version: int) -> dict[str, Any]:
    try:
        document = json.loads((file.metadata() or {})[_KEY])
        ours, found, found_version = document["format"] == FORMAT, document["kind"], document["version"]
        metadata = document["metadata"]
    except (KeyError, TypeError, ValueError):
        ours = False
    if not ours or not isinstance(metadata, dict):
        raise UserError(f"{path}: a .safetensors file, but not one of this project; expected a {kind}")
    if found != kind:
        raise UserError(f"{path} is a {found}; expected a {kind}")
    if found_version != version:
        raise UserError(
            f"{path}: version {found_version} of the {kind} format; this program reads version {version}: make it again"
        )
    return metadata
