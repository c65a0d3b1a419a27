"""A training step: its phases, parts, gradients and optimizer steps."""

import math
import random
import threading

import numpy as np
import pytest
import torch

from helpers.drawn import write_archive
from helpers.trainings import double, tiny_trainer
from torch_utils.distributed import World
from training.training_step import Diverged, Trainer, reduce_together


def gradients(trainer: Trainer, phase_name: str) -> dict[str, torch.Tensor]:
    """Gradients of the first application of a phase. No optimizer steps."""
    (phase,) = (phase for phase in trainer.phases if phase.name == phase_name)
    phase.optimizer.step = lambda: None
    trainer.apply(phase, trainer.reals.next_parts())
    return {name: p.grad.clone() for name, p in phase.network.named_parameters() if p.grad is not None}


def relative_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference of a tensor's elements, relative to its largest element."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-30)) for name in wanted
    )


def test_a_step_has_the_phases_of_the_configuration(tmp_path, archive):
    """One optimizer serves both phases of a network."""
    trainer = tiny_trainer(tmp_path, archive)
    assert [(p.name, p.interval) for p in trainer.phases] == [("Gmain", 1), ("Gpl", 4), ("Dmain", 1), ("Dr1", 16)]
    g_main, g_pl, d_main, d_r1 = (phase.optimizer for phase in trainer.phases)
    assert g_main is g_pl is trainer.state.g_optimizer and d_main is d_r1 is trainer.state.d_optimizer
    plain = tiny_trainer(tmp_path, archive, pl_weight=0, gamma=0)
    assert [p.name for p in plain.phases] == ["Gmain", "Dmain"]


@pytest.mark.parametrize("phase", ["Gmain", "Dmain", "Dr1"])
def test_gradients_do_not_depend_on_the_number_of_parts(tmp_path, archive, phase):
    """Groups of the minibatch standard deviation and style mixing included."""
    with double():
        options = dict(batch=12, mbstd=2, mixing=1)
        whole = gradients(tiny_trainer(tmp_path, archive, batch_gpu=12, **options), phase)
        for batch_gpu in (6, 4, 2):
            found = gradients(tiny_trainer(tmp_path, archive, batch_gpu=batch_gpu, **options), phase)
            assert relative_difference(found, whole) < 1e-11, batch_gpu
        # The test would notice other groups: these are of four slices.
        other = gradients(tiny_trainer(tmp_path, archive, batch_gpu=12, **{**options, "mbstd": 4}), phase)
        assert relative_difference(other, whole) > 1e-6


def test_path_length_depends_on_parts_only_through_their_means(tmp_path, archive):
    """Each part's penalty has a mean of its own. The kept mean and the lengths are those of the whole minibatch."""
    with double():
        found = {}
        for batch_gpu in (12, 4, 2):
            trainer = tiny_trainer(tmp_path, archive, batch=12, mbstd=2, batch_gpu=batch_gpu)
            gradient = gradients(trainer, "Gpl")
            found[batch_gpu] = gradient, trainer.state.pl_mean.clone(), trainer.state.statistics.collect()
        (whole, pl_mean, stats), *others = found.values()
        assert pl_mean > 0
        for gradient, other_mean, other_stats in others:
            torch.testing.assert_close(other_mean, pl_mean, rtol=1e-12, atol=0)
            assert other_stats["Loss/G/pl_length"] == pytest.approx(stats["Loss/G/pl_length"], rel=1e-12)
            assert 1e-6 < relative_difference(gradient, whole) < 1


def test_nothing_depends_on_the_random_state_of_libraries(tmp_path, archive):
    """Two equal trainings; between the steps of one, all generators are scrambled."""
    first, second = (tiny_trainer(tmp_path, archive) for _ in range(2))
    for step in range(5):
        random.seed(step)
        np.random.seed(step)
        torch.manual_seed(step)
        second.step()
        first.step()
        torch.rand(step)
    assert (first.state.step, first.state.nimg, first.state.tick) == (5, 20, 0)
    for name, tensor in first.state.tensors().items():
        assert torch.equal(tensor, second.state.tensors()[name]), name


def test_the_state_of_the_libraries_is_left_alone(tmp_path, archive):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tiny_trainer(tmp_path, archive).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_move_all_networks(tmp_path, archive):
    state = (trainer := tiny_trainer(tmp_path, archive)).state
    before = {name: [p.clone() for p in network.parameters()] for name, network in state.networks.items()}
    for _ in range(3):
        trainer.step()
    for name, network in state.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))
    assert state.pl_mean > 0 and state.generator.mapping.w_avg.abs().sum() > 0


def test_requests_come_back_as_sums(tmp_path, archive):
    assert tiny_trainer(tmp_path, archive).step(lambda: [0.0, 2.0]) == [0, 2]


def test_sums_of_double_precision_come_through_a_reduction_of_single_precision():
    """Statistics are differences of sums, which float32 would spoil. One reduction serves them and the gradients."""
    generator = torch.Generator().manual_seed(0)
    sums = [torch.randn(50, generator=generator, dtype=torch.float64) * 1e6 for _ in range(2)]
    gradients = [torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2)]
    sent = []

    class Records(World):
        def add_up(self, tensor):
            sent.append(tensor.clone())

    cpu = torch.device("cpu")
    for rank in range(2):
        reduce_together(Records(rank, 2, device=cpu), [gradients[rank].clone()], [sums[rank].clone()])
    assert all(tensor.dtype == torch.float32 for tensor in sent)

    class Adds(World):
        def add_up(self, tensor):
            tensor.copy_(sent[0] + sent[1])

    gradient = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    total = sums[0].clone()
    reduce_together(Adds(0, 2, device=cpu), [gradient.copy_(gradients[0])], [total])
    assert torch.equal(gradient, gradients[0] + gradients[1])
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(total, sums[0] + sums[1], rtol=1e-13, atol=1e-6)
    with pytest.raises(AssertionError):  # float32 would not do
        torch.testing.assert_close((sums[0].float() + sums[1].float()).double(), total, rtol=1e-13, atol=1e-6)


