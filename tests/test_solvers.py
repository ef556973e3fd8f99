import math
import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm_nb.convergence import flow_map
from ddpm_nb.denoiser import EPS, NetworkDenoiser, clipped
from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import GaussianMixture
from ddpm_nb.gaussian import Gaussian
from ddpm_nb.kernels import Multistep
from ddpm_nb.metrics import Moments
from ddpm_nb.pretrained import load_features, load_model
from ddpm_nb.sampling import DDIM, Ancestral, grid, last, walk
from ddpm_nb.schedule import NoiseSchedule, cosine_schedule, linear_schedule
from ddpm_nb.sde import PredictorCorrector, chain_sde
from ddpm_nb.solvers import SAMPLERS, DPMSolver2M, Heun, corrected

# diffusers turns its tables to NumPy in a way that NumPy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SOLVERS = {"heun": Heun, "2m": DPMSolver2M}
SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "coarse": lambda: linear_schedule(40, 0.01, 0.3)}


def network(x: Tensor, t: Tensor) -> Tensor:
    """Depends on x and on t, differently in each coordinate, so that no slip of index or level goes unseen."""
    steps = t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    ramp = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return torch.tanh(1.3 * x + ramp) * torch.cos(0.37 * steps) + 0.5 * torch.sin(0.61 * steps + ramp)


# Parity with the schedulers of diffusers, whose timestep i is our step i + 1.


