"""The moving average of the generator."""

import pytest
import torch

from training.ema import ema_beta, update_ema


def test_ema_half_life_and_buffers():
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=10**6, ramp=None) ** (10_000 / 32) == pytest.approx(0.5)
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=20_000, ramp=0.05) ** (1_000 / 32) == pytest.approx(0.5)
    assert ema_beta(batch=32, ema_nimg=10_000, nimg=0, ramp=0.05) == 0
    model, average = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    model.weight.data.fill_(2)
    model.running_mean.fill_(7)
    average.weight.data.fill_(1)
    update_ema(average, model, 0.75)
    torch.testing.assert_close(average.weight.data, torch.full([3], 1.25))
    torch.testing.assert_close(average.running_mean, torch.full([3], 7.0))
