"""History of an archive: the field `made` of dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib.text import tool_version


def describe_making(command: str, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Describe how an archive was made: version, command, options, and any more fields.

    Pass names of files and folders, not paths: archives are shared, and paths may be private.
    """
    return {"version": tool_version(), "command": command, "options": dict(options), **more}
