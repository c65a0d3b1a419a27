"""The operators: golden numbers of the published implementation, second derivatives, and what they refuse."""

import numpy as np
import pytest
import scipy.signal
import torch

from conftest import golden_arrays, golden_cases
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from training.layers import ModulationForm, modulated_conv2d

BIAS_ACT, UPFIRDN, CONVOLUTION = (golden_arrays(n) for n in ("bias_act", "upfirdn2d", "convolution"))
RESAMPLE_CASES = [c for c in golden_cases("convolution") if c["kind"] == "conv2d_resample"]
MODULATED_CASES = [c for c in golden_cases("convolution") if c["kind"] == "modulated_conv2d"]


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(1, float(expected.abs().max())))


# ---- bias_act ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("bias_act")["cases"], ids=lambda c: f"{c['case']}-{c['act']}")
def test_bias_act_meets_golden_values_and_derivatives(case):
    number = case["case"]
    want = {k.split("_", 1)[1]: v for k, v in BIAS_ACT.items() if k.startswith(f"case{number}_")}
    x, b, dy = want["x"].requires_grad_(), want["b"].requires_grad_(), want["dy"].requires_grad_()
    keywords = {k: v for k, v in case.items() if k != "case"}
    y = bias_act(x, b, **keywords)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    d2x, d2dy = torch.autograd.grad((dx * want["v"]).sum(), [x, dy], allow_unused=True)
    d2x = torch.zeros_like(x) if d2x is None else d2x  # the second derivative of a piecewise linear function
    for name, found in {"y": y, "dx": dx, "db": db, "d2x": d2x, "d2dy": d2dy}.items():
        close(found, want[name], 1e-5)


def test_defaults_of_the_activations_are_the_published_ones():
    for name, expected in golden_cases("bias_act")["defaults"].items():
        assert ACTIVATIONS[name].alpha == expected["default_alpha"]
        assert ACTIVATIONS[name].gain == pytest.approx(expected["default_gain"])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_derivatives_are_right(act):
    torch.manual_seed(1)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x, b):
        return bias_act(x, b, act=act, gain=1.3, clamp=1.1)

    assert torch.autograd.gradcheck(function, (x, b))
    assert torch.autograd.gradgradcheck(function, (x, b))


def test_bias_act_refuses_what_does_not_fit():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        bias_act(x, act="gelu")
    with pytest.raises(ValueError, match=r"b \[4\] does not fit x \[2, 3, 4, 4\]; expected \[3\]"):
        bias_act(x, torch.zeros(4))
    with pytest.raises(ValueError, match="clamp -1 is no limit"):
        bias_act(x, clamp=-1)


# ---- upfirdn2d -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("upfirdn2d")["cases"], ids=lambda c: f"{c['case']}-{c['filter']}")
def test_upfirdn2d_meets_golden_values_and_gradients(case):
    want = {k.split("_", 1)[1]: v for k, v in UPFIRDN.items() if k.startswith(f"case{case['case']}_")}
    keywords = {k: v for k, v in case.items() if k not in ("case", "filter")}
    x = want["x"].requires_grad_()
    y = upfirdn2d(x, UPFIRDN[f"filter_{case['filter']}"], **keywords)
    (dx,) = torch.autograd.grad(y, x, want["dy"])
    close(y, want["y"], 1e-5)
    close(dx, want["dx"], 1e-5)


@pytest.mark.parametrize("case", golden_cases("upfirdn2d")["helpers"], ids=lambda c: c["function"])
def test_resampling_helpers_meet_golden_values(case):
    function = {"filter2d": filter2d, "upsample2d": upsample2d, "downsample2d": downsample2d}[case["function"]]
    keywords = {k: v for k, v in case.items() if k in ("up", "down")}
    y = function(UPFIRDN[f"helper{case['helper']}_x"], UPFIRDN[f"filter_{case['filter']}"], **keywords)
    close(y, UPFIRDN[f"helper{case['helper']}_y"], 1e-5)


