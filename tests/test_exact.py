import math

import pytest
import torch
from scipy import integrate, stats
from torch import distributions
from torch.testing import assert_close

from ddpm_nb.diffusion import GaussianDiffusion
from ddpm_nb.exact import CorrelatedGaussian, GaussianMixture, empirical, expectation
from ddpm_nb.gaussian import conditional
from ddpm_nb.schedule import linear_schedule

STEPS = [1, 2, 10, 20]
LINE = GaussianMixture([0.2, 0.5, 0.3], [[-1.0], [0.3], [1.2]], [0.04, 0.3, 0.01])
PLANE = GaussianMixture([1.0, 3.0], [[-1.0, 0.5], [0.7, -0.2]], [0.05, 0.4])
UNEVEN = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.7, -0.2]], [[0.05, 0.3], [0.4, 0.02]])
LAWS = {"line": LINE, "plane": PLANE, "uneven": UNEVEN}


@pytest.fixture(scope="module")
def q():
    return GaussianDiffusion(linear_schedule(20, 0.02, 0.5))


@pytest.fixture(params=LAWS, scope="module")
def law(request):
    return LAWS[request.param]


def oracle(law: GaussianMixture) -> distributions.Distribution:
    scale = law.variances.reshape(len(law.weights), -1).sqrt().expand_as(law.means)
    parts = distributions.Independent(distributions.Normal(law.means, scale), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(law.weights), parts)


def density(law: GaussianMixture, x: float) -> float:
    """Density of a law on the line, written out."""
    return sum(
        w * math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        for w, (m,), v in zip(law.weights.tolist(), law.means.tolist(), law.variances.tolist())
    )


