import math
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.testing import assert_close

from ddpm_nb.diffusion import posterior_mean, posterior_var
from ddpm_nb.schedule import (
    SCHEDULES,
    Level,
    NoiseSchedule,
    added_var,
    coefficient,
    cosine_schedule,
    linear_schedule,
    shifted,
)

BETAS = st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=12)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact_alpha_bars(betas: list[float]) -> list[mpf]:
    """ᾱ_0..ᾱ_T by 50-digit products."""
    with mpmath.workdps(50):
        products = [mpf(1)]
        for beta in betas:
            products.append(products[-1] * (1 - mpf(beta)))
        return products


def relative_error(value: float, expected: mpf) -> float:
    with mpmath.workdps(50):
        return float(abs(mpf(value) - expected) / abs(expected))


def linear_betas(T: int, beta_1: float, beta_T: float) -> list[float]:
    return [beta_1 + (beta_T - beta_1) * i / (T - 1) for i in range(T)]


@pytest.mark.parametrize(("T", "beta_1", "beta_T"), [(1000, 1e-4, 0.02), (50, 1e-3, 0.4), (2, 0.1, 0.2)])
def test_linear_schedule_is_a_line_of_betas(T, beta_1, beta_T):
    schedule = linear_schedule(T, beta_1, beta_T)
    exact = exact_alpha_bars(linear_betas(T, beta_1, beta_T))
    assert schedule.T == T
    for t in range(1, T + 1):
        assert schedule.beta(t).item() == pytest.approx(beta_1 + (beta_T - beta_1) * (t - 1) / (T - 1), rel=1e-11)
        assert relative_error(schedule.alpha_bar(t).item(), exact[t]) < 2e-13
        assert relative_error(schedule.level(t).noise_var, 1 - exact[t]) < 1e-12


def test_cosine_schedule_is_a_squared_cosine_with_a_clipped_end():
    T, offset = 1000, 0.008
    schedule = cosine_schedule(T)
    with mpmath.workdps(50):
        signal = [mpmath.cos((mpf(t) / T + mpf("0.008")) / mpf("1.008") * mpmath.pi / 2) ** 2 for t in range(T + 1)]
        for t in range(1, T):
            assert relative_error(schedule.alpha_bar(t).item(), signal[t] / signal[0]) < 1e-9
            assert relative_error(schedule.level(t).noise_var, 1 - signal[t] / signal[0]) < 1e-9
        assert signal[T] / signal[T - 1] < 1e-20 < 1 - mpf("0.999")  # the unclipped last step would erase everything
    assert schedule.beta(T).item() == pytest.approx(0.999, rel=1e-12)
    assert cosine_schedule(T, offset, max_beta=0.9).beta(T).item() == pytest.approx(0.9, rel=1e-12)


def test_the_middle_of_the_cosine_schedule_has_lost_half_of_the_power():
    # The published slip is to leave out the square: that would leave cos(π/4) = 0.71 here.
    assert cosine_schedule(1000, offset=0.0).alpha_bar(500).item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule])
def test_default_schedules_end_in_noise(make):
    # 200 or 300 steps of the betas of 1000 leave √ᾱ_T = 0.36 or 0.22: samplers then start from a law never trained on.
    assert make().alpha_bar(1000) < 1e-4
    assert linear_schedule(T=300).alpha_bar(300).sqrt() > 0.2


def test_one_minus_alpha_bar_survives_the_cast_to_float32():
    betas = linear_betas(1000, 1e-4, 0.02)
    exact = exact_alpha_bars(betas)
    float32_table = 1 - torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), 0)
    schedule = linear_schedule()
    assert relative_error(schedule.level(1).noise_var, mpf(1e-4)) < 1e-12
    for t in range(1, 1001):
        assert (
            relative_error(torch.tensor(schedule.level(t).noise_var, dtype=torch.float32).item(), 1 - exact[t]) < 6e-8
        )
    # The usual table fails the same test by three orders of magnitude.
    assert relative_error(float32_table[0].item(), 1 - exact[1]) > 1e-4


