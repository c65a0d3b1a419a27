"""Statistics collected between ticks, and sums of a phase."""

import pytest
import torch

from torch_utils.stats import Statistics, Sums


def test_statistics_are_moments_since_the_last_look():
    statistics = Statistics()
    values = torch.randn(7)
    statistics.report("x", values[:3])
    statistics.report("x", values[3:])
    moments = statistics.collect()["x"]
    assert moments.num == 7
    assert moments.mean == pytest.approx(float(values.mean()))
    assert moments.std == pytest.approx(float(values.std(unbiased=False)))
    assert statistics.collect() == {}


def test_sums_of_parts_make_the_statistic_of_the_whole():
    values, statistics, sums = torch.randn(7), Statistics(), [Sums(), Sums()]
    sums[0].report("x", values[:3])
    sums[1].report("x", values[3:5])
    sums[1].report("x", values[5:])
    for part in sums:
        statistics.add(part.vectors)
    moments = statistics.collect()["x"]
    assert moments.num == 7 and moments.mean == pytest.approx(float(values.mean()))
    sums[0].add("vector", torch.ones(2))
    sums[0].add("vector", torch.tensor([1.0, 2.0]))
    assert sums[0].vectors["vector"].tolist() == [2, 3]
