"""Native operators compared with the reference, for many types, layouts and sizes; and under torch.compile."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.operator_faces import native_operators
from torch_utils.ops import conv2d_gradfix, native
from torch_utils.ops.bias_act import ACTIVATIONS, NATIVE_ON_CPU, bias_act
from torch_utils.ops.registered import NUMBERS, OPERATORS
from torch_utils.ops.synthesis_tail import synthesis_tail
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.fixture(autouse=True, params=["cpu", "cuda"])
def device(request) -> Iterator[str]:
    with native_operators(request.param):
        torch.manual_seed(0)
        yield request.param


def derivatives(function, *tensors: torch.Tensor | None) -> list[torch.Tensor]:
    """Compute value, gradients and second derivatives, the latter as gradients of a weighted sum of gradients.

    The weights are the same at every call.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)

    def weights(t: torch.Tensor) -> torch.Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)

    y = function(*tensors)
    inputs = [t for t in tensors if t is not None and t.requires_grad]
    first = torch.autograd.grad(y, inputs, weights(y), create_graph=True)
    total = sum(((g * weights(g)).sum() for g in first), torch.zeros([]))
    second = torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else [None] * len(inputs)
    return [y, *first, *[torch.zeros_like(t) if g is None else g for g, t in zip(second, inputs, strict=True)]]


def agree(function, *tensors: torch.Tensor | None, tolerance: float) -> None:
    found = derivatives(function, *tensors)
    with native.reference_only():
        expected = derivatives(function, *tensors)
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape and f.dtype == e.dtype
        scale = max(1.0, float(e.detach().abs().max())) if e.numel() else 1.0
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [(2, 16, 9, 7), (2, 32, 40, 33), (3, 64, 8, 8), (1, 70, 3, 5), (2, 600, 2, 2), (2, 6, 50, 45), (4, 5, 1, 1)],
    ids=str,
)
def test_tail_agrees_with_the_reference(dtype, layout, shape, device):
    n, c, h, w = shape
    operand = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    scale, bias, strength = (torch.randn(s, dtype=operand, requires_grad=True) for s in ([n, c], [c], []))
    for act, noise_shape in [("linear", [h, w]), ("relu", [n, 1, h, w]), ("lrelu", [n, 1, h, w]), ("selu", [h, w])]:
        if device == "cpu" and act not in NATIVE_ON_CPU:
            continue
        noise = torch.randn(noise_shape, dtype=operand)

        def tail(x, scale, strength, bias, act=act, noise=noise):
            return synthesis_tail(x, scale, noise, strength, bias, act=act, gain=1.3, clamp=2)

        agree(tail, x, scale, strength, bias, tolerance=TOLERANCES[dtype])
        agree(lambda x, b, act=act: bias_act(x, b, act=act), x, bias, tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_agrees_with_the_reference_far_out(act):
    x = torch.cat([torch.linspace(-120, 120, 997), torch.tensor([0.0, 1e-30, -1e-30])]).double()
    agree(lambda x: bias_act(x, act=act), x.reshape(4, 250).requires_grad_(), tolerance=1e-12)


class Calls(TorchDispatchMode):
    """Counts calls of native operators with a word in their name."""

    def __init__(self, word: str):
        super().__init__()
        self.word, self.count = f"stylegan2_mr.{word}", 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += self.word in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_activations_of_networks_are_native_and_others_on_gpus_too(act, device):
    x = torch.randn(1, 2, 3, 3)
    with Calls("tail") as calls:
        bias_act(x, act=act, clamp=1)
        synthesis_tail(x, act=act)
    assert calls.count == (2 if device == "cuda" or act in ("linear", "lrelu") else 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha, gain", [(0.2, 1.3), (1.5, 1.3), (-0.5, 1.3), (0, 1.3), (0.2, -1.3), (0.2, 0)])
def test_any_slope_and_gain_agrees_with_the_reference(layout, alpha, gain):
    """Slopes above 1 and below 0 are among them: max(x, alpha · x), the usual short cut, is wrong there."""
    x = torch.randn(2, 16, 5, 9).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    scale, bias, noise = torch.randn(2, 16, requires_grad=True), torch.randn(16, requires_grad=True), torch.randn(5, 9)
    settings = {"act": "lrelu", "alpha": alpha, "gain": gain, "clamp": 2}
    agree(lambda x, b: bias_act(x, b, **settings), x, bias, tolerance=1e-5)
    agree(lambda x, s, b: synthesis_tail(x, s, noise, None, b, **settings), x, scale, bias, tolerance=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_zero_and_infinity_are_those_of_the_reference(layout):
    """NaN, infinity and zero are treated alike at every place of a row. Zero has the slope of negative numbers."""
    bias = torch.rand(16)
    x = -bias[:, None, None].expand(2, 16, 11, 9).contiguous(memory_format=LAYOUTS[layout])
    x[:, ::3, ::2, 1::4], x[:, ::2, 1::3, ::5], x[1, 1::5, :, ::3] = torch.nan, torch.inf, -torch.inf
    found = derivatives(lambda x: bias_act(x, bias, act="lrelu", clamp=9), x.requires_grad_())
    with native.reference_only():
        expected = derivatives(lambda x: bias_act(x, bias, act="lrelu", clamp=9), x)
    torch.testing.assert_close(found[:2], expected[:2], equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("c", [16, 19, 64])
def test_tail_does_not_depend_on_where_tensors_lie(layout, c):
    """Tensors may begin at any address, aligned to the size of a vector or not."""
    shape, operands = (2, c, 7, 11), (torch.rand(2, c), torch.randn(2, 1, 7, 11), torch.tensor(0.5), torch.randn(c))
    x = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout])
    with native.reference_only():
        expected = synthesis_tail(x, *operands, act="lrelu", clamp=1)
    room = torch.zeros(x.numel() + 24)
    for offset in range(24):
        moved = room[offset : offset + x.numel()].as_strided(x.shape, x.stride()).copy_(x)
        torch.testing.assert_close(synthesis_tail(moved, *operands, act="lrelu", clamp=1), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 27, 75, 77), (3, 22, 30, 37), (1, 7, 300, 301), (131, 67, 32, 32)], ids=str)