@given(BETAS)
def test_every_quantity_against_products_in_fifty_digits(betas):
    schedule, exact = NoiseSchedule.from_betas(betas), exact_alpha_bars(betas)
    for t in range(1, len(betas) + 1):
        rounding = 4e-16 * (1 - float(mpmath.log(exact[t])))  # of a logarithm in the table
        assert relative_error(schedule.beta(t).item(), mpf(betas[t - 1])) < 2 * rounding / betas[t - 1]
        assert relative_error(schedule.alpha(t).item(), 1 - mpf(betas[t - 1])) < 1e-12
        assert relative_error(schedule.alpha_bar(t).item(), exact[t]) < 1e-12
        assert relative_error(schedule.level(t).noise_var, 1 - exact[t]) < 1e-12
        snr = exact[t] / (1 - exact[t])
        assert relative_error(schedule.snr(t).item(), snr) < 1e-11
        assert abs(schedule.level(t).log_snr - float(mpmath.log(snr))) < 1e-12 * (1 + abs(float(mpmath.log(snr))))


@given(BETAS, st.data())
def test_steps_compose(betas, data):
    schedule = NoiseSchedule.from_betas(betas)
    r, s, t = sorted(data.draw(st.lists(st.integers(0, len(betas)), min_size=3, max_size=3)))
    a, b, c = (schedule.level(step) for step in (r, s, t))
    composed = (c.signal / b.signal) ** 2 * added_var(a, b) + added_var(b, c)
    assert added_var(a, c) == pytest.approx(composed, rel=1e-12, abs=1e-15)


