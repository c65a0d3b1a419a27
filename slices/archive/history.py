"""History of an archive: the field `made` of dataset.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dnnlib import config
from dnnlib.text import tool_version

CONVERT = "dataset_tool.py convert"
_CUTTING = "cutting"  # key in the history of archives that were made of others


@dataclass(frozen=True)
class Cutting:
    """How slices were cut from volumes, beside their resolution: values of options of `convert`."""

    fov: float | None = None  # edge of the square in mm; None: the whole slice
    head: str | None = None  # what is head; None: found in the images


def describe_making(command: str, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Describe how an archive was made: version, command, options, and any more fields.

    Pass names of files and folders, not paths: archives are shared, and paths may be private.
    """
    return {"version": tool_version(), "command": command, "options": dict(options), **more}


def describe_cutting(sources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The field that tells how the slices of an archive made of others were cut. sources: histories of the others.

    Empty if none of them tells, or if they differ.
    """
    known = {cutting for made in sources if (cutting := cutting_of(made)) is not None}
    return {_CUTTING: config.to_json(known.pop())} if len(known) == 1 else {}


def cutting_of(made: Mapping[str, Any]) -> Cutting | None:
    """How an archive's slices were cut, by its history. None if that doesn't say it, as for generated slices.

    Other programs may have written anything into `made`.
    """
    told = made.get("options") if made.get("command") == CONVERT else made.get(_CUTTING)
    if not isinstance(told, Mapping):
        return None
    fov, head = told.get("fov"), told.get("head")
    if type(fov) is int:
        fov = float(fov)
    if not (fov is None or (type(fov) is float and math.isfinite(fov) and fov > 0)):
        return None
    return Cutting(fov, head) if head is None or isinstance(head, str) else None
