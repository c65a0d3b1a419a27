"""Names of transformations, and pipes: the sets of them that --augpipe names (Karras et al. 2020, appendix B)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from dnnlib.config import shorten
from dnnlib.errors import UserError

# Pipe -> its transformations. A transformation's own name is a pipe too.
BLIT = ("xflip", "rotate90", "xint")
GEOM = ("scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
PIPES: dict[str, tuple[str, ...]] = {
    "blit": BLIT,
    "geom": GEOM,
    "color": COLOR,
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": (*BLIT, *GEOM),
    "bgc": (*BLIT, *GEOM, *COLOR),
    "bgcf": (*BLIT, *GEOM, *COLOR, "imgfilter"),
    "bgcfn": (*BLIT, *GEOM, *COLOR, "imgfilter", "noise"),
    "bgcfnc": (*BLIT, *GEOM, *COLOR, "imgfilter", "noise", "cutout"),
}
TRANSFORMATIONS = PIPES["bgcfnc"]  # all of them, in the order in which they are applied

_EXACTLY_3, _AT_LEAST_2 = "exactly 3 contrasts", "at least 2 contrasts"
# What transformations of colors need. The others are defined for any number of contrasts.
_NEEDS = {"lumaflip": _EXACTLY_3, "hue": _EXACTLY_3, "saturation": _AT_LEAST_2}


@dataclass(frozen=True)
class Pipe:
    """What --augpipe asks for."""

    names: tuple[str, ...]  # of transformations, in the order in which they are applied
    remarks: tuple[str, ...] = ()  # for the user: what was left out, and why


def parse_pipe(text: str, num_contrasts: int) -> Pipe:
    """Parse names of pipes and transformations, joined by commas, such as `bgc` or `blit,scale`.

    A transformation that is not defined for this number of contrasts is left out of the pipes that have it, with a
    remark. Raises UserError if it is asked for by its own name, and for unknown names.
    """
    members = [member.strip() for member in text.split(",")]
    for member in members:
        _check(member, text, num_contrasts)
    wanted = {name for member in members for name in PIPES.get(member, (member,))}
    remarks = []
    for need in (_EXACTLY_3, _AT_LEAST_2):
        if missing := [name for name in TRANSFORMATIONS if name in wanted and _lacks(name, num_contrasts) == need]:
            verb = "needs" if len(missing) == 1 else "need"
            remarks.append(
                f"--augpipe {text}: without {' and '.join(missing)}, which {verb} {need}; the archive has "
                f"{num_contrasts}"
            )
    names = tuple(name for name in TRANSFORMATIONS if name in wanted and not _lacks(name, num_contrasts))
    return Pipe(names, tuple(remarks))


def _check(member: str, text: str, num_contrasts: int) -> None:
    """Raise UserError unless a part of --augpipe names a pipe, or a transformation that is defined."""
    known = list(dict.fromkeys([*PIPES, *TRANSFORMATIONS]))
    if member not in known:
        near = difflib.get_close_matches(member, known, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--augpipe {shorten(text)}: {shorten(member)} is no pipe and no augmentation. {meant}"
            f"Expected one or several of {', '.join(known)}, joined by commas"
        )
    if need := _lacks(member, num_contrasts):
        raise UserError(
            f"--augpipe {shorten(text)}: {member} needs {need}, and the archive has {num_contrasts}; leave {member} out"
        )


def _lacks(name: str, num_contrasts: int) -> str | None:
    """Return what a transformation needs if this number of contrasts isn't it, else None. Pipes need nothing."""
    need = _NEEDS.get(name)
    fits = num_contrasts == 3 if need == _EXACTLY_3 else num_contrasts >= 2
    return None if fits else need