def test_posterior_precision_is_the_sum_of_two_precisions(schedule):
    for s, t in ((1, 2), (1, schedule.T), (schedule.T - 1, schedule.T), (schedule.T // 2, schedule.T // 2 + 2)):
        before, here = schedule.levels(s, t)
        precision = (here.signal / before.signal) ** 2 / added_var(before, here) + 1 / before.noise_var
        assert posterior_var(before, here) == pytest.approx(1 / precision, rel=1e-12)
    assert posterior_var(*schedule.levels(0, 1)) == 0
    assert posterior_var(*schedule.levels(0, schedule.T)) == 0


def test_clean_data_is_step_0(schedule):
    assert schedule.alpha_bar(0) == 1
    assert schedule.level(0).noise_var == 0
    assert schedule.snr(0) == math.inf
    assert schedule.alpha_bar(1) == schedule.alpha(1)


def test_noise_only_grows(schedule):
    steps = torch.arange(schedule.T + 1)
    assert (schedule.alpha_bar(steps).diff() < 0).all()
    assert (schedule.level(steps[1:]).log_snr.diff() < 0).all()


def test_a_tensor_of_steps_gives_what_each_int_gives(schedule):
    steps = torch.tensor([1, schedule.T, 2, 1])
    for kind in (torch.int64, torch.int32, torch.uint8 if schedule.T < 256 else torch.int16):
        for name in ("alpha_bar", "alpha", "beta", "snr"):
            method = getattr(schedule, name)
            each = torch.stack([method(int(t)) for t in steps])
            assert each.dtype == torch.float64
            assert_close(method(steps.to(kind)), each, rtol=1e-14, atol=0.0)
        for name in ("signal", "noise", "noise_var", "log_alpha_bar", "alpha_bar", "snr", "log_snr", "sigma"):
            each = torch.tensor([getattr(schedule.level(int(t)), name) for t in steps], dtype=torch.float64)
            assert_close(getattr(schedule.level(steps.to(kind)), name), each, rtol=1e-14, atol=0.0)
    for of_two in (
        posterior_var,
        added_var,
        lambda a, b: posterior_mean(a, b)[0],
        lambda a, b: posterior_mean(a, b)[1],
    ):
        each = torch.tensor([of_two(*schedule.levels(int(t) - 1, int(t))) for t in steps], dtype=torch.float64)
        assert_close(of_two(*schedule.levels(steps - 1, steps)), each, rtol=1e-13, atol=1e-300)


def test_the_step_to_clean_data_is_exact_by_floats_and_by_tensors(schedule):
    steps = torch.tensor([1, 2, schedule.T])
    for t in steps.tolist():
        assert posterior_mean(*schedule.levels(0, t)) == (1.0, 0.0)
        assert posterior_var(*schedule.levels(0, t)) == 0.0
    on_x_0, on_x_t = posterior_mean(*schedule.levels(torch.zeros(3, dtype=torch.long), steps))
    assert torch.equal(on_x_0, torch.ones(3, dtype=torch.float64))
    assert torch.equal(on_x_t, torch.zeros(3, dtype=torch.float64))


def test_the_noise_variance_is_kept_and_not_squared_back():
    levels = [linear_schedule().level(t) for t in range(1001)]
    assert all(level.noise_var == -math.expm1(level.log_alpha_bar) for level in levels)
    assert any(level.noise_var != level.noise**2 for level in levels)  # what squaring would have lost


@given(st.floats(-700, 0))
def test_a_level_is_the_same_by_a_float_and_by_a_tensor(log):
    one, other = Level.of(log), Level.of(torch.tensor([log], dtype=torch.float64))
    for name in ("signal", "noise", "noise_var", "alpha_bar", "snr", "log_snr", "sigma"):
        assert getattr(other, name).item() == pytest.approx(getattr(one, name), rel=1e-14), name
    assert one.signal**2 + one.noise_var == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_name_means_the_same_shape_at_every_T(name):
    whole = SCHEDULES[name](4000)
    for T in (50, 200, 1000):
        schedule = SCHEDULES[name](T)
        assert -0.5 * math.log(schedule.level(T).noise_var) < 1e-3  # L_T of a pixel at ±1, in nats
        for share in (0.25, 0.5, 0.75):
            coarse, fine = schedule.level(round(share * T)).log_snr, whole.level(round(share * 4000)).log_snr
            assert coarse == pytest.approx(fine, abs=50 / T), share  # a sum of T terms for an integral


def test_the_linear_shape_is_that_of_a_thousand_steps():
    assert torch.equal(SCHEDULES["linear"](1000).log_alpha_bars, linear_schedule().log_alpha_bars)
    with pytest.raises(ValueError, match="T = 20: expected a whole number of at least 21"):
        SCHEDULES["linear"](20)
    with pytest.raises(ValueError, match=r"schedule = 'cosin': expected one of .*did you mean 'cosine'"):
        SCHEDULES["cosin"]


def test_one_step_is_a_schedule():
    assert NoiseSchedule.from_betas([0.3]).alpha_bar(1).item() == pytest.approx(0.7, rel=1e-15)
    assert linear_schedule(T=1, beta_1=0.25).beta(1).item() == pytest.approx(0.25, rel=1e-15)
    assert cosine_schedule(T=1).beta(1).item() == pytest.approx(0.999, rel=1e-12)


@given(st.integers(1, 60), st.sampled_from([linear_schedule, cosine_schedule]))
def test_factories_for_every_number_of_steps(T, make):
    schedule = make(T)
    assert schedule.T == T
    betas = [schedule.beta(t).item() for t in range(1, T + 1)]
    assert all(0 < before < after < 1 for before, after in pairwise(betas))
    assert_close(NoiseSchedule.from_betas(betas).log_alpha_bars, schedule.log_alpha_bars, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (lambda q: q.alpha_bar(6), ValueError, "t = 6: expected a step from 0 to T = 5"),
        (lambda q: q.alpha_bar(-1), ValueError, "t = -1: expected a whole number of at least 0"),
        (lambda q: q.beta(0), ValueError, "t = 0: expected a whole number of at least 1"),
        (lambda q: q.beta(torch.tensor([2, 0])), ValueError, "t contains 0: expected steps from 1 to T = 5"),
        (lambda q: q.snr(torch.tensor([2, 6])), ValueError, "t contains 6: expected steps from 0 to T = 5"),
        (lambda q: q.snr(torch.tensor([-1, 2])), ValueError, "t contains -1: expected steps from 0 to T = 5"),
        (lambda q: q.snr(0.5), TypeError, "t = 0.5: expected a whole number, got float"),
        (lambda q: q.snr(True), TypeError, "t = True: expected a whole number, got bool"),
        (lambda q: q.snr(torch.tensor([0.5])), TypeError, "t of dtype torch.float32: expected an integer tensor"),
        (lambda q: q.snr(torch.tensor([True])), TypeError, "t of dtype torch.bool: expected an integer tensor"),
        (lambda q: q.from_betas([0.1, 1.0]), ValueError, "β_2 = 1.0: expected a variance strictly between 0 and 1"),
        (lambda q: q.from_betas([0.0]), ValueError, "β_1 = 0.0: expected a variance"),
        (lambda q: q.from_betas([0.1, math.nan]), ValueError, "β_2 = nan: expected a variance"),
        (lambda q: q.from_betas([]), ValueError, r"betas of shape \(0,\): expected \(T,\)"),
        (lambda q: q.from_betas(torch.zeros(2, 2)), ValueError, r"betas of shape \(2, 2\): expected \(T,\)"),
        (lambda q: NoiseSchedule(float64(0.1, -1.0)), ValueError, "start at 0"),
        (lambda q: NoiseSchedule(float64(0.0, -1.0, -1.0)), ValueError, "fall strictly"),
        (lambda q: NoiseSchedule(float64(0.0, -math.inf)), ValueError, "finite"),
        (lambda q: NoiseSchedule(float64(0.0)), ValueError, r"log_alpha_bars of shape \(1,\)"),
        (lambda q: NoiseSchedule(torch.tensor([0.0, -1.0])), TypeError, "log_alpha_bars: expected a float64 tensor"),
        (lambda q: NoiseSchedule([0.0, -1.0]), TypeError, "log_alpha_bars: expected a float64 tensor"),
        (lambda q: q.levels(3, 3), ValueError, "s = 3, t = 3: expected s < t, the earlier step first"),
        (lambda q: q.levels(3, torch.tensor([4, 2])), ValueError, "expected s < t for every sample"),
        (lambda q: q.levels(-1, 3), ValueError, "s = -1: expected a whole number of at least 0"),
        (lambda q: linear_schedule(T=0), ValueError, "T = 0: expected a whole number of at least 1"),
        (lambda q: linear_schedule(T=10.0), TypeError, "T = 10.0: expected a whole number, got float"),
        (lambda q: linear_schedule(beta_T=1.5), ValueError, "expected a variance strictly between 0 and 1"),
        (lambda q: cosine_schedule(offset=-0.1), ValueError, "offset = -0.1: expected a number of at least 0"),
        (lambda q: cosine_schedule(T=True), TypeError, "T = True: expected a whole number, got bool"),
    ],
)
def test_errors_name_argument_value_and_what_was_expected(fails, kind, message):
    with pytest.raises(kind, match=message):
        fails(NoiseSchedule.from_betas([0.1] * 5))


def test_coefficient_is_cast_last_and_shaped_for_the_data(draw):
    x = draw(3, 2, 4, 4, dtype=torch.float32)
    value = torch.tensor([1 / 3, 2.0, 1e-9], dtype=torch.float64)
    shaped = coefficient(value, x)
    assert shaped.dtype == torch.float32
    assert_close((shaped * x).double(), value[:, None, None, None] * x.double(), rtol=1.2e-7, atol=0.0)
    assert coefficient(1 / 3, x) == 1 / 3  # a float keeps all its digits until it meets the data
    with pytest.raises(ValueError, match=r"t of shape \(3,\): expected \(2,\), one step for each sample"):
        coefficient(value, x[:2])


@pytest.mark.parametrize("factor", [0.5, 2.0, 32.0])
def test_a_shifted_schedule_has_the_same_coarse_information_for_larger_images(factor):
    schedule = cosine_schedule(50)
    t = torch.arange(1, 51)
    before, after = schedule.level(t).snr, shifted(schedule, factor).level(t).snr
    assert_close(after * factor**2, before, rtol=1e-12, atol=0)
    back = shifted(shifted(schedule, factor), 1 / factor)
    assert_close(back.log_alpha_bars, schedule.log_alpha_bars, rtol=1e-11, atol=0)


def test_a_block_of_an_enlarged_image_is_known_as_well_as_its_pixel_was():
    # A pixel of variance v, repeated k x k times: the exact posterior variance from its k² noisy copies.
    v, k, t, schedule = 0.3, 4, 20, cosine_schedule(50)
    level = shifted(schedule, k).level(t)
    law = torch.full((k * k, k * k), v, dtype=torch.float64) * level.signal**2
    gain = v * level.signal * torch.ones(k * k, dtype=torch.float64)
    noisy = law + level.noise_var * torch.eye(k * k, dtype=torch.float64)
    found = v - gain @ torch.linalg.solve(noisy, gain)
    plain = schedule.level(t)
    expected = v * plain.noise_var / (plain.noise_var + plain.signal**2 * v)
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("factor", [0.0, -2.0, math.inf, math.nan])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor = .*: expected how many times as wide"):
        shifted(cosine_schedule(10), factor)
