"""Statistics collected between ticks."""

import pytest
import torch

from torch_utils.stats import Statistics


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
