"""The networks against the published implementation, their initialization, and the joint head."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.goldens import golden_arrays, golden_cases, golden_configs
from slices.codec import SliceCodec
from slices.schema import BRATS
from training import loss
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator, minibatch_std
from training.networks.generator import Generator
from training.networks.joint_head import JointHead
from training.networks.shapes import runs_in_half

pytestmark = pytest.mark.usefixtures("face")
TOLERANCE = 1e-4


class Published:
    """The networks of one golden file, with its arrays."""

    def __init__(self, name: str) -> None:
        self.arrays = golden_arrays(f"networks_{name}")
        self.settings = golden_cases("networks")[name]
        generator, discriminator = golden_configs(name)
        self.generator, self.discriminator = Generator(generator), Discriminator(discriminator)
        self.generator.load_state_dict(self._state("G."))
        self.discriminator.load_state_dict(self._state("D."))

    def _state(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]

    @property
    def c(self) -> torch.Tensor | None:
        return self.arrays.get("c")

    def require_gradients(self, module: torch.nn.Module, prefix: str) -> None:
        """Compare every parameter's gradient with the golden one, which is 0 if the golden file lacks it."""
        expected = self._state(prefix)
        assert expected
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert set(expected) <= set(found)
        for name, gradient in found.items():
            close(gradient, expected[name] if name in expected else torch.zeros_like(gradient))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that values are equal, up to 1e-4 of the largest one."""
    scale = max(float(expected.abs().max()), 1e-6)
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


@pytest.fixture(params=["uncond", "cond"])
def published(request) -> Published:
    return Published(request.param)


def test_mapping_and_truncation(published):
    mapping = published.generator.mapping
    close(mapping(published["z"], published.c), published["ws"])
    truncated = mapping(published["z"], published.c, truncation_psi=0.7, truncation_cutoff=4)
    close(truncated, published["ws_psi07_cut4"])


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_synthesis(published, noise_mode):
    close(published.generator.synthesis(published["ws"], noise_mode=noise_mode), published[f"img_{noise_mode}"])


def test_truncated_images(published):
    images = published.generator(published["z"], published.c, truncation_psi=0.7, noise_mode="const")
    close(images, published["img_psi07"])


def test_logits(published):
    close(published.discriminator(published["real"], published.c), published["D_logits"])


def test_r1_penalty_and_its_gradients(published):
    real = published["real"].requires_grad_()
    penalty = loss.r1_penalty(loss.r1_gradients(published.discriminator(real, published.c), real))
    gamma = published.settings["r1_gamma"]
    close(penalty, published["r1_penalty"])
    (penalty * (gamma / 2)).mean().backward()
    published.require_gradients(published.discriminator, "r1_gamma10_grad.")


def test_path_length_penalty_and_its_gradients(published):
    ws = published["pl_ws"].requires_grad_()
    images = published.generator.synthesis(ws, noise_mode="const")
    lengths = loss.path_lengths(images, ws, published["pl_noise"])
    close(lengths, published["pl_lengths"])
    settings = published.settings["path_length"]
    penalty, mean = loss.path_length_penalty(lengths, published["pl_mean_before"], settings["decay"])
    close(mean, published["pl_mean_after"])
    close(penalty, published["pl_penalty"])
    (penalty * settings["weight"]).mean().backward()
    published.require_gradients(published.generator.synthesis, "pl_weight2_grad.")


def test_generator_loss_and_its_gradients(published):
    images = published.generator(published["z"], published.c, noise_mode="const")
    values = loss.generator_loss(published.discriminator(images, published.c))
    close(values.mean(), published["Gmain_loss"])
    values.mean().backward()
    published.require_gradients(published.generator, "Gmain_grad.")


def test_initialization_has_the_published_names_shapes_and_moments():
    torch.manual_seed(0)
    networks = {
        "G": Generator(GeneratorConfig(64, 8, 0, mapping_layers=8, channel_base=8192)),
        "D": Discriminator(DiscriminatorConfig(64, 8, channel_base=8192)),
    }
    for key, network in networks.items():
        expected = golden_cases("initialisation")[key]
        state = network.state_dict()
        assert {k for k in state if "resample_filter" not in k} == {k for k in expected if "resample_filter" not in k}
        for name, want in expected.items():
            values = state[name]
            assert list(values.shape) == want["shape"], name
            if values.numel() == 1:
                assert float(values) == pytest.approx(want["mean"]), name
                continue
            # Golden and own weights are independent draws: allow 6 standard errors of mean and standard deviation.
            error = 6 * max(want["std"], 1e-9) / values.numel() ** 0.5
            assert float(values.mean()) == pytest.approx(want["mean"], abs=2 * error), name
            assert float(values.std()) == pytest.approx(want["std"], abs=2 * error), name


# ---- Behavior that the golden numbers don't cover --------------------------------------------------------------


def small_generator() -> Generator:
    torch.manual_seed(0)
    size = dict(resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=16)
    return Generator(GeneratorConfig(num_contrasts=4, num_maps=4, **size))


def test_joint_head_starts_as_softmax_of_the_logits():
    torch.manual_seed(0)
    head, x = JointHead(3, 4), torch.randn(2, 7, 5, 5) * 3
    y = head(x)
    assert torch.equal(y[:, :3], x[:, :3])
    torch.testing.assert_close((y[:, 3:] + 1) / 2, x[:, 3:].softmax(dim=1))
    torch.testing.assert_close(((y[:, 3:] + 1) / 2).sum(dim=1), torch.ones(2, 5, 5))


def test_label_maps_of_generated_slices_are_probabilities_in_the_range_of_stored_ones():
    images = small_generator()(torch.randn(3, 8))
    maps = (images[:, 4:] + 1) / 2
    assert images.shape == (3, 8, 16, 16)
    assert maps.min() >= 0 and maps.max() <= 1
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(3, 16, 16))
    stored = SliceCodec(BRATS).to_stored(images)
    assert (stored[:, 4:].to(int).sum(dim=1) == 255).all()
    assert torch.equal(stored[:, 4:].argmax(dim=1), images[:, 4:].argmax(dim=1))


def test_gradients_reach_contrasts_and_labels_alike():
    generator = small_generator()
    generator(torch.randn(2, 8))[:, 4:].square().sum().backward()
    assert generator.synthesis.head.label_conv.weight.grad.abs().sum() > 0
    assert generator.synthesis.b16.torgb.weight.grad[4:].abs().sum() > 0


def test_minibatch_std_compares_strided_groups():
    x = torch.zeros(8, 1, 2, 2)
    x[1] = 4  # with groups of 2, samples 1 and 5 are compared
    std = minibatch_std(x, group_size=2)[:, 1, 0, 0]
    expected = torch.full([8], 1e-4)
    expected[[1, 5]] = 2
    torch.testing.assert_close(std, expected)


@pytest.mark.parametrize("size, group_size, c_dim", [(6, 2, 0), (6, 2, 3), (2, 4, 0), (1, 4, 3)])
def test_minibatches_side_by_side_are_judged_apart(size, group_size, c_dim):
    config = DiscriminatorConfig(16, 8, c_dim=c_dim, channel_base=128, channel_max=16, mbstd_group_size=group_size)
    discriminator = Discriminator(config)
    first, second = torch.randn(2, size, 8, 16, 16)
    c, other_c = torch.randn(2, size, c_dim)
    both = discriminator(torch.cat([first, 3 * second]), torch.cat([c, other_c]), minibatches=2)
    apart = torch.cat([discriminator(first, c), discriminator(3 * second, other_c)])
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)
    if size % group_size:
        return  # taken as one minibatch, the samples would not divide into groups
    mixed = discriminator(torch.cat([first, 3 * second]), torch.cat([c, other_c]))
    assert not torch.allclose(mixed, apart, rtol=1e-2)


def test_noise_modes():
    generator = small_generator()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    z = torch.randn(2, 8)
    with torch.no_grad():
        images = {mode: generator(z, noise_mode=mode) for mode in ("const", "none", "random")}
        assert torch.equal(images["const"], generator(z, noise_mode="const"))
        assert not torch.equal(images["random"], generator(z, noise_mode="random"))
        assert not torch.allclose(images["const"], images["none"])
        torch.manual_seed(1)
        drawn = generator(z, noise_mode="random")
        torch.manual_seed(1)
        noise = torch.randn(2, generator.synthesis.noise_size)
        assert torch.equal(drawn, generator(z, noise_mode="random", noise=noise)), "one draw, a sample in a row"
        alone = generator(z[1:], noise_mode="random", noise=noise[1:])
        torch.testing.assert_close(drawn[1:], alone, rtol=1e-4, atol=1e-4)


def test_layers_take_their_noise_in_order_and_in_one_piece():
    synthesis = small_generator().synthesis
    taken = []
    for layer in synthesis.layers:
        layer.register_forward_pre_hook(lambda layer, arguments: taken.append(arguments[2]))
    noise = torch.randn(2, synthesis.noise_size)
    synthesis(torch.randn(2, synthesis.num_ws, 8), noise=noise)
    assert [list(t.shape) for t in taken] == [[2, 1, size, size] for size in (4, 8, 8, 16, 16)]
    assert torch.equal(torch.cat([t.flatten(1) for t in taken], dim=1), noise)
    assert all(t.is_contiguous() for t in taken)


def test_w_avg_moves_by_half_a_percent_when_told():
    generator = small_generator()
    z = torch.randn(5, 8)
    ws = generator.mapping(z, None)
    assert torch.equal(generator.mapping.w_avg, torch.zeros(8))
    generator.mapping.move_average(ws[:, 0].detach().mean(dim=0))
    torch.testing.assert_close(generator.mapping.w_avg, ws[:, 0].mean(dim=0) * 0.005)


class Types(TorchDispatchMode):
    """Records the floating-point types that operators see and make in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[torch.dtype, set[str]] = {}  # operators by type

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.seen.setdefault(leaf.dtype, set()).add(str(operator))
        return result


