"""A report in Markdown: the same sections, with figures as files beside it and without the viewer."""

from __future__ import annotations

from collections.abc import Iterator

from dnnlib.pages.panels import Figure
from segmentation.page.content import ClaimPart, Named, Part
from segmentation.page.report import Report
from segmentation.page.words import ABOUT, HEADING, RESEARCH, TITLES, citation
from segmentation.report import Table

_VERDICTS = ("target", "verdict", "difference", "95 % interval", "p (Holm)", "smallest detectable")


def to_markdown(report: Report) -> str:
    """Write the report as Markdown."""
    written = [f"# {HEADING} {plain(report.title)}", plain(report.lead), f"> {RESEARCH[0]}"]
    for key, title in TITLES.items():
        if blocks := list(_section(key, report)):
            written += [f"## {title}", *blocks]
    return "\n\n".join(written) + "\n"


def _section(key: str, report: Report) -> Iterator[str]:
    for part in report.parts:
        blocks = list(_part(key, part))
        if blocks and len(report.parts) > 1:
            yield f"### {plain(part.title)}"
        yield from blocks
    fixed = {
        "verdicts": (ABOUT["verdicts"],),
        "tables": report.not_run,
        "viewer": ("See report.html.",) if report.viewers else (),
        "fakes": tuple(sheet.caption + " See report.html." for sheet in report.samples),
        "files": (ABOUT["files"],),
        "citation": citation(),
        "research": RESEARCH,
    }
    yield from map(plain, fixed.get(key, ()))


def _part(key: str, part: Part) -> Iterator[str]:
    """What a section says of one experiment."""
    if key == "verdicts":
        yield plain(part.summary)
        for claim in part.claims:
            yield from _claim(claim)
        if part.notes:
            yield "\n".join(f"- {plain(note)}" for note in part.notes)
    elif key == "tables":
        yield from map(_table, part.tables)
    elif key == "differences":
        yield _figure(part.forest)
    elif key == "distances":
        yield _figure(part.distances) if part.distances.panels else ABOUT["no_distances"]
        yield from map(_table, part.distance_tables)
    elif key == "diagnostics":
        yield from (_figure(one) if isinstance(one, Figure) else _table(one) for one in part.diagnostics)
    elif key == "made":
        yield from _made(part)


def _claim(claim: ClaimPart) -> Iterator[str]:
    if claim.abstract:
        yield f"**The abstract: {plain(claim.abstract)}.** Tested: {plain(claim.sentence)}."
    else:
        yield f"**{plain(claim.sentence)}**"
    rows = ((v.target, v.word + v.scope, v.effect, v.interval, v.p, v.detectable) for v in claim.verdicts)
    yield _markdown(Table(_VERDICTS, tuple(rows)))


def _made(part: Part) -> Iterator[str]:
    made = part.made
    yield "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in made.facts)
    yield "\n".join(["Commands:", "", *(f"    {command}" for command in made.commands)])
    yield "Options of every training: " + plain(", ".join(f"{name} {value}" for name, value in made.options))
    yield _table(made.archives)
    yield _table(made.networks)
    yield "Test patients: " + plain(", ".join(made.test_patients))


def _table(named: Named) -> str:
    return f"**{plain(named.caption)}**\n\n{_markdown(named.table)}"


def _markdown(table: Table) -> str:
    cells = tuple(tuple(plain(cell) for cell in row) for row in (table.header, *table.rows))
    return Table(cells[0], cells[1:], tuple(plain(note) for note in table.notes)).markdown()


def _figure(figure: Figure) -> str:
    pictures = (f"![{plain(panel.alt)}](figures/{panel.name}.png)" for panel in figure.panels)
    return "\n\n".join([f"**{plain(figure.title)}**", *pictures, plain(figure.caption)])


def plain(text: str) -> str:
    """A text that Markdown shows as it is: no tags, no cells, no emphasis."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, "\\" + sign)
    return text
