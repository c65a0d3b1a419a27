"""Checkpoints: safetensors files with named tensors and one JSON document, and checksums of both.

safetensors reads them. They are written here, because its `save_file` copies all tensors first (before version 0.8),
takes no path that isn't UTF-8, and reports a full disk as its own error instead of the system's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import safetensors
import torch
from isal import isal_zlib

from dnnlib import config, files
from dnnlib.config import shorten
from dnnlib.errors import UserError
from dnnlib.system import plain_text
from dnnlib.text import name_some

FORMAT, VERSION = "stylegan2-mr", 1
LONGEST_METADATA = 1 << 24  # characters; the names of all patients take far fewer
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
Network = TypeVar("Network", bound=torch.nn.Module)
# safetensors' metadata maps strings to strings. One holds our JSON document, the other one the checksums as JSON.
_KEY, _CHECKSUMS = "checkpoint", "crc32"
_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


class Damaged(UserError):
    """A file whose content is not what was written, or is incomplete."""


class Checkpoint(NamedTuple):
    """Content of a file."""

    tensors: dict[str, torch.Tensor]  # on the CPU
    metadata: dict[str, Any]  # the caller's


class _Checksums(NamedTuple):
    """CRC-32 of a file's content, each in 8 hexadecimal digits."""

    document: str
    tensors: Mapping[str, str]


def save(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: dict[str, Any],
    kind: str,
    version: int = VERSION,
) -> None:
    """Write tensors and metadata to a .safetensors file, which appears only when it is complete.

    kind: purpose of the file, for example "snapshot". version: version of this kind's content. `load` checks both.
    Tensors may share memory and lie on any device: one at a time is copied to the CPU, unless it is there already, with
    its values in order. Raises TypeError or ValueError for metadata that JSON can't represent, such as NaN.
    """
    document = {"format": FORMAT, "kind": kind, "version": version, "metadata": metadata}
    text = json.dumps(document, allow_nan=False)
    with files.atomic_path(path) as place, open(place, "wb") as file:
        _write(file, tensors, text)


def _write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], document: str) -> None:
    """Write a file of safetensors: the length of a JSON header in 8 bytes, the header, the content of all tensors."""
    # Large items first, as safetensors does: so each tensor begins at a multiple of its items' size.
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    unknown = "0" * 8
    file.write(_header(tensors, document, _Checksums(unknown, dict.fromkeys(tensors, unknown))))
    found = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        found[name] = checksum(plain)
        file.write(_content(plain))
    # Once more, with the checksums. It is as long as before.
    file.seek(0)
    file.write(_header(tensors, document, _Checksums(_text_checksum(document), found)))


