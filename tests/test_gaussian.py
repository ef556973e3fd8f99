import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor, distributions
from torch.testing import assert_close

from ddpm_nb.gaussian import (
    Gaussian,
    conditional,
    convolution,
    expected_quadratic_form,
    kl_multivariate,
    observe,
    product,
)

VAR_SHAPES = [(), (1,), (3,), (4, 1), (4, 3)]  # all that broadcast to a mean of (4, 3)


def positive(draw, *shape: int, seed: int = 9) -> Tensor:
    return draw(*shape, seed=seed).exp()


def covariance(draw, d: int, seed: int) -> Tensor:
    root = draw(d, d, seed=seed)
    return root @ root.mT + 0.1 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize("shape", VAR_SHAPES)
def test_density_and_entropy_are_those_of_torch_distributions(draw, shape):
    mean, var, x = draw(4, 3, seed=1), positive(draw, *shape), draw(4, 3, seed=2)
    oracle = distributions.Normal(mean, var.sqrt().expand(4, 3))
    assert_close(Gaussian(mean, var).log_prob(x), oracle.log_prob(x).sum(1), rtol=1e-13, atol=1e-13)
    assert_close(Gaussian(mean, var).entropy(), oracle.entropy().sum(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", VAR_SHAPES)
def test_kl_is_that_of_torch_distributions(draw, shape):
    a = Gaussian(draw(4, 3, seed=1), positive(draw, *shape, seed=3))
    b = Gaussian(draw(4, 3, seed=2), positive(draw, *shape, seed=4))
    oracle = distributions.kl_divergence(
        distributions.Normal(a.mean, a.var.sqrt().expand(4, 3)), distributions.Normal(b.mean, b.var.sqrt().expand(4, 3))
    )
    assert_close(a.kl(b), oracle.sum(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("m_1", "v_1", "m_2", "v_2"), [(0.3, 0.2, -0.5, 1.7), (2.0, 3.0, 0.0, 0.6), (0.0, 1.0, 0.0, 1.2)]
)
def test_kl_is_the_integral_of_p_log_p_over_q(m_1, v_1, m_2, v_2):
    def log_density(x, mean, var):
        return -0.5 * (math.log(2 * math.pi * var) + (x - mean) ** 2 / var)

    def integrand(x):
        return math.exp(log_density(x, m_1, v_1)) * (log_density(x, m_1, v_1) - log_density(x, m_2, v_2))

    reach = 12 * math.sqrt(v_1)
    expected, _ = integrate.quad(integrand, m_1 - reach, m_1 + reach, epsabs=1e-13, epsrel=1e-13)
    assert Gaussian(m_1, v_1).kl(Gaussian(m_2, v_2)).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("excess", [1e-3, 1e-5, 1e-7])
def test_kl_of_nearly_equal_variances_keeps_its_digits(excess):
    # r - 1 - log r is about (r - 1)²/2, the small difference of two numbers near r - 1.
    other = 0.3
    var = other * (1 + excess)
    with mpmath.workdps(50):
        r = mpmath.mpf(var) / mpmath.mpf(other)
        expected = float((r - 1 - mpmath.log(r)) / 2)
    assert Gaussian(0.0, var).kl(Gaussian(0.0, other)).item() == pytest.approx(expected, rel=4e-16 / excess)


def test_kl_from_a_point_mass_is_infinite_and_to_one_is_an_error(draw):
    point, law = Gaussian(draw(2, 3), 0.0), Gaussian(draw(2, 3), 1.0)
    assert torch.equal(point.kl(law), torch.full((2,), math.inf, dtype=torch.float64))
    for fails in (lambda: law.kl(point), lambda: point.log_prob(draw(2, 3)), point.entropy):
        with pytest.raises(ValueError, match=r"var = 0: a point mass has no density"):
            fails()


@given(st.integers(0, 10_000), st.sampled_from([(3,), (2, 4), (2, 1, 3, 3)]))
def test_kl_is_positive_and_zero_only_for_equal_laws(draw, seed, shape):
    a = Gaussian(draw(*shape, seed=seed), draw(*shape, seed=seed + 1).exp())
    b = Gaussian(draw(*shape, seed=seed + 2), draw(*shape, seed=seed + 3).exp())
    assert (a.kl(b) > 0).all()
    assert torch.equal(a.kl(a), torch.zeros(shape[0], dtype=torch.float64))


@pytest.mark.parametrize("shape", VAR_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_mean_plus_standard_deviation_times_noise(draw, rng, shape, dtype):
    mean, var = draw(4, 3, seed=1, dtype=dtype), positive(draw, *shape).to(dtype)
    noise = torch.randn(4, 3, generator=rng(5), dtype=dtype)
    sample = Gaussian(mean, var).sample(rng(5))
    assert sample.dtype == dtype
    assert_close(sample, mean + var.sqrt() * noise, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("var", [0.25, torch.full((1,), 0.25)])
def test_samples_have_the_stated_variance(rng, var):
    n = 40_000
    x = Gaussian(torch.full((n,), 2.0, dtype=torch.float64), var).sample(rng(0))
    assert abs(x.mean() - 2.0) < 4 * math.sqrt(0.25 / n)
    assert abs(x.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / n)


def test_a_point_mass_returns_its_mean_and_draws_nothing(draw, rng):
    generator, mean = rng(0), draw(2, 3)
    assert torch.equal(Gaussian(mean, 0.0).sample(generator), mean)
    assert torch.equal(generator.get_state(), rng(0).get_state())
    assert torch.equal(Gaussian(mean, torch.zeros(2, 1)).sample(generator), mean)


def test_density_of_a_sum_is_the_convolution_of_the_densities():
    def density(law, x):
        return law.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item()

    a, b = Gaussian(0.4, 0.3), Gaussian(-1.0, 1.1)
    for z in (-2.0, 0.1, 1.5):
        expected, _ = integrate.quad(lambda x, z=z: density(a, x) * density(b, z - x), -8.0, 8.0, epsabs=1e-13)
        assert density(convolution(a, b), z) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("shape", VAR_SHAPES)
def test_product_of_densities(draw, shape):
    a = Gaussian(draw(4, 3, seed=1), positive(draw, *shape, seed=3))
    b = Gaussian(draw(4, 3, seed=2), positive(draw, *shape, seed=4))
    law, log_mass = product(a, b)
    for seed in (5, 6):
        x = 2 * draw(4, 3, seed=seed)
        assert_close(law.log_prob(x) + log_mass, a.log_prob(x) + b.log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [0.7, -2.0, 0.0])
def test_bayes_rule(draw, factor):
    prior, noise_var, y = Gaussian(draw(4, 3, seed=1), positive(draw, 4, 3)), 0.3, draw(4, 3, seed=2)
    posterior = observe(prior, factor, noise_var, y)
    evidence = Gaussian(factor * prior.mean, factor**2 * prior.var + noise_var).log_prob(y)
    for seed in (5, 6):
        x = draw(4, 3, seed=seed)
        joint = prior.log_prob(x) + Gaussian(factor * x, noise_var).log_prob(y)
        assert_close(posterior.log_prob(x) + evidence, joint, rtol=1e-12, atol=1e-12)


def test_exact_priors_and_exact_observations(draw):
    mean, y = draw(4, 3, seed=1), draw(4, 3, seed=2)
    assert torch.equal(observe(Gaussian(mean, 0.0), 2.0, 0.5, y).mean, mean)
    seen = observe(Gaussian(mean, 1.5), 2.0, 0.0, y)
    assert_close(seen.mean, y / 2, rtol=1e-14, atol=1e-14)
    assert seen.var == 0
    with pytest.raises(ValueError, match=r"prior\.var and noise_var are both 0"):
        observe(Gaussian(mean, 0.0), 2.0, 0.0, y)


def test_kl_multivariate_is_that_of_torch_distributions(draw):
    for d in (1, 2, 5):
        mean_1, mean_2 = draw(d, seed=1), draw(d, seed=2)
        cov_1, cov_2 = covariance(draw, d, seed=3), covariance(draw, d, seed=4)
        oracle = distributions.kl_divergence(
            distributions.MultivariateNormal(mean_1, cov_1), distributions.MultivariateNormal(mean_2, cov_2)
        )
        assert_close(kl_multivariate(mean_1, cov_1, mean_2, cov_2), oracle, rtol=1e-11, atol=1e-11)


def test_kl_multivariate_by_determinant_and_inverse(draw):
    mean_1, mean_2 = draw(4, seed=1).numpy(), draw(4, seed=2).numpy()
    cov_1, cov_2 = covariance(draw, 4, seed=3).numpy(), covariance(draw, 4, seed=4).numpy()
    inverse, shift = np.linalg.inv(cov_2), mean_2 - mean_1
    expected = 0.5 * (
        np.trace(inverse @ cov_1) + shift @ inverse @ shift - 4 + np.log(np.linalg.det(cov_2) / np.linalg.det(cov_1))
    )
    ours = kl_multivariate(*map(torch.from_numpy, (mean_1, cov_1, mean_2, cov_2)))
    assert ours.item() == pytest.approx(expected, rel=1e-10)


def test_kl_multivariate_of_diagonal_covariances_is_kl(draw):
    a = Gaussian(draw(1, 3, seed=1), positive(draw, 1, 3, seed=3))
    b = Gaussian(draw(1, 3, seed=2), positive(draw, 1, 3, seed=4))
    full = kl_multivariate(a.mean[0], torch.diag(a.var[0]), b.mean[0], torch.diag(b.var[0]))
    assert_close(full[None], a.kl(b), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (torch.eye(3).double(), r"cov_2 of shape \(3, 3\): expected \(2, 2\)"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double(), "cov_2: expected a symmetric positive definite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double(), "cov_2: expected a symmetric positive definite"),
    ],
)
def test_kl_multivariate_names_the_matrix_that_is_no_covariance(cov, message):
    zero, unit = torch.zeros(2).double(), torch.eye(2).double()
    with pytest.raises(ValueError, match=message):
        kl_multivariate(zero, unit, zero, cov)


@pytest.mark.parametrize("observed", [[0], [2, 4], [3, 0, 1]])
def test_conditional_density_is_joint_over_marginal(draw, observed):
    mean, cov, x = draw(5, seed=1), covariance(draw, 5, seed=2), draw(5, seed=3)
    rest = [i for i in range(5) if i not in observed]
    mean_a, cov_a = conditional(mean, cov, observed, x[observed])
    joint = distributions.MultivariateNormal(mean, cov).log_prob(x)
    marginal = distributions.MultivariateNormal(mean[observed], cov[observed][:, observed]).log_prob(x[observed])
    cov_a = (cov_a + cov_a.mT) / 2  # symmetric to rounding; the oracle wants it exactly
    assert_close(
        distributions.MultivariateNormal(mean_a, cov_a).log_prob(x[rest]), joint - marginal, rtol=1e-10, atol=1e-10
    )


def test_expected_quadratic_form_by_gauss_hermite_quadrature(draw):
    # Five nodes a side integrate polynomials up to degree 9 exactly, so also this one of degree 2.
    mean, cov, u, A = draw(2, seed=1), covariance(draw, 2, seed=2), draw(2, seed=3), draw(2, 2, seed=4)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    z = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    w = torch.from_numpy(np.outer(weights, weights).reshape(-1)) / (2 * math.pi)
    x = mean + z @ torch.linalg.cholesky(cov).mT - u
    expected = (w * torch.einsum("ni,ij,nj->n", x, A, x)).sum()
    assert_close(expected_quadratic_form(mean, cov, u, A), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_mean(draw, dtype):
    a = Gaussian(draw(4, 3, dtype=dtype), torch.tensor(0.5, dtype=torch.float64))
    b = Gaussian(draw(4, 3, seed=1, dtype=dtype), 2.0)
    values = [a.var, a.sample(), a.log_prob(b.mean), a.entropy(), a.kl(b), product(a, b)[0].mean, convolution(a, b).var]
    assert {value.dtype for value in values} == {dtype}


def test_wrong_laws_are_refused(draw):
    with pytest.raises(ValueError, match=r"var = -0\.5: expected variances of at least 0"):
        Gaussian(draw(2, 3), -0.5)
    with pytest.raises(ValueError, match="var = nan"):
        Gaussian(draw(2, 3), math.nan)
    with pytest.raises(ValueError, match=r"var of shape \(2,\): expected one that broadcasts to mean's \(2, 3\)"):
        Gaussian(draw(2, 3), torch.ones(2))
    with pytest.raises(TypeError, match=r"mean of dtype torch\.int64: expected a floating-point tensor"):
        Gaussian(torch.zeros(2, 3, dtype=torch.int64), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_variance_as_a_float_is_the_same_law_as_one_as_a_tensor(draw, dtype):
    mean, x = draw(4, 3, dtype=dtype), draw(4, 3, seed=1, dtype=dtype)
    other = Gaussian(draw(4, 3, seed=2, dtype=dtype), 0.7)
    short, long = Gaussian(mean, 0.3), Gaussian(mean, torch.full((4, 1), 0.3, dtype=dtype))
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    for law in (Gaussian(mean, torch.tensor(0.3)), Gaussian(mean, torch.tensor(0.3, dtype=torch.float64)), long):
        assert_close(law.log_prob(x), short.log_prob(x), rtol=1e-6, atol=1e-6)
        assert_close(law.kl(other), short.kl(other), rtol=1e-6, atol=1e-6)
        assert_close(other.kl(law), other.kl(short), rtol=1e-6, atol=1e-6)
        assert_close(law.entropy(), short.entropy(), rtol=1e-6, atol=1e-6)
    draws = [law.sample(torch.Generator().manual_seed(3)) for law in (short, long)]
    assert_close(draws[0], draws[1], **tolerance)
    assert short.var.dtype == dtype
    assert short.var.ndim == 0
    assert short.entropy().shape == short.kl(other).shape == (4,)


def test_a_draw_from_given_noise_is_the_draw(draw):
    mean = draw(4, 3)
    for var in (0.3, torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)):
        law = Gaussian(mean, var)
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        assert torch.equal(law.from_noise(z), law.sample(torch.Generator().manual_seed(5)))
        assert_close(law.from_noise(z), mean + law.var.sqrt() * z, rtol=1e-15, atol=1e-15)


def test_a_law_is_a_value_and_a_variance_may_be_learnt(draw):
    law = Gaussian(draw(2, 3), 0.3)
    for name in ("mean", "var"):
        with pytest.raises(AttributeError):
            setattr(law, name, 1.0)
    var = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    Gaussian(draw(2, 3), var).log_prob(draw(2, 3, seed=1)).sum().backward()
    assert var.grad is not None and var.grad != 0


def test_the_divergence_from_a_point_mass_and_to_one():
    point, wide = Gaussian(torch.zeros(2, 3), 0.0), Gaussian(torch.zeros(2, 3), 1.0)
    assert torch.equal(point.kl(wide), torch.full((2,), torch.inf))
    with pytest.raises(ValueError, match="var = 0: a point mass has no density"):
        wide.kl(point)
