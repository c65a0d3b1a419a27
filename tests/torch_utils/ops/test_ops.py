"""Native and reference operators: golden numbers of the published implementation, derivatives, refused arguments."""

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.goldens import golden_arrays, golden_cases, golden_filter
from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from training.networks.layers import modulated_conv2d

pytestmark = pytest.mark.usefixtures("face")
RESAMPLE_CASES = [c for c in golden_cases("convolution") if c["kind"] == "conv2d_resample"]
MODULATED_CASES = [c for c in golden_cases("convolution") if c["kind"] == "modulated_conv2d"]


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(1, float(expected.abs().max())))


# ---- bias_act ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("bias_act")["cases"], ids=lambda c: f"{c['case']}-{c['act']}")
def test_bias_act_meets_golden_values_and_derivatives(case):
    number = case["case"]
    want = golden_arrays("bias_act", f"case{number}_")
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


def draw(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape, dim", [((3, 4, 5), 1), ((2, 3, 2, 4), 0), ((5, 4), 1), ((2, 3, 4), 2)])
def test_bias_act_derivatives_are_right(act, shape, dim):
    torch.manual_seed(1)

    def function(x, b):
        return bias_act(x, b, dim=dim, act=act, gain=1.3, clamp=1.1)

    arguments = draw(*shape), draw(shape[dim])
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_bias_act_keeps_the_layout():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert bias_act(x, torch.ones(3), act="lrelu").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_not_a_number_stays_so(act):
    """Neither activation nor clamp may hide NaN and infinity: a diverging training must be visible."""
    y = bias_act(torch.tensor([[float("nan"), 1.0, -1.0]]), act=act, clamp=256)
    assert y.isnan().tolist() == [[True, False, False]]


def test_infinities_meet_the_clamp():
    x = torch.tensor([[float("inf"), -float("inf")]])
    assert bias_act(x, act="relu", clamp=3).tolist() == [[3, 0]]
    assert bias_act(x, act="lrelu", clamp=3).tolist() == [[3, -3]]


def test_bias_act_refuses_what_does_not_fit():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        bias_act(x, act="gelu")
    with pytest.raises(ValueError, match=r"b \[4\] does not fit x \[2, 3, 4, 4\]; expected \[3\]"):
        bias_act(x, torch.zeros(4))
    with pytest.raises(ValueError, match="clamp -1 is no limit"):
        bias_act(x, clamp=-1)
    with pytest.raises(ValueError, match=r"x \[2\] is torch.int64; expected float16"):
        bias_act(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"b \[3\] is on meta, but x \[2, 3, 4, 4\] on (cpu|cuda)"):
        bias_act(x, torch.zeros(3, device="meta"))
    with pytest.raises(ValueError, match="dim 4 is not one of x"):
        bias_act(x, torch.zeros(3), dim=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("clamp", [0.7, 256 * 0.5**0.5])
def test_what_is_clamped_has_no_gradient(dtype, clamp):
    """The clamp holds even if its limit is rounded down with the output."""
    x = torch.tensor([[500.0, -5000, 0.1]], dtype=dtype, requires_grad=True)
    (dx,) = torch.autograd.grad(bias_act(x, act="lrelu", gain=1, clamp=clamp).sum(), x)
    assert dx.tolist() == [[0, 0, 1]]


def test_only_lrelu_uses_alpha():
    for act, slope in [("linear", 1), ("relu", 0), ("lrelu", 0.5)]:
        x = torch.tensor([[-2.0]], requires_grad=True)
        y = bias_act(x, act=act, alpha=0.5, gain=1, clamp=9)
        assert (y.item(), torch.autograd.grad(y, x)[0].item()) == (-2 * slope, slope)


def test_without_a_clamp_infinity_has_a_gradient():
    x = torch.tensor([[float("inf"), -float("inf")]], requires_grad=True)
    (dx,) = torch.autograd.grad(bias_act(x, act="lrelu", gain=1), x, torch.ones(1, 2))
    torch.testing.assert_close(dx, torch.tensor([[1, 0.2]]))


def test_without_a_bias_any_dim_will_do():
    x = torch.randn(2, 3, 4)
    for dim in (-1, 0, 1, 9):
        assert torch.equal(bias_act(x, dim=dim, act="lrelu"), bias_act(x, act="lrelu"))
    assert bias_act(torch.tensor(-1.0), act="lrelu", gain=1).item() == pytest.approx(-0.2)


# ---- synthesis_tail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_synthesis_tail_derivatives_are_right(act, layout):
    torch.manual_seed(2)
    noise = torch.randn(2, 1, 3, 2, dtype=torch.float64)

    def function(x, scale, strength, bias):
        return synthesis_tail(x, scale, noise, strength, bias, act=act, gain=1.3, clamp=1.2)

    arguments = draw(2, 3, 3, 2, layout=layout), draw(2, 3), draw(), draw(3)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("missing", ["scale", "noise", "strength", "bias"])
def test_synthesis_tail_does_without_each_operand(missing):
    """A missing operand acts like a neutral one: scale or strength 1, noise or bias 0."""
    torch.manual_seed(3)
    x = draw(2, 3, 4, 5)
    operands = {"scale": draw(2, 3), "noise": torch.randn(4, 5).double(), "strength": draw(), "bias": draw(3)}
    one, zeros = torch.ones([]), torch.zeros(4, 5)
    neutral = {"scale": torch.ones(2, 3), "noise": zeros, "strength": one, "bias": torch.zeros(3)}
    without = {**operands, missing: None} | ({"strength": None} if missing == "noise" else {})
    values = [synthesis_tail(x, **o, act="swish") for o in (without, {**operands, missing: neutral[missing].double()})]
    gradients = [torch.autograd.grad(y.sum(), [x, operands["bias" if missing == "scale" else "scale"]]) for y in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_synthesis_tail_refuses_what_does_not_fit():
    x, noise = torch.zeros(2, 3, 4, 5), torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"expected pictures \[N, C, H, W\], found x \[2, 3\]"):
        synthesis_tail(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"scale \[3\] does not fit x \[2, 3, 4, 5\]; expected \[2, 3\]"):
        synthesis_tail(x, scale=torch.zeros(3))
    with pytest.raises(ValueError, match=r"noise \[5, 4\] does not fit .* expected \[4, 5\] or \[2, 1, 4, 5\]"):
        synthesis_tail(x, noise=noise.T)
    with pytest.raises(ValueError, match="strength is given without noise"):
        synthesis_tail(x, strength=torch.ones([]))
    with pytest.raises(ValueError, match="noise .* takes no gradient"):
        synthesis_tail(x, noise=noise.requires_grad_())
    with pytest.raises(ValueError, match="bias .* is torch.int32"):
        synthesis_tail(x, bias=torch.zeros(3, dtype=torch.int32))


# ---- upfirdn2d -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden_cases("upfirdn2d")["cases"], ids=lambda c: f"{c['case']}-{c['filter']}")
def test_upfirdn2d_meets_golden_values_and_gradients(case):
    want = golden_arrays("upfirdn2d", f"case{case['case']}_")
    keywords = {k: v for k, v in case.items() if k not in ("case", "filter")}
    x = want["x"].requires_grad_()
    y = upfirdn2d(x, golden_filter(case), **keywords)
    (dx,) = torch.autograd.grad(y, x, want["dy"])
    close(y, want["y"], 1e-5)
    close(dx, want["dx"], 1e-5)


@pytest.mark.parametrize("case", golden_cases("upfirdn2d")["helpers"], ids=lambda c: c["function"])
def test_resampling_helpers_meet_golden_values(case):
    function = {"filter2d": filter2d, "upsample2d": upsample2d, "downsample2d": downsample2d}[case["function"]]
    keywords = {k: v for k, v in case.items() if k in ("up", "down")}
    want = golden_arrays("upfirdn2d", f"helper{case['helper']}_")
    close(function(want["x"], golden_filter(case), **keywords), want["y"], 1e-5)


@pytest.mark.parametrize(
    "up, down, padding", [(1, 1, (3, 2, 1, 4)), (2, 3, (2, 2, 2, 2)), ((3, 1), (1, 2), (4, 0, 3, 3))]
)
def test_upfirdn2d_agrees_with_scipy(up, down, padding):
    """Compare with an independent implementation: zeros inserted by hand, scipy's convolution, every down-th sample."""
    random = np.random.RandomState(0)
    image, taps = random.randn(7, 9), random.randn(3, 4)
    ux, uy = (up, up) if isinstance(up, int) else up
    dx, dy = (down, down) if isinstance(down, int) else down
    grown = np.zeros([7 * uy, 9 * ux])
    grown[::uy, ::ux] = image
    grown = np.pad(grown, [(padding[2], padding[3]), (padding[0], padding[1])])
    expected = scipy.signal.convolve2d(grown, taps, mode="valid")[::dy, ::dx]
    found = upfirdn2d(torch.as_tensor(image)[None, None], torch.as_tensor(taps), up, down, padding)
    np.testing.assert_allclose(found[0, 0].cpu().numpy(), expected, atol=1e-6)  # the operator keeps filters in float32


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
    with pytest.raises(ValueError, match="takes no gradient"):
        upfirdn2d(x, torch.ones(2, 2, requires_grad=True))
    with pytest.raises(ValueError, match="the filter .* is on meta"):
        upfirdn2d(x, torch.ones(2, 2, device="meta"))
    with pytest.raises(ValueError, match="is torch.uint8"):
        upfirdn2d(x.byte(), None)
    with pytest.raises(ValueError, match="up 2.0"):
        upfirdn2d(x, None, up=2.0)
    with pytest.raises(ValueError, match="padding None"):
        upfirdn2d(x, None, padding=None)
    with pytest.raises(ValueError, match="a vector or a matrix"):
        upsample2d(x, torch.tensor(1.0))


def test_upfirdn2d_takes_whole_numbers_of_any_kind():
    x = torch.randn(1, 1, 4, 4)
    found = upfirdn2d(x, None, up=np.int64(2), padding=[np.int32(1)] * 4)
    assert torch.equal(found, upfirdn2d(x, None, up=2, padding=1))


@pytest.mark.parametrize("gain", [-2, 1 / 64])
def test_separable_filters_take_any_gain_and_round_once(gain):
    """The sum of eight columns would overflow float16, but not the type in which the operator computes."""
    x, f = torch.full([1, 1, 8, 8], 20000.0 if gain > 0 else 20.0, dtype=torch.float16), torch.ones(8)
    assert upfirdn2d(x, f, gain=gain).item() == float(torch.tensor(float(x[0, 0, 0, 0]) * 64 * gain).half())


def test_upfirdn2d_crops_more_than_there_is():
    """Padding on one side and cropping on the other leaves zeros where the picture was cut away."""
    y = upfirdn2d(torch.ones(1, 1, 2, 2), None, padding=(-3, 4, 1, -2))
    assert y.shape == (1, 1, 1, 3) and not y.any()


# ---- convolutions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 2)])
@pytest.mark.parametrize("stride, padding", [(1, 0), (1, (1, 2)), (2, 1), (3, 0), (1, None), (2, None), (3, None)])
def test_convolutions_have_the_derivatives_of_pytorch(stride, padding, kernel, groups):
    """padding None: a transposed convolution, which takes no padding."""
    torch.manual_seed(0)
    transposed, keywords = padding is None, {"stride": stride, "groups": groups}
    if not transposed:
        keywords["padding"] = padding
    x = draw(2, 4, 7, 8, layout=torch.channels_last)
    w = draw(*(4, 6 // groups) if transposed else (6, 4 // groups), *kernel)
    results = []
    for module in (conv2d_gradfix, F):
        y = (module.conv_transpose2d if transposed else module.conv2d)(x, w, **keywords)
        first = torch.autograd.grad(y.square().sum(), [x, w], create_graph=True)
        results.append([y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, w])])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_convolutions_can_be_differentiated_any_number_of_times(transposed):
    x, w = draw(1, 2, 3, 4), draw(2, 2, 2, 2)
    function = conv2d_gradfix.conv_transpose2d if transposed else conv2d_gradfix.conv2d

    def gradients(x, w):
        return torch.autograd.grad(function(x, w, stride=2).pow(3).sum(), [x, w], create_graph=True)

    assert torch.autograd.gradgradcheck(gradients, (x, w))


@pytest.mark.parametrize("which", ["x", "w"])
def test_convolutions_are_differentiated_by_what_asks_for_it(which):
    x, w = torch.randn(1, 2, 5, 5, requires_grad=which == "x"), torch.randn(3, 2, 3, 3, requires_grad=which == "w")
    asks = x if which == "x" else w
    found, expected = (torch.autograd.grad(m.conv2d(x, w).square().sum(), asks) for m in (conv2d_gradfix, F))
    torch.testing.assert_close(found, expected)


def test_convolutions_under_autocast_have_its_type():
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert conv2d_gradfix.conv2d(x, w).dtype == torch.bfloat16


def test_second_derivatives_need_no_kernels_of_the_size_of_pictures():
    """PyTorch's own second derivative convolves with kernels as large as the picture, for which nothing is fast."""
    kernels = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default:
                kernels.append(max(args[1].shape[2:]))
            return function(*args, **(kwargs or {}))

    def penalty(convolution) -> int:
        x, w = torch.randn(1, 2, 20, 20, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
        kernels.clear()
        with Watch():
            (dx,) = torch.autograd.grad(convolution(x, w).square().sum(), x, create_graph=True)
            dx.square().sum().backward()
        return max(kernels)

    assert penalty(conv2d_gradfix.conv2d) == 3 < penalty(F.conv2d)


@pytest.mark.parametrize("case", RESAMPLE_CASES, ids=lambda c: str(c["case"]))
def test_conv2d_resample_meets_golden_values_and_gradients(case):
    want = golden_arrays("convolution", f"resample{case['case']}_")
    x, w = want["x"].requires_grad_(), want["w"].requires_grad_()
    keywords = {k: v for k, v in case.items() if k not in ("kind", "case", "filter")}
    y = conv2d_resample(x, w, f=golden_filter(case), **keywords)
    dx, dw = torch.autograd.grad(y, [x, w], want["dy"])
    for name, found in {"y": y, "dx": dx, "dw": dw}.items():
        close(found, want[name], 1e-4)


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1), (3, 0), (2, 3)])
@pytest.mark.parametrize("flip_weight", [True, False])
def test_conv2d_resample_is_its_slow_definition(up, down, kernel, padding, flip_weight):
    """Compare with the steps of the definition, one after the other: upsample, filter, convolve, filter, downsample."""
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