def test_tail_does_not_depend_on_the_number_of_threads(layout, shape):
    n, c, h, w = shape
    x = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout])
    operands = torch.rand(n, c), torch.randn(n, 1, h, w), torch.tensor(0.5), torch.randn(c)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(synthesis_tail(x, *operands, act="lrelu", clamp=1))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "shape, dtype, layout",
    [
        (
            (2, 5, 1304, 1300),
            torch.float32,
            "contiguous",
        ),  # 68 MB: from 64 MB on, another share is stored past the caches
        ((3, 16, 600, 592), torch.float32, "channels last"),
        ((1, 592, 85, 96), torch.float32, "contiguous"),
        ((1, 592, 85, 96), torch.float32, "channels last"),
        ((300, 16, 31, 31), torch.float32, "channels last"),
        ((3, 32, 152, 148), torch.float64, "contiguous"),
        ((3, 32, 152, 148), torch.float64, "channels last"),
        ((2, 5, 651, 653), torch.float32, "contiguous"),  # rows that aren't multiples of a vector are stored as usual
        ((3, 16, 421, 427), torch.bfloat16, "channels last"),  # these too
    ],
)
def test_tail_of_tensors_beyond_the_caches(layout, shape, dtype):
    """All these tensors have 16 MiB or more. All but the last two are stored past the caches."""
    n, c, h, w = shape
    assert n * c * h * w * dtype.itemsize >= 16 << 20
    operand = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    operands = [torch.randn(s, dtype=operand) for s in ([n, c], [n, 1, h, w], [], [c])]
    for function in (
        lambda: synthesis_tail(x, *operands, act="lrelu", clamp=1),
        lambda: bias_act(x, operands[3], act="lrelu", clamp=1),
    ):
        found = function()
        with native.reference_only():
            torch.testing.assert_close(found, function(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("seed", range(60))
def test_upfirdn2d_agrees_with_the_reference(seed):
    """Random factors, filters and padding. Half of the cases have loops of their own in the kernels."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtype = draw.choice(list(TOLERANCES))
    if seed % 2:
        up, down = draw.choice([(1, 1), (2, 1), (1, 2)])
        f = torch.tensor([1.0, 3, 3, 2]).outer(torch.tensor([2.0, 3, 1, 1])) / 64
    else:
        up, down = (tuple(draw.randint(1, 4) for _ in "xy") for _ in "ud")
        f = draw.choice([torch.randn(draw.randint(1, 9), draw.randint(1, 9)), torch.randn(draw.randint(1, 12)), None])
    shape = [draw.randint(0, 2), draw.choice([1, 3, 16, 32, 64, 70]), draw.randint(1, 20), draw.randint(1, 20)]
    size = 1 if f is None else max(f.shape)
    padding = [size + draw.randint(-3, 3) for _ in range(4)]
    x = torch.randn(shape).to(dtype).contiguous(memory_format=draw.choice(list(LAYOUTS.values()))).requires_grad_()

    def function(x):
        return upfirdn2d(x, f, up, down, padding, flip_filter=seed % 3 == 0, gain=1.7)

    agree(function, x, tolerance=max(TOLERANCES[dtype], 1e-6 if f is not None and f.ndim == 1 else 0))


def test_slices_of_tensors_serve_as_well():
    """Every second row of a transposed picture has neither of the two memory layouts."""
    x = torch.randn(2, 3, 20, 11).transpose(2, 3)[:, :, ::2].requires_grad_()
    f = setup_filter([1, 3, 3, 1])
    agree(lambda x: upfirdn2d(bias_act(x, act="lrelu"), f, up=2, padding=2), x, tolerance=1e-5)


# ---- 3×3 convolutions on CPUs ----------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(device) -> None:
    if device != "cpu":
        pytest.skip("3×3 convolutions are native on CPUs only")


def draw_convolution(n, c, h, w, channels, transposed=False) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw x and weight, channels last, such that their convolution has a variance of about 1."""
    weight = torch.randn(*(c, channels) if transposed else (channels, c), 3, 3) / (9 * c) ** 0.5
    drawn = torch.randn(n, c, h, w), weight
    x, weight = (t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in drawn)
    return x, weight


@pytest.mark.parametrize(
    "shape", [(2, 16, 23, 37, 32), (1, 64, 32, 33, 16), (3, 32, 20, 20, 48), (1, 128, 40, 30, 128)]
)
def test_convolutions_agree_with_pytorch(shape, on_cpu):
    x, weight = draw_convolution(*shape)

    def value_and_derivatives() -> list[torch.Tensor]:
        y = conv2d_gradfix.conv2d(x, weight, padding=1)
        first = torch.autograd.grad(y.square().sum(), [x, weight], create_graph=True)
        return [y, *first, *torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros([])), [x, weight])]

    with Calls("conv3x3") as calls:
        found = value_and_derivatives()
    assert calls.count == 9  # the value, its two gradients, and the two gradients of each of these three
    with native.reference_only():
        for f, e in zip(found, value_and_derivatives(), strict=True):
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5 * float(e.detach().abs().max()))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("h, w", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 6), (13, 4)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_native_convolutions_of_few_pixels(n, h, w, transposed, on_cpu):
    """Small pictures, which conv2d leaves to PyTorch, and weights in either layout."""
    x, weight = (t.detach() for t in draw_convolution(n, 32, h, w, 48, transposed))
    function = F.conv_transpose2d if transposed else F.conv2d
    expected = function(x.double(), weight.double(), padding=1)
    for layout in LAYOUTS.values():
        found = OPERATORS.conv3x3(x, weight.contiguous(memory_format=layout), transposed)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_native_convolutions_are_almost_as_exact_as_plain_sums(on_cpu):
    """The error depends on the interpolation points. With 0, ±1, ±2 and ∞ it would be about four times as large."""
    x, weight = (t.detach() for t in draw_convolution(2, 64, 40, 40, 64))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    error = (OPERATORS.conv3x3(x, weight, False) - expected).square().mean().sqrt()
    assert error < 1.2e-6  # plain sums: 4e-7


