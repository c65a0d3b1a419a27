"""All that a report says, in one record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dnnlib.pages.panels import Figure, Panel
from segmentation.page.content import Part
from segmentation.page.samples import Samples
from segmentation.page.viewer import Viewer


@dataclass(frozen=True)
class Download:
    """A file inside the page."""

    name: str
    uri: str
    words: str


@dataclass(frozen=True)
class Report:
    """All that a page says."""

    title: str
    lead: str
    parts: tuple[Part, ...]  # one for each experiment
    not_run: tuple[str, ...]
    viewers: tuple[Viewer, ...]
    samples: tuple[Samples, ...]
    downloads: tuple[Download, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All pictures of all figures."""
        for part in self.parts:
            for one in (part.forest, part.distances, *part.diagnostics):
                yield from one.panels if isinstance(one, Figure) else ()