def _header(tensors: Mapping[str, torch.Tensor], document: str, checksums: _Checksums) -> bytes:
    """Return the length of the header and the header. tensors: in the order of their content."""
    described: dict[str, Any] = {"__metadata__": {_KEY: document, _CHECKSUMS: json.dumps(checksums._asdict())}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        described[name] = {"dtype": _TYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _content(tensor: torch.Tensor) -> memoryview:
    """View the memory of a contiguous tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def checksum(tensor: torch.Tensor) -> str:
    """CRC-32 of a tensor, in 8 hexadecimal digits: of its type, its shape, and its values in order."""
    tensor = tensor.detach().to("cpu").contiguous()
    described = f"{_TYPES.get(tensor.dtype)} {[*tensor.shape]}".encode()
    return f"{isal_zlib.crc32(_content(tensor), isal_zlib.crc32(described)):08x}"


def _text_checksum(text: str) -> str:
    """CRC-32 of a text."""
    return f"{isal_zlib.crc32(text.encode()):08x}"


def load(path: str | os.PathLike, kind: str, version: int = VERSION) -> Checkpoint:
    """Read a file that `save` has written.

    Raises UserError with the file's name if it is missing, damaged, or not a checkpoint of this kind and version.
    """
    with _open(path) as file:
        metadata = _metadata(path, file, kind, version, {})
        checksums = _checksums(path, file)
        return Checkpoint(
            {name: _intact(path, name, file.get_tensor(name), checksums) for name in file.keys()}, metadata
        )


def read_metadata(
    path: str | os.PathLike, kind: str, version: int = VERSION, upgrades: Mapping[int, Upgrade] | None = None
) -> dict[str, Any]:
    """Read the caller's metadata without the tensors. Raises UserError as `load` does.

    upgrades: older version that is also readable -> function that converts its metadata to the next version.
    """
    with _open(path) as file:
        return _metadata(path, file, kind, version, upgrades or {})


def read_names(path: str | os.PathLike) -> frozenset[str]:
    """Read the names of a file's tensors. Raises UserError if safetensors can't read it."""
    with _open(path) as file:
        return frozenset(file.keys())


def load_network(path: str | os.PathLike, build: Callable[[], Network], prefix: str = "") -> Network:
    """Build a network, and load the tensors whose names begin with `prefix` into it.

    Raises UserError as `load_tensors` does.
    """
    tensors = load_tensors(path, build, prefix)
    network = build()
    network.load_state_dict(tensors)
    return network


def load_tensors(
    path: str | os.PathLike, build: Callable[[], torch.nn.Module], prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Read the tensors of a network, whose names in the file begin with `prefix`. Returns them by their names in it.

    Raises UserError with the names of file and tensor if a tensor is missing, unknown, has another shape or type, or
    contains values that are not finite.
    """
    # `build` follows the file's own metadata, which may be forged. So build on the meta device, where tensors of any
    # size take no memory, and read only if the file really has these tensors.
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
        checksums = _checksums(path, file)
        return {
            name.removeprefix(prefix): _checked(path, name, file.get_tensor(name), expected, checksums)
            for name in expected
        }


def _checked(
    path: str | os.PathLike,
    name: str,
    tensor: torch.Tensor,
    expected: dict[str, torch.Tensor],
    checksums: _Checksums | None,
) -> torch.Tensor:
    """Return the tensor. Raises UserError if it is damaged, of another type, or has values that are not finite."""
    if tensor.dtype != expected[name].dtype:
        raise UserError(f"{path}: {name} holds {tensor.dtype}; expected {expected[name].dtype}")
    _intact(path, name, tensor, checksums)
    if not tensor.isfinite().all():
        raise UserError(f"{path}: {name} holds values that are not finite numbers; take another snapshot")
    return tensor


def _intact(path: str | os.PathLike, name: str, tensor: torch.Tensor, checksums: _Checksums | None) -> torch.Tensor:
    """Return the tensor. Raises Damaged if it has another checksum than the file says."""
    if checksums is not None and checksums.tensors.get(name) != checksum(tensor):
        raise Damaged(f"{path}: {shorten(name)} is damaged, its checksum is another one; copy or make the file again")
    return tensor


def _checksums(path: str | os.PathLike, file: Any) -> _Checksums | None:
    """Return the checksums of an open file, None for a file without any.

    Raises Damaged if they can't be read, or if the document has another checksum.
    """
    stored = file.metadata() or {}
    if _CHECKSUMS not in stored:  # an older file, or another project's
        return None
    try:
        checksums = _Checksums(**config.parse_json(stored[_CHECKSUMS]))
        intact = checksums.document == _text_checksum(stored[_KEY]) and isinstance(checksums.tensors, dict)
    except (KeyError, TypeError, ValueError):
        intact = False
    if not intact:
        raise Damaged(f"{path}: its metadata are damaged, their checksum is another one; copy or make the file again")
    return checksums


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
        raise Damaged(f"{path}: {_what_else(path, str(error)[:100])}") from None


def _what_else(path: Path, why: str) -> str:
    """Guess the kind of a file that safetensors can't read, from its first bytes. why: what safetensors says."""
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
        return f"an incomplete or damaged .safetensors file; copy or make it again ({why})"
    return f"not a .safetensors file ({why})"


def _metadata(
    path: str | os.PathLike, file: Any, kind: str, version: int, upgrades: Mapping[int, Upgrade]
) -> dict[str, Any]:
    """Return the caller's metadata of an open file, converted to the newest version."""
    _checksums(path, file)
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
