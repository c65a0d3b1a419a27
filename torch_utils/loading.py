"""A DataLoader whose workers hand over the user's mistakes instead of tracebacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from dnnlib.errors import UserError


class _ErrorsAsValues(Dataset):
    """Items of a data set, or the UserError that reading one raised, which DataLoader would bury in a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)


def minibatches(dataset: Dataset, **options) -> Iterator[Any]:
    """Iterate over DataLoader(dataset, **options); a UserError of the data set is raised here as it was there."""
    for minibatch in DataLoader(_ErrorsAsValues(dataset), collate_fn=_collate, **options):
        if isinstance(minibatch, UserError):
            raise minibatch
        yield minibatch
