import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ddpm_nb.nets import MLP, NETWORKS, UNet, time_embedding

CASES = {
    "8x8": (lambda: UNet(8), (1, 8, 8)),
    "28x28 in patches": (lambda: UNet(28, patch=2), (1, 28, 28)),
    "three levels in colour": (lambda: UNet(16, channels=3, widths=(16, 24, 32), blocks=2), (3, 16, 16)),
    "plane": (lambda: MLP(), (2,)),
    "small": (lambda: MLP(d=5, width=16, depth=1), (5,)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, event = CASES[request.param]
    torch.manual_seed(0)
    return make(), event


def awake(network: nn.Module) -> nn.Module:
    """The network with its zeroed layers moved off zero, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def test_time_embedding_is_sines_and_cosines_of_falling_rates():
    t, width = torch.tensor([0, 1, 7, 1000]), 16
    embedding = time_embedding(t, width)
    for row, step in enumerate(t.tolist()):
        for i in range(8):
            angle = step * 10_000 ** (-i / 8)
            assert embedding[row, i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert embedding[row, 8 + i].item() == pytest.approx(math.cos(angle), abs=1e-4)
    assert torch.pdist(time_embedding(torch.arange(1001), 32)).min() > 0.1  # every step can be told from every other
    for width in (0, 3):
        with pytest.raises(ValueError, match=f"width = {width}: expected an even number of at least 2"):
            time_embedding(t, width)


def test_a_new_network_predicts_zero(case, draw):
    network, event = case
    x, t = draw(3, *event, dtype=torch.float32), torch.tensor([1, 5, 900])
    assert torch.equal(network(x, t), torch.zeros(3, *event))


def test_the_prediction_depends_on_x_and_on_t_sample_by_sample(case, draw):
    network, event = awake(case[0]).double().eval(), case[1]
    x, t = draw(3, *event), torch.tensor([1, 5, 900])
    y = network(x, t)
    for i in range(3):
        alone = network(x[i : i + 1], t[i : i + 1])
        assert_close(y[i : i + 1], alone, rtol=1e-9, atol=1e-9)  # no sample sees its neighbours
        assert (network(x[i : i + 1], t[i : i + 1] + 1) - alone).abs().max() > 1e-5
    for place in range(x[0].numel()):
        moved = x.clone()
        moved.reshape(3, -1)[:, place] += 0.1
        assert ((network(moved, t) - y).abs().flatten(1).amax(1) > 1e-6).all()
        if place > 40:
            break


def test_every_pixel_can_reach_every_other(draw):
    # Attention at the lowest resolution, so that the field of view is the image.
    network = awake(UNet(28, patch=2)).double()
    x = draw(1, 1, 28, 28).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, torch.tensor([3]))[0, 0, 0, 0], x)
    assert (gradient != 0).all()


def test_every_parameter_learns_once_the_zeros_have_moved(case, draw):
    network, event = case
    x, t, y = draw(4, *event, dtype=torch.float32), torch.tensor([1, 5, 90, 900]), draw(4, *event, seed=1).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(2):  # the first step moves the zeroed layers off zero, so that the second reaches what is before
        optimizer.zero_grad()
        (network(x, t) - y).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    (network(x, t) - y).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_a_few_steps_fit_a_batch(case, draw):
    network, event = case
    x, t, y = draw(4, *event, dtype=torch.float32), torch.tensor([1, 5, 90, 900]), draw(4, *event, seed=1).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (network(x, t) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 16), (3, 32), (1, 14)])
def test_a_registered_network_is_sized_for_its_images(channels, side, draw):
    network = awake(NETWORKS["unet"](channels, side))
    x, t = draw(2, channels, side, side, dtype=torch.float32), torch.tensor([1, 5])
    assert network(x, t).shape == x.shape
    copy = NETWORKS["unet"](channels, side)
    copy.load_state_dict(network.state_dict())
    assert torch.equal(copy(x, t), network(x, t))


@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        (lambda: UNet(28, widths=(32, 64, 64), patch=2), ValueError, "image_size = 28: expected a multiple of 8, for"),
        (lambda: UNet(7), ValueError, "image_size = 7: expected a multiple of 2"),
        (lambda: UNet(8, widths=(32, 60)), ValueError, r"widths = \(32, 60\): expected multiples of 8"),
        (lambda: UNet(8, widths=()), ValueError, r"widths = \(\): expected multiples of 8"),
        (lambda: UNet(8, widths=(0, 8)), ValueError, r"widths = \(0, 8\): expected multiples of 8"),
        (lambda: UNet(8, blocks=0), ValueError, "blocks = 0: expected a whole number of at least 1"),
        (lambda: MLP(depth=0), ValueError, "depth = 0: expected a whole number of at least 1"),
        (lambda: MLP(depth=1.5), TypeError, "depth = 1.5: expected a whole number, got float"),
        (
            lambda: UNet(8)(torch.zeros(2, 1, 16, 16), torch.ones(2)),
            ValueError,
            r"x_t of shape \(2, 1, 16, 16\): expected \(batch, 1, 8, 8\)",
        ),
        (lambda: MLP()(torch.zeros(2, 3), torch.ones(2)), ValueError, r"x_t of shape \(2, 3\): expected \(batch, 2\)"),
    ],
)
def test_errors_name_argument_value_and_what_was_expected(fails, kind, message):
    with pytest.raises(kind, match=message):
        fails()


def test_in_mixed_precision_the_first_and_last_layer_see_grey_levels_apart():
    network = UNet(8, outputs=3)
    torch.nn.init.normal_(network.outward.weight, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name in ("inward", "outward", "middle"):
        layer = network.middle.conv_1 if name == "middle" else getattr(network, name)
        layer.register_forward_hook(lambda layer, x, y, name=name: seen.update({name: y.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.full((2, 1, 8, 8), 1 - 2 / 255), torch.tensor([1, 500]))
    assert seen == {"inward": torch.float32, "outward": torch.float32, "middle": torch.bfloat16}
    assert y.dtype == torch.float32