@pytest.mark.parametrize(
    "up, down, padding", [(1, 1, (3, 2, 1, 4)), (2, 3, (2, 2, 2, 2)), ((3, 1), (1, 2), (4, 0, 3, 3))]
)
def test_upfirdn2d_agrees_with_scipy(up, down, padding):
    """An independent implementation: zeros inserted by hand, scipy's convolution, every down-th sample."""
    random = np.random.RandomState(0)
    image, taps = random.randn(7, 9), random.randn(3, 4)
    ux, uy = (up, up) if isinstance(up, int) else up
    dx, dy = (down, down) if isinstance(down, int) else down
    grown = np.zeros([7 * uy, 9 * ux])
    grown[::uy, ::ux] = image
    grown = np.pad(grown, [(padding[2], padding[3]), (padding[0], padding[1])])
    expected = scipy.signal.convolve2d(grown, taps, mode="valid")[::dy, ::dx]
    found = upfirdn2d(torch.from_numpy(image)[None, None], torch.from_numpy(taps), up, down, padding)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-6)  # the operator keeps filters in float32


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], np.arange(1, 10).tolist()], ids=["2-D", "separable"])
def test_upfirdn2d_derivatives_are_right(taps):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    f = setup_filter(taps)

    def function(x):
        return upfirdn2d(x, f, up=2, down=(1, 2), padding=(5, 4, 6, 3), gain=1.5).square()

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_upfirdn2d_refuses_what_does_not_fit():
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="leaves 2×2 .* less than the filter's 4×4"):
        upfirdn2d(x, setup_filter([1, 3, 3, 1]), padding=-1)
    with pytest.raises(ValueError, match="a vector or a matrix"):
        upfirdn2d(x, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="a vector or a matrix"):
        setup_filter(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="up 0"):
        upfirdn2d(x, None, up=0)
    with pytest.raises(ValueError, match="padding"):
        upfirdn2d(x, None, padding=(1, 2, 3))


# ---- convolutions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RESAMPLE_CASES, ids=lambda c: str(c["case"]))
def test_conv2d_resample_meets_golden_values_and_gradients(case):
    want = {k.split("_", 1)[1]: v for k, v in CONVOLUTION.items() if k.startswith(f"resample{case['case']}_")}
    x, w = want["x"].requires_grad_(), want["w"].requires_grad_()
    keywords = {k: v for k, v in case.items() if k not in ("kind", "case", "filter")}
    y = conv2d_resample(x, w, f=UPFIRDN[f"filter_{case['filter']}"], **keywords)
    dx, dw = torch.autograd.grad(y, [x, w], want["dy"])
    for name, found in {"y": y, "dx": dx, "dw": dw}.items():
        close(found, want[name], 1e-4)


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1), (3, 0), (2, 3)])
@pytest.mark.parametrize("flip_weight", [True, False])
def test_conv2d_resample_is_its_slow_definition(up, down, kernel, padding, flip_weight):
    """Upsample with zeros and filter, convolve, filter and downsample, in just this order."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 8, 9), torch.randn(6, 2, kernel, kernel)
    f = setup_filter([1, 2, 3, 1])
    slow = x
    p = [padding] * 4
    if up > 1:
        p = [p[0] + (3 + up) // 2, p[1] + (4 - up) // 2] * 2
    if down > 1:
        p = [p[0] + (5 - down) // 2, p[1] + (4 - down) // 2] * 2
    slow = upfirdn2d(slow, f if up > 1 else None, up=up, padding=p, gain=up**2)
    slow = torch.nn.functional.conv2d(slow, w if flip_weight else w.flip([2, 3]), groups=2)
    if down > 1:
        slow = upfirdn2d(slow, f, down=down)
    fast = conv2d_resample(x, w, f=f, up=up, down=down, padding=padding, groups=2, flip_weight=flip_weight)
    close(fast, slow, 1e-5)


@pytest.mark.parametrize("form", ModulationForm, ids=lambda form: form.name)
@pytest.mark.parametrize("case", MODULATED_CASES, ids=lambda c: str(c["case"]))
def test_modulated_conv2d_meets_golden_values_and_gradients(case, form):
    want = {k.split("_", 1)[1]: v for k, v in CONVOLUTION.items() if k.startswith(f"modconv{case['case']}_")}
    x, w, s = (want[k].requires_grad_() for k in "xws")
    keywords = {k: case[k] for k in ("up", "down", "padding", "demodulate", "flip_weight")}
    f = UPFIRDN[f"filter_{case['filter']}"]
    y = synthesis_tail(*modulated_conv2d(x, w, s, resample_filter=f, form=form, **keywords), want.get("noise"))
    dx, dw, ds = torch.autograd.grad(y, [x, w, s], want["dy"])
    for name, found in {"y": y, "dx": dx, "dw": dw, "ds": ds}.items():
        close(found, want[name], 1e-4)


def test_half_precision_survives_styles_that_would_overflow():
    """Pre-normalisation keeps the sums in range and, as demodulation cancels it, changes nothing else."""
    torch.manual_seed(0)
    x, w, s = torch.randn(2, 16, 8, 8), torch.randn(8, 16, 3, 3) * 30, torch.randn(2, 16) * 3000
    full = synthesis_tail(*modulated_conv2d(x, w, s, padding=1))
    half = synthesis_tail(*modulated_conv2d(x.half(), w, s, padding=1))
    assert half.dtype == torch.float16 and half.isfinite().all()
    close(half.float(), full, 1e-2)
