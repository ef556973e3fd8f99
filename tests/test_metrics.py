import math

import pytest
import torch
from scipy import linalg, optimize, stats
from torch.testing import assert_close

from ddpm_nb.metrics import (
    Classifier,
    density_coverage,
    energy_distance,
    frechet_distance,
    nearest_neighbours,
    precision_recall,
    sliced_wasserstein,
    train_classifier,
)


def features(draw, n: int, d: int, seed: int) -> torch.Tensor:
    return draw(n, d, seed=seed) @ draw(d, d, seed=seed + 1) + draw(d, seed=seed + 2)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 5), (50, 50, 2), (30, 20, 64), (40, 60, 1)])
def test_frechet_distance_is_that_of_the_matrix_square_root(draw, n, m, d):
    a, b = features(draw, n, d, 1), features(draw, m, d, 4)
    cov_a, cov_b = torch.cov(a.mT).reshape(d, d).numpy(), torch.cov(b.mT).reshape(d, d).numpy()
    cross = linalg.sqrtm(cov_a @ cov_b).real if d < n else None
    if cross is None:  # too few samples for sqrtm of a singular product: the singular values of Σ_a^½ Σ_b^½ are exact
        halves = [linalg.svd(x - x.mean(0), full_matrices=False) for x in (a.numpy(), b.numpy())]
        roots = [(v.T * s) @ v / math.sqrt(k - 1) for (_, s, v), k in zip(halves, (n, m))]
        trace = linalg.svdvals(roots[0] @ roots[1]).sum()
    else:
        trace = cross.trace()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + cov_a.trace() + cov_b.trace() - 2 * trace
    # Rounding of an eigenvalue near 0 is rooted: with singular covariances eight digits are left.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if d < n else 1e-6)


def test_frechet_distance_in_closed_form(draw):
    a = features(draw, 100, 3, 1)
    assert abs(frechet_distance(a, a)) < 1e-11 * torch.cov(a.mT).trace().item()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    assert frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-10)
    # Scaling by c leaves (1 - c)² tr Σ of the covariances and (1 - c)² ‖μ‖² of the means.
    expected = 0.25 * (torch.cov(a.mT).trace() + a.mean(0).square().sum()).item()
    assert frechet_distance(a, 1.5 * a) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(a, 1.5 * a) == pytest.approx(frechet_distance(1.5 * a, a), rel=1e-10)
    assert frechet_distance(a.float(), (1.5 * a).float()) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_needs_two_samples(draw):
    for a, b in ((draw(1, 3), draw(5, 3)), (draw(5, 3), draw(1, 3)), (draw(5, 3), draw(5))):
        with pytest.raises(
            ValueError, match=r"features of shape .* expected \(n, features\) with at least two samples"
        ):
            frechet_distance(a, b)


def test_density_and_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    # Balls to the second nearest other: [-2, 2], [0, 2], [0, 4], [1, 19].
    drawn = torch.tensor([[0.5], [0.6], [30.0]])
    density, coverage = density_coverage(real, drawn, neighbours=2)
    assert (density, coverage) == (6 / 3 / 2, 3 / 4)
    with pytest.raises(ValueError, match="4 and 3 features: expected more than neighbours = 3 of each"):
        density_coverage(real, drawn, neighbours=3)


def test_density_and_coverage_of_the_same_law_and_of_decoys(draw):
    real, same = draw(600, 4, seed=1), draw(600, 4, seed=2)
    density, coverage = density_coverage(real, same)
    assert density == pytest.approx(1, abs=0.1)
    # A real point stays without one of m draws nearer than its 5th of n others: about 2^-5 for m = n.
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)
    centre, wide = density_coverage(real, 0.3 * same), density_coverage(real, 3 * same)
    assert centre[0] > 0.9 and centre[1] < 0.5  # believable and not varied: only coverage sees it
    assert wide[0] < 0.2 and wide[1] < 0.5  # and recall is blind to it
    assert precision_recall(real, 3 * same)[1] > 0.95


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    drawn = torch.tensor([[0.5], [1.9], [30.0], [31.0]])
    # First-neighbour radii: real 1, 1, 1, 8; drawn 1.4, 1.4, 1, 1. So 0.5 and 1.9 are real, 0, 1 and 2 are drawn.
    assert precision_recall(real, drawn, neighbours=1) == (0.5, 0.75)
    assert precision_recall(drawn, real, neighbours=1) == (0.75, 0.5)