def normal(x: float, mean: float, var: float) -> float:
    return math.exp(-((x - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)


def levels(q: GaussianDiffusion, t: int) -> tuple[float, float]:
    """ᾱ_t and 1 − ᾱ_t from the betas."""
    alpha_bar = math.prod(1 - (0.02 + 0.48 * i / 19) for i in range(t))
    return alpha_bar, 1 - alpha_bar


def integral(f, points=(-1.0, 0.3, 1.2)) -> float:
    value, _ = integrate.quad(f, -6, 6, points=points, epsabs=1e-14, epsrel=1e-12, limit=400)
    return value


def test_density_is_that_of_torch_distributions(law, draw):
    x = draw(50, law.means.shape[1])
    assert_close(law.log_prob(x), oracle(law).log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", STEPS)
def test_the_diffused_law_is_the_law_pushed_through_the_marginal_kernel(q, t):
    alpha_bar, noise = levels(q, t)
    for x_t in (-1.3, 0.0, 0.9):
        peak = x_t / math.sqrt(alpha_bar)
        expected = integral(
            lambda x_0, x_t=x_t: density(LINE, x_0) * normal(x_t, math.sqrt(alpha_bar) * x_0, noise),
            points=(-1.0, 0.3, 1.2, max(-5.9, min(5.9, peak))),
        )
        ours = LINE.diffused(q, t).log_prob(torch.tensor([[x_t]], dtype=torch.float64)).exp().item()
        assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t", STEPS)
def test_the_denoiser_is_the_posterior_mean_by_quadrature(q, t):
    alpha_bar, noise = levels(q, t)
    for x_t in (-1.3, 0.0, 0.9):
        points = (-1.0, 0.3, 1.2, max(-5.9, min(5.9, x_t / math.sqrt(alpha_bar))))

        def joint(x_0, x_t=x_t):
            return density(LINE, x_0) * normal(x_t, math.sqrt(alpha_bar) * x_0, noise)

        expected = integral(lambda x_0: x_0 * joint(x_0), points) / integral(joint, points)
        ours = LINE.denoiser(q)(torch.tensor([[x_t]], dtype=torch.float64), t).item()
        assert ours == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("name", ["plane", "uneven"])
def test_the_denoiser_is_bayes_rule_on_a_grid(q, draw, name, t):
    law, (alpha_bar, noise) = LAWS[name], levels(q, t)
    side = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    prior = oracle(law).log_prob(grid)
    x_t = draw(3, 2, seed=t)
    shift = x_t[:, None, :] - math.sqrt(alpha_bar) * grid
    posterior = (prior - shift.square().sum(2) / (2 * noise)).softmax(1)
    assert_close(law.denoiser(q)(x_t, t), posterior @ grid, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", STEPS)
def test_the_score_is_the_gradient_of_the_log_density(q, law, draw, t):
    x_t = draw(20, law.means.shape[1], seed=t).requires_grad_()
    log_prob = oracle(law.diffused(q, t)).log_prob(x_t).sum()
    (gradient,) = torch.autograd.grad(log_prob, x_t)
    assert_close(law.score(q, x_t.detach(), t), gradient, rtol=1e-11, atol=1e-11)


def test_the_best_denoiser_has_errors_uncorrelated_with_every_function_of_x_t(q, rng):
    n, t = 40_000, 5
    x_0 = PLANE.sample(n, rng(0))
    x_t = q.marginal(x_0, t).sample(rng(1))
    error = x_0 - PLANE.denoiser(q)(x_t, t)
    for function in (torch.ones_like(x_t), x_t, x_t.flip(1), x_t.square(), x_t.sin()):
        product = error * function
        assert (product.mean(0).abs() < 4 * product.std(0) / math.sqrt(n)).all()


def test_the_reverse_kernel_is_bayes_rule_on_the_diffused_laws(q, law, draw):
    d = law.means.shape[1]
    for s, t in ((0, 1), (1, 2), (3, 15), (19, 20)):
        x_t, x_s = draw(d, seed=t), draw(10, d, seed=s)
        ahead = q.transition(x_s, s, t).log_prob(x_t)
        expected = law.diffused(q, s).log_prob(x_s) + ahead - law.diffused(q, t).log_prob(x_t[None])
        assert_close(law.reverse_kernel(q, x_t, s, t).log_prob(x_s), expected, rtol=1e-10, atol=1e-10)


def test_moments_of_samples(law, rng):
    n = 40_000
    x = law.sample(n, rng(0))
    centred = x - law.mean()
    assert (centred.mean(0).abs() < 4 * x.std(0) / math.sqrt(n)).all()
    products = centred[:, :, None] * centred[:, None, :]
    assert ((products.mean(0) - law.covariance()).abs() < 4 * products.std(0) / math.sqrt(n)).all()


def test_samples_on_the_line_follow_the_distribution_function(rng):
    weights, means, sds = LINE.weights.tolist(), LINE.means[:, 0].tolist(), LINE.variances.sqrt().tolist()

    def cdf(x):
        return sum(w * stats.norm.cdf(x, m, s) for w, m, s in zip(weights, means, sds))

    assert stats.kstest(LINE.sample(20_000, rng(0))[:, 0].numpy(), cdf).pvalue > 1e-3
    wrong = GaussianMixture(LINE.weights, LINE.means, LINE.variances.sqrt()).sample(20_000, rng(0))
    assert stats.kstest(wrong[:, 0].numpy(), cdf).pvalue < 1e-12  # the test sees variances taken for deviations


def test_covariance_of_the_diffused_law(q, law):
    identity = torch.eye(law.means.shape[1], dtype=torch.float64)
    for t in STEPS:
        alpha_bar, noise = levels(q, t)
        expected = alpha_bar * law.covariance() + noise * identity
        assert_close(law.diffused(q, t).covariance(), expected, rtol=1e-12, atol=1e-12)
        assert_close(law.diffused(q, t).mean(), math.sqrt(alpha_bar) * law.mean(), rtol=1e-12, atol=1e-12)


def test_limits_of_the_denoiser(q, draw):
    x = draw(5, 2)
    # Nearly no noise: the observation itself. One part alone: the linear rule of Gaussian conditioning.
    assert_close(PLANE.denoiser(GaussianDiffusion(linear_schedule(1, 1e-12)))(x, 1), x, rtol=1e-9, atol=1e-9)
    single = GaussianMixture([1.0], [[0.5, -1.0]], [0.3])
    alpha_bar, noise = levels(q, 7)
    mean = math.sqrt(alpha_bar) * single.means
    expected = single.means + math.sqrt(alpha_bar) * 0.3 / (alpha_bar * 0.3 + noise) * (x - mean)
    assert_close(single.denoiser(q)(x, 7), expected, rtol=1e-12, atol=1e-12)


def test_lists_keep_all_their_digits():
    assert LINE.variances[0].item() == 0.04  # not the nearest float32
    assert LINE.means[2, 0].item() == 1.2
    assert PLANE.weights.tolist() == [0.25, 0.75]  # normalized


def test_far_away_the_score_points_home(q):
    x = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    var = PLANE.diffused(q, 10).variances.max()
    expected = (PLANE.diffused(q, 10).means[1] - x) / var  # the widest part is all that is left
    assert_close(PLANE.score(q, x, 10), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_for_each_sample_gives_what_each_int_gives(q, law, draw, dtype):
    t = torch.tensor([1, 20, 7, 2])
    x = draw(4, law.means.shape[1], dtype=dtype)
    denoise = law.denoiser(q)
    for f in (denoise, lambda x_t, t: law.score(q, x_t, t)):
        together = f(x, t)
        each = torch.cat([f(x[i : i + 1], int(t[i])) for i in range(4)])
        assert together.dtype == dtype
        assert_close(together, each, rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)
    assert law.log_prob(x).dtype == dtype


def test_events_of_any_shape(q, draw):
    law = GaussianMixture([0.3, 0.7], draw(2, 4), [0.2, 0.5])
    x = draw(3, 1, 2, 2, seed=1)
    assert torch.equal(law.denoiser(q)(x, 5), law.denoiser(q)(x.flatten(1), 5).reshape(x.shape))
    assert torch.equal(law.score(q, x, 5), law.score(q, x.flatten(1), 5).reshape(x.shape))
    assert torch.equal(law.log_prob(x), law.log_prob(x.flatten(1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [[0.0], [1.0]], [1.0, 1.0]), r"weights \(1,\), means \(2, 1\), variances \(2,\)"),
        (([1.0, 1.0], [[0.0], [1.0]], [1.0]), r"variances \(1,\): expected \(k,\), \(k, d\) and"),
        (([1.0, 1.0], [0.0, 1.0], [1.0, 1.0]), r"means \(2,\)"),
        (([1.0, 0.0], [[0.0], [1.0]], [1.0, 1.0]), r"weights: expected positive numbers, the smallest is 0\.0"),
        (([1.0, 1.0], [[0.0], [1.0]], [1.0, -2.0]), r"variances: expected numbers of at least 0, the smallest is -2"),
    ],
)
def test_errors_name_argument_and_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_data_of_another_dimension_are_refused(q, draw):
    with pytest.raises(ValueError, match=r"x of shape \(4, 3\): expected \(batch, 2\)"):
        PLANE.denoiser(q)(draw(4, 3), 1)


# --- entropies --------------------------------------------------------------------------------------------------


def test_the_entropy_on_the_line_is_the_integral_of_minus_q_log_q(q):
    for law in (LINE, LINE.diffused(q, 3), LINE.diffused(q, 15)):
        exact = integral(lambda x, law=law: -density(law, x) * math.log(density(law, x)))
        assert law.entropy(200).item() == pytest.approx(exact, abs=1e-4)
    assert LINE.entropy(200).item() != pytest.approx(LINE.diffused(q, 3).entropy(200).item(), abs=0.1)


@pytest.mark.parametrize("law", [PLANE, UNEVEN], ids=["plane", "uneven"])
def test_the_entropy_in_the_plane_is_a_sum_over_a_fine_grid(law):
    side = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    log_q = oracle(law).log_prob(torch.cartesian_prod(side, side))
    exact = -(log_q.exp() * log_q).sum().item() * 0.01**2
    assert law.entropy(96).item() == pytest.approx(exact, abs=2e-4)


def test_expectations_in_the_plane_are_moments(draw):
    value = expectation(UNEVEN, lambda x: x[:, 0] ** 2 * x[:, 1], 8)
    w, (m, n), (v, _) = UNEVEN.weights, UNEVEN.means.mT, UNEVEN.variances.mT
    assert_close(value, (w * (m**2 + v) * n).sum(), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="means of 4 coordinates: expected at most 3"):
        GaussianMixture([1.0], draw(1, 4), [1.0]).entropy()


# --- a finite set of data ---------------------------------------------------------------------------------------


def test_the_diffused_empirical_law_is_one_kernel_per_point(q, draw):
    x_0, x = draw(6, 3), draw(20, 3, seed=1)
    law = empirical(x_0)
    assert_close(law.sample(500).unique(dim=0), x_0.unique(dim=0), rtol=0, atol=0)
    for t in STEPS:
        kernels = torch.stack([q.marginal(point[None], t).log_prob(x) for point in x_0])
        assert_close(law.diffused(q, t).log_prob(x), kernels.logsumexp(0) - math.log(6), rtol=1e-12, atol=1e-12)
        # E[x_0 | x_t] by Bayes' rule over the six points.
        assert_close(law.denoiser(q)(x, t), kernels.mT.softmax(1) @ x_0, rtol=1e-12, atol=1e-12)
        assert_close(law.score(q, x, t), law.diffused(q, t).grad_log_prob(x), rtol=1e-10, atol=1e-10)


def test_the_reverse_kernel_of_a_finite_set_ends_on_its_points(q, draw):
    x_0, x_t = draw(5, 2), draw(2, seed=3)
    kernel = empirical(x_0).reverse_kernel(q, x_t, 0, 20)
    assert_close(kernel.means, x_0, rtol=1e-12, atol=1e-12)
    assert not kernel.variances.any()
    assert_close(kernel.mean()[None], empirical(x_0).denoiser(q)(x_t[None], 20), rtol=1e-12, atol=1e-12)
    step = empirical(x_0).reverse_kernel(q, x_t, 3, 20)  # each part is the posterior given its point
    posterior = q.posterior(x_0, x_t.expand(5, 2), 3, 20)
    assert_close(step.means, posterior.mean, rtol=1e-12, atol=1e-12)
    assert_close(step.variances, posterior.var.expand(5), rtol=1e-12, atol=0)


def test_images_are_points_and_a_point_has_no_density(q, draw):
    images = draw(4, 1, 2, 2)
    law = empirical(images)
    assert law.denoiser(q)(images, 5).shape == images.shape
    for call in (lambda: law.log_prob(images), lambda: law.denoiser(q)(images, 0)):
        with pytest.raises(ValueError, match="an atom has no density; diffuse the law to a step t of at least 1"):
            call()


# --- many correlated coordinates --------------------------------------------------------------------------------


def correlated(d: int, seed: int = 0) -> tuple[CorrelatedGaussian, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=torch.float64, generator=generator) / math.sqrt(d)
    mean, cov = (
        torch.randn(d, dtype=torch.float64, generator=generator),
        root @ root.mT + 0.05 * torch.eye(d, dtype=torch.float64),
    )
    return CorrelatedGaussian.of(mean, cov), mean, cov


def test_a_correlated_gaussian_is_that_of_torch_distributions(draw):
    law, mean, cov = correlated(6)
    expected, x = distributions.MultivariateNormal(mean, cov), draw(30, 6)
    assert_close(law.covariance(), cov, rtol=1e-12, atol=1e-12)
    assert_close(law.log_prob(x), expected.log_prob(x), rtol=1e-11, atol=1e-11)
    assert_close(law.entropy(), expected.entropy(), rtol=1e-12, atol=0)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected.log_prob(at).sum(), at)
    assert_close(law.grad_log_prob(x), gradient, rtol=1e-10, atol=1e-10)
    assert law.log_prob(x.float()).dtype == law.grad_log_prob(x.float()).dtype == torch.float32


def test_samples_of_a_correlated_gaussian_have_its_moments(rng):
    law, mean, cov = correlated(4)
    n = 40_000
    centred = law.sample(n, rng(0)) - mean
    assert (centred.mean(0).abs() < 4 * cov.diagonal().sqrt() / math.sqrt(n)).all()
    products = centred[:, :, None] * centred[:, None, :]
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("d", [3, 784])
def test_every_law_of_a_correlated_gaussian_is_conditioning_of_its_joint_law(q, draw, d):
    """(x_s, x_t) has the blocks Σ_s, √(ᾱ_t/ᾱ_s) Σ_s, Σ_t: conditioned by solving with the whole matrix."""
    law, mean, cov = correlated(d)
    x_t = draw(d, seed=1)
    for s, t in ((0, 5), (3, 15), (19, 20)):
        (early, added), (late, noise) = levels(q, s), levels(q, t)
        cov_s, cov_t = (a * cov + b * torch.eye(d, dtype=torch.float64) for a, b in ((early, added), (late, noise)))
        cross = math.sqrt(late / early) * cov_s
        joint = torch.cat([torch.cat([cov_s, cross], 1), torch.cat([cross, cov_t], 1)])
        means = torch.cat([math.sqrt(early) * mean, math.sqrt(late) * mean])
        expected_mean, expected_cov = conditional(means, joint, list(range(d, 2 * d)), x_t)
        kernel = law.reverse_kernel(q, x_t, s, t)
        assert_close(kernel.mean, expected_mean, rtol=1e-9, atol=1e-9)
        assert_close(kernel.covariance(), expected_cov, rtol=1e-9, atol=1e-9)
        assert_close(law.diffused(q, t).covariance(), cov_t, rtol=1e-10, atol=1e-10)
        assert_close(law.score(q, x_t[None], t)[0], torch.linalg.solve(cov_t, means[d:] - x_t), rtol=1e-8, atol=1e-8)
        if s == 0:
            assert_close(law.denoiser(q)(x_t[None], t)[0], expected_mean, rtol=1e-9, atol=1e-9)
            one_each = law.denoiser(q)(x_t.repeat(2, 1), torch.tensor([t, 1]))
            assert_close(one_each[0], expected_mean, rtol=1e-9, atol=1e-9)


def test_a_correlated_gaussian_without_correlation_is_a_mixture_of_one(q, draw):
    var = torch.tensor([0.3, 2.0, 0.7], dtype=torch.float64)
    mean = draw(3)
    ours, mixture = CorrelatedGaussian.of(mean, torch.diag(var)), GaussianMixture([1.0], mean[None], var[None])
    x = draw(9, 3, seed=2)
    for t in STEPS:
        assert_close(ours.denoiser(q)(x, t), mixture.denoiser(q)(x, t), rtol=1e-12, atol=1e-12)
        assert_close(ours.score(q, x, t), mixture.score(q, x, t), rtol=1e-10, atol=1e-10)
    assert ours.entropy().item() == pytest.approx(mixture.entropy(8).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([0.0, 0.0], [[1.0, 0.5], [0.4, 1.0]], r"expected \(d,\) and a symmetric \(d, d\)"),
        ([0.0], [[1.0, 0.5], [0.5, 1.0]], r"mean \(1,\), covariance \(2, 2\)"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "expected positive eigenvalues, the smallest is -1"),
    ],
)
def test_what_is_no_covariance_is_refused(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        CorrelatedGaussian.of(torch.tensor(mean), torch.tensor(covariance))


def test_states_of_another_dimension_are_refused_by_a_correlated_gaussian(q, draw):
    with pytest.raises(ValueError, match=r"x of shape \(4, 3\): expected \(batch, 2\)"):
        correlated(2)[0].denoiser(q)(draw(4, 3), 1)
