import copy
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from ddpm_nb.bound import simple_loss
from ddpm_nb.checkpoint import load_checkpoint, save_checkpoint
from ddpm_nb.denoiser import EPS, X0, NetworkDenoiser, V
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.nets import MLP
from ddpm_nb.schedule import linear_schedule
from ddpm_nb.training import Ema, Objective, Plan, batch_of_step, constant_rate, half_life_decay, train, warmup_rate

T = 20


@pytest.fixture(scope="module")
def q():
    return GaussianDiffusion(linear_schedule(T, 0.01, 0.4))


@pytest.fixture(scope="module")
def objective(q):
    return Objective(q)


@pytest.fixture
def data(draw):
    return draw(200, 2, dtype=torch.float32)


def fresh(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(d=2, width=32, depth=2)
    return network, torch.optim.AdamW(network.parameters(), lr=1.0)  # the rate is set by train


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


PLAN = Plan(steps=12, batch_size=16, seed=3, rate=warmup_rate(3e-3, 4, 12))


def test_the_same_seed_gives_the_same_weights(objective, data):
    runs = []
    for seed in (3, 3, 4):
        network, optimizer = fresh()
        losses = [step.loss for step in train(network, optimizer, objective, data, replace(PLAN, seed=seed))]
        runs.append(weights(network) + losses)
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(objective, data, tmp_path, cut):
    network, optimizer = fresh()
    ema = Ema(network, 0.9)
    for _ in train(network, optimizer, objective, data, PLAN):
        ema.update(network)

    path = tmp_path / "run.safetensors"
    other, other_optimizer = fresh()
    other_ema = Ema(other, 0.9)
    for step in train(other, other_optimizer, objective, data, PLAN):
        other_ema.update(other)
        if step.number == cut:
            state = {"network": other.state_dict(), "optimizer": other_optimizer.state_dict()}
            save_checkpoint(path, {"step": step.number, "ema": other_ema.state_dict(), **state})
            break

    state = load_checkpoint(path)
    resumed, resumed_optimizer = fresh(seed=99)  # nothing may survive but the file
    resumed_ema = Ema(resumed, 0.9)
    torch.manual_seed(12345)
    resumed.load_state_dict(state["network"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed_ema.load_state_dict(state["ema"])
    numbers = []
    for step in train(resumed, resumed_optimizer, objective, data, PLAN, state["step"]):
        resumed_ema.update(resumed)
        numbers.append(step.number)
    assert numbers == list(range(cut + 1, 13))
    assert equal(weights(resumed), weights(network))
    assert equal(weights(resumed_ema.network), weights(ema.network))
    moments = [
        [s[k] for s in o.state_dict()["state"].values() for k in sorted(s)] for o in (optimizer, resumed_optimizer)
    ]
    assert equal(*moments)


def test_the_loss_tends_to_the_floor_of_an_exactly_solvable_law(objective, q, rng):
    # For data N(0, v): Var(ε | x_t) = ᾱ v / (ᾱ v + 1 − ᾱ) cannot be predicted, and E[ε | x_t] is linear in x_t.
    v, seed = 0.25, 0
    sample = math.sqrt(v) * torch.randn(20_000, 2, generator=rng(1))
    t = torch.arange(1, T + 1)
    alpha_bar = q.schedule.alpha_bar(t)
    floor = (alpha_bar * v / (alpha_bar * v + 1 - alpha_bar)).mean().item()
    slope = ((1 - alpha_bar).sqrt() / (alpha_bar * v + 1 - alpha_bar)).float()

    network, optimizer = fresh()
    losses = torch.stack(
        [
            s.loss
            for s in train(network, optimizer, objective, sample, Plan(1500, 256, warmup_rate(5e-3, 50, 1500), seed))
        ]
    )
    steps = torch.randint(1, T + 1, (20_000,), generator=rng(2))
    x_t = q.marginal(sample, steps).sample(rng(3))
    with torch.no_grad():
        excess = (network(x_t, steps) - slope[steps - 1, None] * x_t).square().mean().item()
    blind = (slope[steps - 1, None] * x_t).square().mean().item()
    assert excess < 0.02 * blind
    tail = losses[-400:]
    assert abs(tail.mean().item() - floor) < excess + 4 * tail.std().item() / math.sqrt(400)
    assert losses[:3].mean() > floor + 0.8 * blind


def test_training_other_targets_minimizes_their_loss(objective, q, data):
    for p in (EPS, X0, V):
        network, optimizer = fresh()
        step = next(train(network, optimizer, Objective(q, p), data, PLAN))
        x_0, t, eps = batch_of_step(objective, PLAN, data, 0)
        expected = simple_loss(q, fresh()[0], x_0, t, eps, p).mean() / 2
        assert step.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert step.number == 1


def test_the_first_step_is_plain_gradient_descent(objective, q, data):
    network, _ = fresh()
    reference = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=123.0)
    plan = replace(PLAN, rate=constant_rate(0.1), max_grad_norm=0.05)
    next(train(network, optimizer, objective, data, plan))
    x_0, t, eps = batch_of_step(objective, PLAN, data, 0)
    (simple_loss(q, reference, x_0, t, eps).mean() / 2).backward()
    norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
    assert norm > 0.05  # so that the gradient is shortened
    for ours, theirs in zip(network.parameters(), reference.parameters()):
        expected = theirs - 0.1 * theirs.grad * 0.05 / norm
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-8)


def test_the_rate_of_each_step_reaches_the_optimizer(objective, data):
    network, optimizer = fresh()
    rates = [optimizer.param_groups[0]["lr"] for _ in train(network, optimizer, objective, data, PLAN)]
    assert rates == [PLAN.rate(i) for i in range(12)]


def test_rates():
    rate = warmup_rate(2.0, 4, 20)
    assert [rate(i) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(4) == 2.0
    assert rate(12) == pytest.approx(1.0, rel=1e-12)
    assert rate(20) == pytest.approx(0.0, abs=1e-12)
    assert warmup_rate(2.0, 0, 20)(0) == 2.0
    assert constant_rate(0.3)(77) == 0.3
    with pytest.raises(ValueError, match="warmup = 20: expected fewer steps than steps = 20"):
        warmup_rate(1.0, 20, 20)


class Half:
    """One of two processes, as accelerate would present it; keeps its gradients and takes no step of its own."""

    num_processes = 2
    mixed_precision = "no"

    def __init__(self, process_index: int):
        self.process_index = process_index

    def backward(self, loss):
        loss.backward()

    def clip_grad_norm_(self, parameters, norm):
        self.gradients = [p.grad.clone() for p in parameters]
        return torch.zeros(())

    def reduce(self, loss, kind):
        assert kind == "mean"
        return loss


class Whole(Half):
    num_processes = 1


def test_processes_share_one_batch(objective, data):
    found = []
    for accelerator in (Half(0), Half(1), Whole(0)):
        network, optimizer = fresh()
        optimizer = torch.optim.SGD(network.parameters())
        step = next(train(network, optimizer, objective, data, PLAN, accelerator=accelerator))
        found.append((step.loss, accelerator.gradients))
    (loss_a, a), (loss_b, b), (loss, whole) = found
    assert not equal(a, b)
    assert loss.item() == pytest.approx((loss_a.item() + loss_b.item()) / 2, rel=1e-6)
    for one, two, both in zip(a, b, whole):
        assert torch.allclose((one + two) / 2, both, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="batch_size = 15: expected a multiple of 2, for 2 process"):
        train(*fresh(), objective, data, replace(PLAN, batch_size=15), accelerator=Half(0))


def test_a_batch_is_a_function_of_seed_and_step(objective, data):
    torch.manual_seed(0)
    x_0, t, eps = batch_of_step(objective, PLAN, data, 5)
    torch.manual_seed(1)
    assert all(map(torch.equal, batch_of_step(objective, PLAN, data, 5), (x_0, t, eps)))
    others = [
        batch_of_step(objective, replace(PLAN, seed=seed), data, number)
        for number, seed in ((6, 3), (5, 4), (3, 5), (0, 3))
    ]
    for other in others:
        assert not any(map(torch.equal, other, (x_0, t, eps)))
    assert all(any(torch.equal(row, image) for image in data) for row in x_0)
    assert eps.dtype == data.dtype
    assert batch_of_step(objective, PLAN, data.double(), 5)[2].dtype == torch.float64


def test_steps_are_uniform_from_1_to_T_and_noise_is_normal(objective, data):
    n = 40_000
    x_0, t, eps = batch_of_step(objective, replace(PLAN, batch_size=n, seed=0), data, 0)
    counts = t.bincount(minlength=T + 1)
    assert len(counts) == T + 1
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    assert stats.kstest(eps[:, 0].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(eps[:, 1].numpy(), "norm").pvalue > 1e-3
    first = (x_0[:, None, :] == data[:3]).all(2).sum(0)  # every image is drawn equally often
    assert ((first - n / 200).abs() < 5 * math.sqrt(n / 200)).all()
    for other in (t.double(), x_0[:, 0].double()):  # no dependence between the three
        assert abs(torch.corrcoef(torch.stack([other, eps[:, 0].double()]))[0, 1]) < 4 / math.sqrt(n)


def test_ema_is_the_weighted_sum_of_its_history():
    network = nn.Linear(3, 2)
    ema = Ema(network, decay=0.5)
    history = [network.weight.detach().double().clone()]
    for _ in range(15):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        ema.update(network)
        history.append(network.weight.detach().double().clone())
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 16)]
    assert decays[0] < decays[6] < decays[7] == 0.5
    expected = history[0] * math.prod(decays)
    for k in range(15):
        expected = expected + (1 - decays[k]) * math.prod(decays[k + 1 :]) * history[k + 1]
    assert torch.allclose(ema.network.weight.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("half_life", "batch_size"), [(64, 64), (640, 64), (640, 160)])
def test_an_average_forgets_half_within_its_half_life(half_life, batch_size):
    network = nn.Linear(1, 1).requires_grad_(False)
    ema = Ema(network, half_life_decay(half_life, batch_size))
    ema.updates = 10**6  # far beyond the phase in which the decay is held down
    before = ema.network.weight.clone()
    network.weight.add_(1.0)
    for _ in range(half_life // batch_size):
        ema.update(network)
    torch.testing.assert_close(ema.network.weight, before + 0.5, rtol=0, atol=1e-6)


def test_ema_is_a_copy_that_is_never_trained():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(network, 0.9)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert network.training
    before = [p.clone() for p in ema.network.parameters()]
    network(torch.randn(8, 2) + 5)
    assert equal(before, list(ema.network.parameters()))
    ema.update(network)
    assert torch.equal(ema.network[1].running_mean, network[1].running_mean)  # buffers are copied, not averaged
    assert ema.network[1].num_batches_tracked == 1
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"decay = {decay}: expected a number from 0"):
            Ema(network, decay)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(objective, data):
    network, optimizer = fresh()
    steps = train(network, optimizer, objective, data, PLAN)
    for _ in range(4):
        next(steps)
    before, state = weights(network), copy.deepcopy(optimizer.state_dict()["state"])
    with torch.no_grad():
        network.outward.bias.fill_(math.inf)
    before[-1] = network.outward.bias.detach().clone()
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) at step 4 with learning rate 0\.003; expected a finite"
    ):
        next(steps)
    assert equal(weights(network), before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(state[i][k], after[i][k]) for i in state for k in state[i])