def test_precision_and_recall_tell_blur_from_collapse(draw):
    real, same = draw(600, 4, seed=1), draw(600, 4, seed=2)
    both = precision_recall(real, same)
    collapsed = precision_recall(real, 0.1 * same)  # all near the middle: believable, and far from all there is
    spread = precision_recall(real, 3 * same)
    assert min(both) > 0.9
    assert collapsed[0] > 0.95 > 0.2 > collapsed[1]
    assert spread[0] < 0.4 < 0.9 < spread[1]
    with pytest.raises(ValueError, match="600 and 3 features: expected more than neighbours = 3 of each"):
        precision_recall(real, same[:3])


def test_energy_distance_of_two_normal_laws(draw):
    # E|N(μ, σ²)| = σ √(2/π) exp(-μ²/2σ²) + μ (1 - 2 Φ(-μ/σ)).
    def mean_abs(mu, var):
        sd = math.sqrt(var)
        return sd * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * var)) + mu * (1 - 2 * stats.norm.cdf(-mu / sd))

    n, shift, sd = 1000, 0.8, 1.5
    exact = 2 * mean_abs(shift, 1 + sd**2) - mean_abs(0, 2) - mean_abs(0, 2 * sd**2)
    found = [energy_distance(draw(n, 1, seed=i), shift + sd * draw(n, 1, seed=100 + i)) for i in range(20)]
    found = torch.tensor(found)
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(20)
    assert exact > 20 * found.std() / math.sqrt(20)


def test_energy_distance_is_unbiased_at_equal_laws(draw):
    found = torch.tensor([energy_distance(draw(40, 2, seed=i), draw(30, 2, seed=500 + i)) for i in range(300)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(300)
    biased = found + 1.77 * (1 / 40 + 1 / 30)  # with the pairs of a sample with itself: E‖A − A'‖ (1/n + 1/m) more
    assert biased.mean() > 10 * found.std() / math.sqrt(300)


def test_energy_distance_by_hand():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0], [4.0]])
    between = (3 + 5 + 4 + 2 + 4 + 3) / 6
    assert energy_distance(a, b) == pytest.approx(2 * between - 1 - 2 * (2 + 1 + 1) / 6, rel=1e-12)
    assert energy_distance(b, a) == pytest.approx(energy_distance(a, b), rel=1e-12)
    with pytest.raises(ValueError, match="2 and 1 samples: expected at least two of each"):
        energy_distance(a, b[:1])


def test_sliced_wasserstein_is_the_best_matching_along_each_direction(draw):
    a, b, directions = draw(30, 3, seed=1), 2 * draw(30, 3, seed=2) + 1, draw(5, 3, seed=3)
    costs = []
    for direction in directions / directions.norm(dim=1, keepdim=True):
        cost = ((a @ direction)[:, None] - b @ direction).square().numpy()
        costs.append(cost[optimize.linear_sum_assignment(cost)].mean())
    assert sliced_wasserstein(a, b, directions) == pytest.approx(math.sqrt(sum(costs) / 5), rel=1e-12)


