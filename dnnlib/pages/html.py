"""Pages from templates: each extends base.html.jinja, and has its own style and script after the shared ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

_SHARED = Path(__file__).parent / "templates"


def render(folder: Path, name: str, titles: Mapping[str, str], **values: Any) -> bytes:
    """Fill the template `<name>.html.jinja` of a folder, which also has `<name>.css` and `<name>.js`.

    titles: id of a section -> its title, in the order of the page; the first is where the results begin.
    values: what the template reads. Everything from outside is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        finalize=_unbroken,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, js = (_text(_SHARED / f"base.{kind}") + _text(folder / f"{name}.{kind}") for kind in ("css", "js"))
    page = environment.get_template(f"{name}.html.jinja")
    return page.render(titles=titles, css=css, js=js, **values).encode()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _unbroken(value: Any) -> Any:
    """Keep a number and its % on one line."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value
