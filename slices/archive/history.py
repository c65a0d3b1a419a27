"""How an archive came to be, as it says itself: the field `made` of dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib.text import tool_version


def describe_making(command: str, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Which version and command made an archive, with which options, and what else there is to say.

    Names of files and folders only: where they lay is nobody's business.
    """
    return {"version": tool_version(), "command": command, "options": dict(options), **more}