# --- numbers that go wrong --------------------------------------------------------------------------------------------


def spoil(trainer: Trainer, phase_name: str, value: float) -> None:
    """Make a phase write a value into the gradient of its network's first parameter."""
    number = next(n for n, phase in enumerate(trainer.phases) if phase.name == phase_name)
    phase = trainer.phases[number]
    accumulate = phase.accumulate

    def spoiled(*arguments):
        accumulate(*arguments)
        next(phase.network.parameters()).grad.flatten()[:1] = value

    object.__setattr__(phase, "accumulate", spoiled)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_phase_with_a_bad_gradient_changes_nothing(tmp_path, archive, value):
    """Weights, moments, Adam's count of steps, and running means stay as they are; the other phases go on."""
    trainer = tiny_trainer(tmp_path, archive)
    trainer.step()
    before = {name: tensor.clone() for name, tensor in trainer.state.tensors().items()}
    trainer.state.statistics.collect()
    spoil(trainer, "Gmain", value)
    trainer.step()
    after = trainer.state.tensors()
    same = {name for name in before if torch.equal(before[name], after.get(name, before[name]))}
    of_generator = {name for name in before if name.startswith(("G.", "G_optimizer."))}
    # Dmain makes fakes too, so w_avg moves.
    assert of_generator - same == {"G.mapping.w_avg"}
    assert any(name.startswith("D.") for name in before.keys() - same)
    stats = trainer.state.statistics.collect()
    assert stats["Health/bad_steps/Gmain"].mean == 1 and stats["Health/bad_steps/Dmain"].mean == 0
    assert all(math.isfinite(moments.mean) for moments in stats.values())
    assert "Loss/G/loss" not in stats and "Loss/D/loss" in stats


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path, archive):
    trainer = tiny_trainer(tmp_path, archive)
    trainer.max_bad_steps = 3
    spoil(trainer, "Dmain", math.nan)
    trainer.step()
    trainer.step()
    assert trainer.state.bad_in_a_row == {"Gmain": 0, "Gpl": 0, "Dmain": 2, "Dr1": 0}
    with pytest.raises(Diverged) as raised:
        trainer.step()
    first = next(name for name, _ in trainer.state.discriminator.named_parameters())
    text = str(raised.value)
    assert all(word in text for word in ("Dmain", "3 times in a row", f"first in {first};", "Loss/D/loss")), text


def test_a_bad_gradient_of_one_process_is_bad_for_all(tmp_path, monkeypatch):
    """Two processes, here threads, of a conditional GAN: as one process in which the same part goes wrong."""
    data, here, sent = write_archive(tmp_path / "data.zip", labels=True), threading.Barrier(2, timeout=60), {}

    def add_up(self, tensor):
        sent[self.rank] = tensor.clone()
        if self.size == 2:
            here.wait()
            tensor.copy_(sent[0] + sent[1])
            here.wait()

    monkeypatch.setattr(World, "add_up", add_up)

    def make(rank, size):
        world = World(rank, size, device=torch.device("cpu"))
        return tiny_trainer(tmp_path, data, "stylegan2", cond=True, world=world, batch=12, batch_gpu=2, mbstd=2)

    def go(trainer, spoiled):
        for step in range(4):
            if spoiled and step == 2:
                spoil(trainer, "Dmain", math.nan)
            trainer.step()

    with double():
        alone, first, second = make(0, 1), make(0, 2), make(1, 2)
        threads = [threading.Thread(target=go, args=each) for each in ((first, False), (second, True))]
        for thread in threads:
            thread.start()
        go(alone, True)
        for thread in threads:
            thread.join()
    assert alone.state.bad_in_a_row == first.state.bad_in_a_row == second.state.bad_in_a_row
    assert alone.state.bad_in_a_row["Dmain"] == 2
    wanted, found, same = (trainer.state.tensors() for trainer in (alone, first, second))
    assert relative_difference(found, wanted) < 1e-12
    assert all(torch.equal(same[name], tensor) for name, tensor in found.items())


# --- two facts behind the design --------------------------------------------------------------------------------------


def test_fused_adam_needs_gradients_in_the_layout_of_their_weights():
    """Why reduced gradients are copied into .grad, and why loaded moments get the layout of their weights."""
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    gradient = torch.arange(24).reshape(2, 3, 2, 2).sin()

    def step(copied: bool, fused: bool) -> torch.Tensor:
        parameter = torch.nn.Parameter(weight.clone())
        parameter.grad = torch.empty_like(parameter).copy_(gradient) if copied else gradient.clone()
        torch.optim.Adam([parameter], lr=0.1, fused=fused).step()
        return parameter.detach()

    torch.testing.assert_close(step(copied=True, fused=True), step(copied=False, fused=False))
    assert (step(copied=False, fused=True) - step(copied=True, fused=True)).abs().max() > 0.1


def test_some_parameters_have_no_gradient_in_r1(tmp_path, archive):
    """Why it is not DistributedDataParallel: it waits for gradients that never come, of D's last bias in Dr1."""
    trainer = tiny_trainer(tmp_path, archive)
    names = {name for name, _ in trainer.state.discriminator.named_parameters()}
    assert names - gradients(trainer, "Dr1").keys() == {"b4.out.bias"}
    assert names == gradients(trainer, "Dmain").keys()
