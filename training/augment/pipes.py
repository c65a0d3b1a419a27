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

# Transformations of colors -> the numbers of contrasts that they are defined for, and those numbers in words.
_NUMBERS_OF_CONTRASTS = {
    "lumaflip": (lambda contrasts: contrasts == 3, "exactly 3 contrasts"),
    "hue": (lambda contrasts: contrasts == 3, "exactly 3 contrasts"),
    "saturation": (lambda contrasts: contrasts > 1, "at least 2 contrasts"),
}


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
    names = tuple(name for name in TRANSFORMATIONS if name in wanted and _defined(name, num_contrasts))
    remarks = tuple(
        f"--augpipe {text}: without {name}, which needs {_NUMBERS_OF_CONTRASTS[name][1]}; this archive has "
        f"{num_contrasts}"
        for name in TRANSFORMATIONS
        if name in wanted and name not in names
    )
    return Pipe(names, remarks)


def _check(member: str, text: str, num_contrasts: int) -> None:
    """Raise UserError unless `member`, a part of --augpipe, names a pipe, or a transformation that is defined."""
    known = list(dict.fromkeys([*PIPES, *TRANSFORMATIONS]))
    if member not in known:
        near = difflib.get_close_matches(member, known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--augpipe {shorten(text)}: there is no {shorten(member)}{meant} Expected one or several of "
            f"{', '.join(known)}, joined by commas"
        )
    if not _defined(member, num_contrasts):
        raise UserError(
            f"--augpipe {shorten(text)}: {member} needs {_NUMBERS_OF_CONTRASTS[member][1]}; this archive has "
            f"{num_contrasts}. Leave it out"
        )


def _defined(name: str, num_contrasts: int) -> bool:
    """Whether a transformation is defined for this number of contrasts. True for the name of a pipe."""
    return name not in _NUMBERS_OF_CONTRASTS or _NUMBERS_OF_CONTRASTS[name][0](num_contrasts)