@pytest.mark.parametrize("case", MODULATED_CASES, ids=lambda c: str(c["case"]))
def test_modulated_conv2d_meets_golden_values_and_gradients(case):
    want = golden_arrays("convolution", f"modconv{case['case']}_")
    x, w, s = (want[k].requires_grad_() for k in "xws")
    keywords = {k: case[k] for k in ("up", "down", "padding", "demodulate", "flip_weight")}
    f = golden_filter(case)
    y = synthesis_tail(*modulated_conv2d(x, w, s, resample_filter=f, **keywords), want.get("noise"))
    dx, dw, ds = torch.autograd.grad(y, [x, w, s], want["dy"])
    for name, found in {"y": y, "dx": dx, "dw": dw, "ds": ds}.items():
        close(found, want[name], 1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_1x1_convolutions_scale_each_sample_and_keep_the_layout(layout):
    x, w, s = torch.randn(3, 5, 4, 6).contiguous(memory_format=layout), torch.randn(7, 5, 1, 1), torch.randn(3, 5)
    weights = torch.einsum("oc,nc->noc", w[:, :, 0, 0], s)
    y, scale = modulated_conv2d(x, w, s, demodulate=False)
    close(y, torch.einsum("nchw,noc->nohw", x, weights), 1e-5)
    assert scale is None and y.is_contiguous(memory_format=layout)
    demodulated = synthesis_tail(*modulated_conv2d(x, w, s))
    close(demodulated, torch.einsum("nchw,noc->nohw", x, weights / weights.norm(dim=2, keepdim=True)), 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)], ids=["half", "bfloat16"])
def test_half_precision_survives_styles_that_would_overflow(dtype, tolerance):
    """Pre-normalization keeps sums within float16. Demodulation cancels it, so results stay the same."""
    torch.manual_seed(0)
    x, w, s = torch.randn(2, 16, 8, 8), torch.randn(8, 16, 3, 3) * 30, torch.randn(2, 16) * 3000
    full = synthesis_tail(*modulated_conv2d(x, w, s, padding=1))
    half = synthesis_tail(*modulated_conv2d(x.to(dtype), w, s, padding=1))
    assert half.dtype == dtype and half.isfinite().all()
    close(half.float(), full, tolerance)