def test_sliced_wasserstein_of_a_shift_and_a_scaling(draw):
    a, shift, directions = draw(50, 4, seed=1), torch.tensor([1.0, -2.0, 0.0, 0.5]).double(), 3 * draw(7, 4, seed=2)
    unit = directions / directions.norm(dim=1, keepdim=True)
    found = sliced_wasserstein(a, a[torch.arange(49, -1, -1)] + shift, directions)
    assert found == pytest.approx((unit @ shift).square().mean().sqrt().item(), rel=1e-12)
    found = sliced_wasserstein(a.float(), 1.5 * a.float(), directions)
    assert found == pytest.approx(0.5 * (a @ unit.mT).square().mean().sqrt().item(), rel=1e-6)
    assert sliced_wasserstein(a, a, directions) == 0


def test_sliced_wasserstein_of_normal_laws_and_its_floor(draw):
    # W₂² of N(0, 1) and N(μ, σ²) is μ² + (1 - σ)²; samples of one law are at a distance that falls with their number.
    n, shift, sd = 20_000, 0.8, 1.5
    line = torch.ones(1, 1)
    found = [sliced_wasserstein(draw(n, 1, seed=i), shift + sd * draw(n, 1, seed=100 + i), line) for i in range(10)]
    assert sum(found) / 10 == pytest.approx(math.hypot(shift, sd - 1), rel=0.01)
    floors = [
        sum(sliced_wasserstein(draw(n, 1, seed=i), draw(n, 1, seed=100 + i), line) for i in range(20)) / 20
        for n in (100, 1000, 10_000)
    ]
    assert floors[0] > 2 * floors[1] > 4 * floors[2] > 0


def test_sliced_wasserstein_names_the_shapes(draw):
    for a, b, directions in ((5, 4, (2, 3)), (5, 5, (2, 4)), (5, 5, (3,))):
        with pytest.raises(ValueError, match=r"samples of shape .* expected \(n, d\), the same \(n, d\) and \(k, d\)"):
            sliced_wasserstein(draw(a, 3), draw(b, 3), draw(*directions))


def test_nearest_neighbours_by_brute_force(draw):
    samples, data = draw(30, 1, 4, 4, seed=1), draw(100, 1, 4, 4, seed=2)
    distances, rows = nearest_neighbours(samples, data)
    for sample, distance, row in zip(samples, distances, rows):
        each = (data - sample).square().sum((1, 2, 3)).sqrt()
        assert row == each.argmin()
        assert distance.item() == pytest.approx(each.min().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_is_at_distance_zero(draw, dtype):
    data = 5 + draw(200, 1, 28, 28, dtype=dtype)
    distances, rows = nearest_neighbours(data[[3, 150, 77]], data)
    assert rows.tolist() == [3, 150, 77]
    assert torch.equal(distances, torch.zeros(3, dtype=dtype))  # others are about √(2·784) = 40 away


def test_the_classifier_learns_and_repeats_itself():
    from ddpm_nb.data import load_dataset, load_labels

    images, labels = load_dataset("digits"), load_labels("digits")
    test, truth = load_dataset("digits", split="test"), load_labels("digits", split="test")
    before = torch.random.get_rng_state()
    model = train_classifier(images, labels, epochs=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's draws are moved
    assert (model(test).argmax(1) == truth).float().mean() > 0.9
    assert torch.equal(model.head(model.features(test)), model(test))
    again, other = (train_classifier(images[:200], labels[:200], epochs=1, seed=s) for s in (1, 2))
    same = train_classifier(images[:200], labels[:200], epochs=1, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(again.head.weight, other.head.weight)


def test_feature_distances_rank_damage(draw):
    torch.manual_seed(0)
    model = Classifier().eval().requires_grad_(False)
    images = draw(200, 1, 8, 8, dtype=torch.float32)
    noise = draw(200, 1, 8, 8, seed=1, dtype=torch.float32)
    distances = [frechet_distance(model.features(images), model.features(images + s * noise)) for s in (0.0, 0.3, 1.0)]
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_features_are_the_input_of_the_head(draw):
    model = Classifier(channels=3, classes=4, features=16).eval()
    x = draw(2, 3, 12, 12, dtype=torch.float32)
    assert_close(model(x), model.features(x) @ model.head.weight.mT + model.head.bias)