@pytest.fixture(params=["built", "moved"])
def in_float64(request) -> Iterator[bool]:
    """Whether networks are to be moved to float64. Otherwise they are built so: it is the type of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if request.param == "built" else before)
    yield request.param == "moved"
    torch.set_default_dtype(before)


@pytest.mark.parametrize("noise_mode", ["const", "random"])
def test_networks_in_float64_compute_nothing_in_another_type(in_float64, noise_mode):
    """Values, first and second derivatives, with blocks that would compute in bfloat16."""
    torch.manual_seed(0)
    size = dict(
        resolution=16, c_dim=2, channel_base=128, channel_max=16, num_fp16_res=2, half="bfloat16", conv_clamp=256
    )
    generator = Generator(GeneratorConfig(num_contrasts=4, num_maps=4, z_dim=8, w_dim=8, mapping_layers=2, **size))
    discriminator = Discriminator(DiscriminatorConfig(img_channels=8, **size))
    if in_float64:
        generator.double(), discriminator.double()
    kind = {"dtype": torch.float64}
    noise = torch.randn(4, generator.synthesis.noise_size, **kind) if noise_mode == "random" else None
    z, c, pl_noise = torch.randn(4, 8, **kind), torch.eye(2, **kind).repeat(2, 1), torch.randn(4, 8, 16, 16, **kind)
    reals, pl_mean = torch.randn(4, 8, 16, 16, **kind).requires_grad_(), torch.ones([], **kind)
    with Types() as types:
        ws = generator.mapping(z, c, truncation_psi=0.7)
        generator.mapping.move_average(ws[:, 0].detach().mean(dim=0))
        fakes = generator.synthesis(ws, noise_mode=noise_mode, noise=noise)
        loss.generator_loss(discriminator(fakes, c)).mean().backward(retain_graph=True)  # Gmain
        penalty, _ = loss.path_length_penalty(loss.path_lengths(fakes, ws, pl_noise), pl_mean)
        penalty.mean().backward()  # Gpl
        logits = discriminator(torch.cat([fakes.detach(), reals]), torch.cat([c, c]), minibatches=2)
        loss.discriminator_loss_on_fakes(logits).mean().backward()  # Dmain
        loss.r1_penalty(loss.r1_gradients(discriminator(reals, c), reals)).mean().backward()  # Dr1
        generator.synthesis(ws.detach())  # draws noise itself
    assert set(types.seen) == {torch.float64}, {t: names for t, names in types.seen.items() if t != torch.float64}
    for network in (generator, discriminator):
        assert all(p.grad.dtype == torch.float64 and p.grad.isfinite().all() for p in network.parameters())


def test_networks_in_float64_agree_with_float32():
    generator, z = small_generator(), torch.randn(2, 8)
    single, exact = generator(z, noise_mode="const"), generator.double()(z, noise_mode="const")
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    assert not torch.equal(single.double(), exact)


def test_half_precision_is_for_the_highest_resolutions():
    assert [r for r in (4, 8, 16, 32, 64, 128, 256) if runs_in_half(r, 256, 4)] == [32, 64, 128, 256]
    assert not any(runs_in_half(r, 256, 0) for r in (4, 256))
    assert not runs_in_half(4, 16, 4)


def test_published_checkpoints_fit_by_name():
    """Tensor names are an interface: a network without label maps has exactly the tensors of published checkpoints."""
    published = golden_arrays("networks_uncond")
    network = Published("uncond").generator
    assert {f"G.{name}" for name in network.state_dict()} == {name for name in published if name.startswith("G.")}