def their(kind: str, schedule: NoiseSchedule, steps: int, spacing: str, **options):
    """A scheduler of diffusers on our schedule, with its noise levels in float64, its own tables being float32."""
    diffusers = pytest.importorskip("diffusers")
    t = torch.arange(1, schedule.T + 1)
    betas = schedule.beta(t).tolist()
    scheduler = getattr(diffusers, kind)(schedule.T, trained_betas=betas, timestep_spacing=spacing, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def levels(schedule: NoiseSchedule, times: list[int]) -> Tensor:
    """√((1 − ᾱ)/ᾱ) of the times."""
    return schedule.snr(torch.tensor(times)).rsqrt()


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest entry, and below 1e-10."""
    assert ours.dtype == theirs.dtype == torch.float64
    relative = ((ours - theirs).abs().max() / (1 + theirs.abs().max())).item()
    assert relative < 1e-10
    return relative


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("name", "steps", "spacing"),
    [("linear", 20, "trailing"), ("linear", 7, "linspace"), ("cosine", 12, "trailing"), ("coarse", 40, "trailing")],
)
def test_2m_is_the_multistep_scheduler(draw, record_property, name, steps, spacing, clip):
    schedule = SCHEDULES[name]()
    q = GaussianDiffusion(schedule)
    scheduler = their("DPMSolverMultistepScheduler", schedule, steps, spacing, lambda_min_clipped=-math.inf)
    times = [*(scheduler.timesteps + 1).tolist(), 0]
    assert spacing != "trailing" or times == grid(schedule.T, steps)
    scheduler.sigmas = levels(schedule, times)
    denoise = NetworkDenoiser(network, EPS, q)
    kernel = DPMSolver2M(q, clipped(denoise) if clip else denoise)
    x, estimates, worst = draw(2, 1, 3, 3), [], 0.0
    for i, (t, s) in enumerate(pairwise(times)):
        law, kernel = kernel.advance(x, s, t)
        # Their step casts the state to float32; the updates that it calls do not.
        signal, noise = schedule.alpha_bar(t).sqrt(), schedule.level(t).noise
        x_0 = (x - noise * network(x, torch.full((2,), t))) / signal
        estimates = [*estimates[-1:], x_0.clamp(-1, 1) if clip else x_0]
        scheduler._step_index = i
        if i in (0, steps - 1):
            expected = scheduler.dpm_solver_first_order_update(estimates[-1], sample=x)
        else:
            expected = scheduler.multistep_dpm_solver_second_order_update(estimates, sample=x)
        worst = max(worst, deviation(law.mean, expected))
        x = expected
    record_property("deviation", worst)


def test_their_scheduler_takes_the_orders_that_2m_takes(draw):
    # The whole step of the peer, casts and all: the first and the last of its steps are of first order, the others of
    # second. So this is only as near as float32, whose rounding a walk of twenty steps carries along.
    schedule = linear_schedule()
    q = GaussianDiffusion(schedule)
    scheduler = their("DPMSolverMultistepScheduler", schedule, 20, "trailing")
    x = x_T = draw(2, 1, 3, 3)
    for i in scheduler.timesteps:
        x = scheduler.step(network(x, torch.full((2,), int(i) + 1)), i, x).prev_sample
    ours = last(walk(DPMSolver2M(q, NetworkDenoiser(network, EPS, q)), x_T, grid(1000, 20))).x
    first_order = last(walk(DDIM(q, NetworkDenoiser(network, EPS, q)), x_T, grid(1000, 20))).x
    scale = x.abs().max()
    assert (ours - x).abs().max() < 1e-3 * scale < 0.1 * (first_order - x).abs().max()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("name", "steps", "spacing"),
    [("linear", 20, "trailing"), ("linear", 7, "linspace"), ("cosine", 12, "trailing"), ("coarse", 40, "trailing")],
)
def test_heun_is_the_heun_scheduler(draw, record_property, name, steps, spacing, clip):
    # It walks x/√ᾱ and is called twice for each step; both change the variables, not the numbers.
    schedule = SCHEDULES[name]()
    q = GaussianDiffusion(schedule)
    scheduler = their("HeunDiscreteScheduler", schedule, steps, spacing, clip_sample=clip)
    stops = (scheduler.timesteps + 1).long()  # the grid of seven has halves
    scheduler.timesteps = (stops - 1).float()
    times = [*dict.fromkeys(stops.tolist()), 0]
    assert spacing != "trailing" or times == grid(schedule.T, steps)
    sigma = levels(schedule, times)
    scheduler.sigmas = torch.cat([sigma[:1], sigma[1:-1].repeat_interleave(2), sigma[-1:]])
    denoise = NetworkDenoiser(network, EPS, q)
    kernel = Heun(q, clipped(denoise) if clip else denoise, leap=math.inf)  # theirs leaps
    x, worst = draw(2, 1, 3, 3), 0.0
    signal = schedule.alpha_bar(torch.tensor(times)).sqrt()
    calls = iter(scheduler.timesteps)
    for k, (t, s) in enumerate(pairwise(times)):
        rescaled = x / signal[k]
        for called in (t, s) if s else (t,):
            at = signal[times.index(called)]
            y = network(at * rescaled, torch.full((2,), called))
            rescaled = scheduler.step(y, next(calls), rescaled).prev_sample
        expected = signal[k + 1] * rescaled
        worst = max(worst, deviation(kernel(x, s, t).mean, expected))
        x = expected
    record_property("deviation", worst)


# Identities.


@pytest.mark.parametrize("name", SOLVERS)
def test_the_first_step_of_2m_and_the_last_of_both_are_that_of_ddim(schedule, draw, name):
    q, x_t = GaussianDiffusion(schedule), draw(3, 2)
    denoise = NetworkDenoiser(network, EPS, q)
    kernel = SOLVERS[name](q, denoise)
    for s, t in ((0, 1), (0, schedule.T), *([(1, 2), (1, schedule.T)] if name == "2m" else [])):
        law, expected = kernel(x_t, s, t), DDIM(q, denoise)(x_t, s, t)
        scale = 1 + expected.mean.abs().max().item()
        assert_close(law.mean, expected.mean, rtol=1e-9, atol=1e-12 * scale)
        assert torch.equal(law.sample(), law.mean)
    remembering = DPMSolver2M(q, denoise, (schedule.T, draw(3, 2, seed=1)))
    assert_close(remembering(x_t, 0, 2).mean, denoise(x_t, 2), rtol=1e-12, atol=1e-12)


def test_a_constant_estimate_is_a_straight_line_that_every_solver_follows(schedule, draw):
    # With x̂_0 fixed x − √ᾱ x̂_0 is proportional to √(1−ᾱ) along the flow: no scheme has an error.
    q, x_0, x_T = GaussianDiffusion(schedule), draw(3, 2), draw(3, 2, seed=1)
    times = [schedule.T, schedule.T // 2, 1]
    top, end = ((schedule.alpha_bar(t).sqrt() * x_0, schedule.level(t).noise) for t in (schedule.T, 1))
    expected = end[0] + end[1] / top[1] * (x_T - top[0])
    for solver in SOLVERS.values():
        found = last(walk(solver(q, lambda x_t, t: x_0), x_T, times)).x
        assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_walk_hands_the_memory_on_and_leaves_the_kernel_as_it_was(draw):
    q, x_T = GaussianDiffusion(linear_schedule(40, 0.01, 0.3)), draw(2, 3)
    kernel = DPMSolver2M(q, NetworkDenoiser(network, EPS, q))
    runs = [last(walk(kernel, x_T, grid(40, 8))).x for _ in range(2)]
    assert torch.equal(*runs)
    assert kernel.memory is None
    x, step = x_T, kernel
    for t, s in pairwise(grid(40, 8)):
        estimate = step.denoise(x, t)
        law, step = step.advance(x, s, t)
        assert step.memory[0] == t
        assert torch.equal(step.memory[1], estimate)
        x = law.mean
    assert torch.equal(x, runs[0])


class Counting(Multistep):
    """Adds 1, then 2, then 3: what a walk does with the successor of a kernel."""

    def __init__(self, number: float):
        self.number = number

    def advance(self, x_t, s, t):
        return Gaussian(x_t + self.number, 0.0), Counting(self.number + 1)


def test_any_kernel_may_have_a_memory(draw):
    x_T = draw(2, 3)
    assert_close(last(walk(Counting(1.0), x_T, [9, 5, 2, 0])).x, x_T + 6)
    assert torch.equal(Counting(4.0)(x_T, 0, 1).mean, x_T + 4)


# Orders.


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("2m", 2)])
def test_solvers_have_their_order_in_the_probability_flow(name, order):
    # For Gaussian data the flow is x_s = x_t √(V_s/V_t), V = 1 + (v − 1) ᾱ. Up to s > 0: at s = 0 a last step of first
    # order ends every walk.
    v, solver = 0.3, {"ddim": DDIM, **SOLVERS}[name]

    def error(T: int) -> float:
        q = GaussianDiffusion(NoiseSchedule(linear_schedule(1600, 6e-5, 0.0125).log_alpha_bars[:: 1600 // T]))
        kernel = solver(q, GaussianMixture([1.0], [[0.0]], [v]).denoiser(q))
        end = T // 10
        start = torch.ones(1, 1, dtype=torch.float64)
        found = last(walk(kernel, start, list(range(T, end - 1, -1)))).x.item()
        spread = [1 + (v - 1) * q.schedule.alpha_bar(t).item() for t in (T, end)]
        return abs(found - math.sqrt(spread[1] / spread[0]))

    coarse, fine = error(400), error(1600)
    assert abs(math.log(coarse / fine, 4) - order) < 0.07


def test_for_the_same_calls_of_the_denoiser_both_end_nearer_to_the_flow_than_ddim():
    law, q = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.05, 0.05]), GaussianDiffusion(linear_schedule())
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    right = flow_map(chain_sde(q.schedule), law, x_T, 1.0, 0.0)
    error = {
        name: (last(walk(solver(q, law.denoiser(q)), x_T, grid(1000, steps))).x - right).abs().mean().item()
        for name, solver, steps in (("ddim", DDIM, 80), ("heun", Heun, 40), ("2m", DPMSolver2M, 80))
    }
    assert error["heun"] < 0.85 * error["ddim"]
    assert error["2m"] < 0.25 * error["ddim"]


# Corrections.


def test_a_correction_moves_the_law_of_the_marginal_by_second_order_only():
    # Gaussian data: after the step x + ½ δ score + √δ z a variance V has become (1 − δ/2V)² V + δ = V + δ²/4V.
    q, v, s = GaussianDiffusion(linear_schedule(40, 0.01, 0.3)), 0.3, 12
    var = (q.schedule.alpha_bar(s) * v + q.schedule.level(s).noise_var).item()
    denoise = GaussianMixture([1.0], [[0.0]], [v]).denoiser(q)
    for ratio in (0.05, 0.2):
        kernel = corrected(lambda x_t, s, t: Gaussian(x_t, 0.0), q, denoise, ratio)
        step = kernel(torch.ones(1, 1, dtype=torch.float64), s, 40)
        law = step.move(torch.ones(1, 1, dtype=torch.float64))
        delta = ratio * q.schedule.level(s).noise_var
        assert law.mean.item() == pytest.approx(1 - delta / (2 * var), rel=1e-12)
        assert law.var.item() == pytest.approx(delta, rel=1e-12)
        assert law.mean.item() ** 2 * var + law.var.item() == pytest.approx(var + delta**2 / (4 * var), rel=1e-12)


def test_corrections_draw_a_wrong_predictor_towards_the_law(rng):
    # The predictor forgets all noise: ancestral means alone. Corrections at every level bring the spread back.
    law, q = GaussianMixture([1.0], [[0.5]], [0.3]), GaussianDiffusion(linear_schedule(100, 1e-3, 0.2))
    denoise = law.denoiser(q)

    def silent(x_t, s, t):
        return Gaussian(Ancestral(q, denoise)(x_t, s, t).mean, 0.0)

    x_T = torch.randn(4000, 1, generator=rng(1), dtype=torch.float64)
    spread = [
        last(walk(corrected(silent, q, denoise, 0.3, n), x_T, grid(100, 100), rng(2))).x.var().item() for n in (0, 1, 8)
    ]
    assert spread[0] < 0.01
    assert spread[0] < spread[1] < spread[2]
    assert 0.24 < spread[2] < 0.32


def test_no_correction_at_the_data_and_none_asked_is_the_predictor(draw, rng):
    q, x_t = GaussianDiffusion(linear_schedule(40, 0.01, 0.3)), draw(3, 2)
    predictor = Ancestral(q, NetworkDenoiser(network, EPS, q))
    assert torch.equal(corrected(predictor, q, predictor.denoise)(x_t, 0, 5).mean, predictor(x_t, 0, 5).mean)
    without = corrected(predictor, q, predictor.denoise, corrections=0)(x_t, 3, 5)
    assert torch.equal(without.sample(rng(0)), predictor(x_t, 3, 5).sample(rng(0)))


def test_draws_are_made_in_their_order(rng):
    # With score 2x and size 1 a correction draws N(x + x, 1).
    kernel = PredictorCorrector(lambda x, s, t: Gaussian(x, 1.0), lambda x, s: 2 * x, lambda s: 1.0, 2)
    generator = rng(0)
    z = [torch.randn(2, 3, generator=generator) for _ in range(3)]
    assert_close(kernel(torch.zeros(2, 3), 1, 2).sample(rng(0)), 4 * z[0] + 2 * z[1] + z[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_refuses_a_denoiser_of_another_process(name):
    ours, theirs = GaussianDiffusion(linear_schedule(40, 0.01, 0.3)), GaussianDiffusion(linear_schedule(40, 0.01, 0.2))
    denoise = NetworkDenoiser(network, EPS, ours)
    SAMPLERS[name](ours, clipped(denoise))
    for wrong in (denoise, clipped(denoise)):
        with pytest.raises(ValueError, match="expected the denoiser's own q"):
            SAMPLERS[name](theirs, wrong)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"ratio": 0.0}, ValueError, r"ratio = 0\.0: expected a positive number"),
        ({"ratio": math.nan}, ValueError, "ratio = nan: expected a positive number"),
        ({"corrections": -1}, ValueError, "corrections = -1: expected a whole number of at least 0"),
        ({"corrections": 1.5}, TypeError, "corrections = 1.5: expected a whole number"),
    ],
)
def test_errors_name_the_argument(options, kind, message):
    q = GaussianDiffusion(linear_schedule(5))
    with pytest.raises(kind, match=message):
        corrected(DDIM(q, network), q, network, **options)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_walks_keep_the_dtype(draw, name, dtype):
    q = GaussianDiffusion(linear_schedule(10, 0.01, 0.3))
    x = draw(2, 3, dtype=dtype)
    found = last(walk(SOLVERS[name](q, clipped(NetworkDenoiser(network, EPS, q))), x, grid(10, 5))).x
    wide = last(walk(SOLVERS[name](q, clipped(NetworkDenoiser(network, EPS, q))), x.double(), grid(10, 5))).x
    assert found.dtype == dtype
    assert_close(found.double(), wide, rtol=1e-5, atol=1e-5)


# What a walk costs beside the network.

EVERY = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "ddim, eta 1": lambda q, denoise: DDIM(q, denoise, 1.0),
    "corrected": lambda q, denoise: corrected(Ancestral(q, denoise), q, denoise),
    **SOLVERS,
}


@pytest.mark.parametrize("limit", [lambda denoise: denoise, clipped], ids=["plain", "clipped"])
@pytest.mark.parametrize("name", EVERY)
def test_no_step_reads_the_state_back(name, limit):
    # A tensor on the meta device has no values: whatever would make the host wait for a GPU is an error there.
    q = GaussianDiffusion(linear_schedule())
    denoise = limit(NetworkDenoiser(lambda x, t: torch.tanh(x) * t.reshape(-1, 1), EPS, q))
    x = last(walk(EVERY[name](q, denoise), torch.zeros(2, 3, device="meta"), grid(1000, 5))).x
    assert x.device.type == "meta"
    assert x.shape == (2, 3)


@pytest.mark.parametrize("name", EVERY)
def test_memory_does_not_grow_with_the_steps(name, draw):
    q = GaussianDiffusion(linear_schedule())
    alive, most = [], 0
    for state in walk(EVERY[name](q, NetworkDenoiser(network, EPS, q)), draw(2, 3), grid(1000, 40)):
        alive = [seen for seen in alive if seen() is not None] + [weakref.ref(state.x)]
        most = max(most, len(alive))
    assert most <= 2  # the state, and the one before until it is replaced


def test_a_leap_through_noise_is_worse_with_a_look_ahead_even_where_the_denoiser_is_exact():
    # Data N(0, v): the flow takes x_t to √(v + σ̃_s²)/√(v + σ̃_t²) of it, in units where the signal is 1.
    v = torch.tensor([[0.25]], dtype=torch.float64)
    law = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), v)
    x = torch.ones(1, 1, dtype=torch.float64)

    def errors(sigma_s, sigma_t):
        table = [-math.log1p(sigma**2) for sigma in (0.0, sigma_s, sigma_t)]
        q = GaussianDiffusion(NoiseSchedule(torch.tensor(table, dtype=torch.float64)))
        before, here = q.schedule.levels(1, 2)
        exact = before.signal / here.signal * math.sqrt((0.25 + sigma_s**2) / (0.25 + sigma_t**2))
        kernels = {"DDIM": DDIM(q, law.denoiser(q))}
        kernels |= {name: Heun(q, law.denoiser(q), leap) for name, leap in (("plain", math.inf), ("guarded", 2.2))}
        return {name: abs(kernel(x, 1, 2).mean.item() - exact) for name, kernel in kernels.items()}

    for sigma_s, ratio in ((6.3, 3000.0), (2.0, 10.0), (30.0, 5.0)):
        found = errors(sigma_s, sigma_s * ratio)
        assert found["guarded"] == pytest.approx(found["DDIM"], rel=1e-6) and found["DDIM"] < found["plain"]
    for sigma_s, ratio in ((6.3, 1.5), (0.3, 3.0), (0.1, 10.0)):  # no leap, or little noise: the look ahead helps
        found = errors(sigma_s, sigma_s * ratio)
        assert found["guarded"] == found["plain"] < found["DDIM"]
    with pytest.raises(ValueError, match="leap = 1"):
        Heun(GaussianDiffusion(linear_schedule()), lambda x, t: x, leap=1)


def test_at_the_clipped_end_of_the_cosine_schedule_heun_keeps_its_head():
    model, space = load_model("digits"), load_features("digits")
    x_T = torch.randn(200, *model.event, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, kernel, steps in (
        ("DDIM", DDIM(model.q, clipped(model.denoiser)), 20),
        ("plain", Heun(model.q, clipped(model.denoiser), math.inf), 10),
        ("guarded", Heun(model.q, clipped(model.denoiser)), 10),
    ):
        images = last(walk(kernel, x_T, grid(1000, steps))).x.clamp(-1, 1)
        found[name] = Moments.of(space(images)).frechet_distance(space.test)
    assert found["plain"] > 10 * found["DDIM"]
    assert found["guarded"] < 1.5 * found["DDIM"]