def test_a_step_comes_after_its_update_and_outside_any_grad_mode(objective, data):
    network, optimizer = fresh()
    before = weights(network)
    for step in train(network, optimizer, objective, data, replace(PLAN, steps=1)):
        assert not equal(weights(network), before)
        assert torch.is_grad_enabled()
        assert not step.loss.requires_grad
        assert network.training


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"steps": 0}, ValueError, "steps = 0: expected a whole number of at least 1"),
        ({"steps": 10.0}, TypeError, "steps = 10.0: expected a whole number, got float"),
        ({"batch_size": 0}, ValueError, "batch_size = 0: expected a whole number of at least 1"),
        ({"seed": -1}, ValueError, "seed = -1: expected a whole number of at least 0"),
        ({"seed": 2**32}, ValueError, r"seed = 4294967296: expected less than 2.32"),
        ({"microbatches": 0}, ValueError, "microbatches = 0: expected a whole number of at least 1"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm = 0.0: expected a positive number"),
    ],
)
def test_wrong_numbers_are_refused_by_the_plan(change, kind, message):
    with pytest.raises(kind, match=message):
        replace(PLAN, **change)


def test_a_wrong_start_or_data_are_refused_before_any_work(objective, data):
    for start, message in (
        (13, "start = 13: expected at most steps = 12"),
        (-1, "start = -1: expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*fresh(), objective, data, PLAN, start)  # not even asked for a first step
    for wrong in (data.long(), data[:0]):
        with pytest.raises(TypeError, match=r"data of shape .*expected floats or uint8, at least one row"):
            train(*fresh(), objective, wrong, PLAN)


def test_a_trained_network_denoises(q, data):
    # The network learns at the steps it is asked at: index and level agree between training and sampling.
    network, optimizer = fresh()
    for _ in train(
        network,
        optimizer,
        Objective(q),
        torch.full((8, 2), 0.5),
        Plan(600, 64, warmup_rate(5e-3, 20, 600)),
    ):
        pass
    denoise = NetworkDenoiser(network, EPS, q)
    for t in (2, 5, 10, 15):
        x_t = q.diffuse(torch.full((500, 2), 0.5), torch.randn(500, 2, generator=torch.Generator().manual_seed(t)), t)
        with torch.no_grad():
            error = (denoise(x_t, t) - 0.5).square().mean().sqrt()
            at_neighbour = (
                (NetworkDenoiser(lambda x, t: network(x, t + 3), EPS, q)(x_t, t) - 0.5).square().mean().sqrt()
            )
        assert error < 0.15
        assert at_neighbour > 1.5 * error