def test_what_native_convolutions_do_not_serve_is_left_to_pytorch(on_cpu):
    def pair(c: int = 32, size: int = 40, channels: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_convolution(1, c, size, size, channels)

    x, weight = pair()
    with Calls("conv3x3") as calls:
        for case in (
            lambda: conv2d_gradfix.conv2d(x.contiguous(), weight, padding=1),
            lambda: conv2d_gradfix.conv2d(x.double(), weight.double(), padding=1),
            lambda: conv2d_gradfix.conv2d(*pair(size=31), padding=1),
            lambda: conv2d_gradfix.conv2d(*pair(c=40), padding=1),
            lambda: conv2d_gradfix.conv2d(*pair(channels=40), padding=1),
            lambda: conv2d_gradfix.conv2d(*pair(c=144), padding=1),
            lambda: conv2d_gradfix.conv2d(x, weight, padding=0),
            lambda: conv2d_gradfix.conv2d(x, weight, padding=(1, 2)),
            lambda: conv2d_gradfix.conv2d(x, weight, padding=1, stride=2),
            lambda: conv2d_gradfix.conv2d(x, weight[:, :16], padding=1, groups=2),
            lambda: conv2d_gradfix.conv2d(x, weight[..., :2], padding=1),
            lambda: conv2d_gradfix.conv_transpose2d(x, weight),
        ):
            case().sum().backward()
        with native.reference_only():
            conv2d_gradfix.conv2d(x, weight, padding=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv2d_gradfix.conv2d(x, weight, padding=1).dtype == torch.bfloat16
        with torch.no_grad():  # as PyTorch takes them
            assert conv2d_gradfix.conv2d(x[0], weight, padding="same").shape == (32, 40, 40)
        assert calls.count == 0
        for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with guard():
                conv2d_gradfix.conv2d(*pair(size=32), padding=1)
        assert calls.count == 3


def test_compiled_convolutions_are_those_of_pytorch(on_cpu):
    x, weight = draw_convolution(1, 32, 40, 40, 32)
    compiled = torch.compile(lambda x, w: conv2d_gradfix.conv2d(x, w, padding=1), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = conv2d_gradfix.conv2d(x, weight, padding=1)
        torch.testing.assert_close(compiled(x, weight), expected, rtol=1e-5, atol=1e-5)


def test_native_convolutions_refuse_what_does_not_fit(on_cpu):
    x, weight = (t.detach() for t in draw_convolution(2, 32, 8, 8, 48))
    for wrong in (
        lambda: OPERATORS.conv3x3(x.double(), weight.double(), False),
        lambda: OPERATORS.conv3x3(x[:, :17], weight[:, :17], False),
        lambda: OPERATORS.conv3x3(x, weight, True),
        lambda: OPERATORS.conv3x3(x, weight[..., :2], False),
        lambda: OPERATORS.conv3x3(x[0], weight, False),
        lambda: OPERATORS.conv3x3_weight_gradient(x, x, weight),
        lambda: OPERATORS.conv3x3_weight_gradient(x, torch.zeros(2, 48, 8, 7), weight),
    ):
        with pytest.raises(ValueError, match=r"found x \[.*\] \w+ and w \[|dy \[.*does not fit x \["):
            wrong()


def test_native_convolutions_refuse_derivatives_in_words(on_cpu):
    x, weight = draw_convolution(1, 16, 4, 4, 16)
    for call in (
        lambda: OPERATORS.conv3x3(x, weight, False),
        lambda: OPERATORS.conv3x3_weight_gradient(x, x, weight),
    ):
        with pytest.raises(NotImplementedError, match="conv2d_gradfix has"):
            call()


def test_third_derivatives_are_refused_in_words():
    x, scale = torch.randn(1, 2, 3, 3, requires_grad=True), torch.ones(1, 2)
    (first,) = torch.autograd.grad(synthesis_tail(x, scale, act="lrelu").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only.*reference_only"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_limit_of_minus_zero_lets_nothing_through(layout):
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=layout).requires_grad_()
    y = bias_act(x, act="lrelu", clamp=-0.0)
    y.sum().backward()
    assert not y.any() and not x.grad.any()


def test_second_derivative_of_a_gradient_that_tells_nothing():
    """Computed from the output only, the gradient of scale is zero and has no derivative."""
    x, settings = torch.randn(2, 3, 4, 4), (NUMBERS["lrelu"], 0.2, 1.0, 256.0)
    dy = torch.randn_like(x).requires_grad_()
    _, d_scale, _, d_bias = OPERATORS.tail_backward(dy, x, None, None, None, None, *settings, True, [True, False, True])
    assert torch.autograd.grad(d_scale.sum(), dy, allow_unused=True, retain_graph=True) == (None,)
    (found,) = torch.autograd.grad(d_bias.sum(), dy)
    torch.testing.assert_close(found, torch.where(x > 0, 1.0, 0.2))


def test_operators_refuse_what_would_crash(device):
    """Operators refuse wrong arguments even if they are called directly, without the checks of the public functions."""
    x, settings = torch.zeros(2, 3, 4, 4), (NUMBERS["lrelu"], 0.2, 1.0, 256.0)
    if device == "cpu":
        with pytest.raises(ValueError, match="linear and lrelu alone are native"):
            OPERATORS.tail(x, None, None, None, None, NUMBERS["tanh"], 0.2, 1.0, 256.0)
    with pytest.raises(ValueError, match="bias"):
        OPERATORS.tail(x, None, None, None, torch.zeros(4), *settings)
    with pytest.raises(ValueError, match="expected Float"):
        OPERATORS.tail(x, torch.zeros(2, 3).double(), None, None, None, *settings)
    with pytest.raises(ValueError, match="no activation"):
        OPERATORS.tail(x, None, None, None, None, 99, 0.2, 1.0, 256.0)
    with pytest.raises(ValueError, match="dy"):
        OPERATORS.tail_backward(x[:1], x, None, None, None, None, *settings, False, [True] * 3)
    with pytest.raises(ValueError, match="factor"):
        OPERATORS.upfirdn2d(x, torch.ones(1, 1), 0, 1, 1, 1, 0, 0, 0, 0, False, 1.0)
    with pytest.raises(ValueError, match="leaves less"):
        OPERATORS.upfirdn2d(x, torch.ones(9, 9), 1, 1, 1, 1, 0, 0, 0, 0, False, 1.0)


def test_operators_pass_the_checks_of_pytorch(device):
    """Schema, fake implementation, autograd registration, and tracing with AOTAutograd."""
    x = torch.randn(2, 3, 4, 6, requires_grad=True)
    settings = (NUMBERS["lrelu" if device == "cpu" else "swish"], 0.2, 1.4, 2.0)
    operands = (torch.randn(2, 3, requires_grad=True), torch.randn(4, 6), torch.tensor(0.5), torch.randn(3))
    dy, w = torch.randn(2, 3, 4, 6), (torch.randn(2, 3), torch.randn([]), torch.randn(3))
    for layout, checks in (("channels last", None), ("contiguous", "test_faketensor")):  # which knows the layout

        def opcheck(operator, arguments, checks=checks):
            torch.library.opcheck(operator, arguments, **({"test_utils": checks} if checks else {}))

        x = x.detach().contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        opcheck(OPERATORS.tail, (x, *operands, *settings))
        opcheck(OPERATORS.tail_backward, (dy, x, *operands, *settings, False, [True] * 3))
        opcheck(OPERATORS.tail_backward, (dy, x, *operands, *settings, False, [False, False, True]))
        constants = [t.detach() for t in (x, *operands)]  # it has no derivative
        opcheck(OPERATORS.tail_backward2, (dy, *w, dy, *constants, *settings, True, [True] * 3))
        opcheck(
            OPERATORS.tail_backward2, (None, w[0], None, w[2], dy, *constants, *settings, False, [True, False, True])
        )
        opcheck(OPERATORS.upfirdn2d, (x, torch.ones(3, 2), 2, 1, 1, 2, 3, 2, 1, 2, False, 1.5))


def test_native_convolutions_pass_the_checks_of_pytorch(on_cpu):
    x, weight = (t.detach() for t in draw_convolution(2, 32, 5, 6, 16))
    torch.library.opcheck(OPERATORS.conv3x3, (x, weight, False))
    torch.library.opcheck(OPERATORS.conv3x3, (torch.randn(2, 16, 5, 6), weight, True))
    torch.library.opcheck(OPERATORS.conv3x3_weight_gradient, (x, torch.randn(2, 16, 5, 6), weight))


def test_warps_pass_the_checks_of_pytorch(on_cpu):
    x, maps, taps = torch.randn(2, 3, 5, 5), torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(12).double()
    torch.library.opcheck(OPERATORS.warp, (x, maps, taps, False))
    torch.library.opcheck(OPERATORS.warp, (x.contiguous(memory_format=torch.channels_last), maps, taps, True))


class Layer(torch.nn.Module):
    f: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(3))
        self.register_buffer("f", setup_filter([1, 3, 3, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = bias_act(x, self.bias, act="lrelu", clamp=1)
        return synthesis_tail(upfirdn2d(x, self.f, up=2, padding=2), bias=self.bias, act="swish")


def test_layers_compile_without_a_break():
    layer, x = Layer(), torch.randn(2, 3, 5, 4, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    found, expected = (torch.autograd.grad(f(x).square().sum(), [x, layer.bias]) for f in (compiled, layer))
    torch.testing.assert_close(found, expected)


def test_forward_mode_is_refused_rather_than_forgotten():
    x, b = torch.randn(1, 2, 4, 4), torch.randn(2)
    with forward_ad.dual_level():
        dual, bias = forward_ad.make_dual(x, torch.ones_like(x)), forward_ad.make_dual(b, torch.ones_like(b))
        for function in (
            lambda: bias_act(dual, act="lrelu"),
            lambda: bias_act(x, bias, act="lrelu"),
            lambda: upfirdn2d(dual, None, up=2),
        ):
            with pytest.raises(RuntimeError, match="forward AD|forward-mode|jvp"):
                function()


def test_operators_refuse_gradients_that_they_do_not_have():
    x, noise = torch.ones(1, 1, 2, 2), torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match="the noise takes no gradient"):
        OPERATORS.tail(x, None, noise, None, None, NUMBERS["relu"], 0.0, 1.0, 9.0)
    with pytest.raises(ValueError, match="the filter takes no gradient"):
        OPERATORS.upfirdn2d(x, noise, 1, 1, 1, 1, 0, 0, 0, 0, False, 1.0)


def test_layers_are_exported_with_the_operators_in_them():
    layer, x = Layer(), torch.randn(2, 3, 5, 4)
    program = torch.export.export(layer, (x,))
    called = {str(node.target) for node in program.graph.nodes}
    assert {"stylegan2_mr.tail.default", "stylegan2_mr.upfirdn2d.default"} <= called
    torch.testing.assert_close(program.module()(x), layer(x))
