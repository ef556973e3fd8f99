import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ddpm_nb.nets import UNet
from ddpm_nb.optimizers import OPTIMIZERS, Muon, muon, orthogonalized


@pytest.mark.parametrize("shape", [(32, 90), (90, 32), (16, 16), (1, 9)])
def test_orthogonalized_keeps_the_directions_and_levels_their_lengths(draw, shape):
    matrix = draw(*shape, seed=1)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonalized(matrix) @ vh.mT
    assert bool(((inside.diagonal() > 0.67) & (inside.diagonal() < 1.14)).all())
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9


def test_what_is_no_kernel_is_updated_as_by_adamw(draw):
    ours, theirs = (nn.Parameter(draw(7, seed=3).clone()) for _ in range(2))
    optimizers = (
        Muon([nn.Parameter(draw(3, 3, seed=1))], [ours], lr=0.01),
        torch.optim.AdamW([theirs], 0.01, weight_decay=0),
    )
    for step in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers):
            parameter.grad = draw(7, seed=10 + step)
            optimizer.step()
        assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-12)


def test_a_kernel_moves_along_all_its_directions_alike(draw):
    kernel = nn.Parameter(torch.zeros(8, 4, 3, 3).double())
    optimizer = Muon([kernel], [nn.Parameter(torch.zeros(1))], lr=0.1)
    uneven = torch.linspace(0.2, 1, 8).double()[:, None] * torch.linalg.qr(draw(36, 8, seed=1)).Q.mT
    kernel.grad = uneven.reshape(kernel.shape)
    optimizer.step()
    lengths = torch.linalg.svdvals(kernel.detach().reshape(8, 36)) / (0.1 * 0.3 * 6)  # √36, the longer side
    assert bool(((lengths > 0.6) & (lengths < 1.25)).all())


def test_every_parameter_of_a_network_is_updated_once():
    network = UNet(8, outputs=2)
    for make in OPTIMIZERS.values():
        groups = [p for group in make(network).param_groups for p in group["params"]]
        assert len(groups) == len({id(p) for p in groups}) == len(list(network.parameters()))
    ends = {id(p) for name, p in network.named_parameters() if name.startswith(("inward", "outward"))}
    assert not ends & {id(p) for p in muon(network).param_groups[0]["params"]}


def test_matrices_are_orthogonalized_together_as_they_are_alone(draw):
    matrices = draw(3, 8, 20, seed=1)
    together = orthogonalized(matrices)
    for matrix, found in zip(matrices, together):
        assert_close(found, orthogonalized(matrix), rtol=0.0, atol=1e-10)


def test_kernels_of_one_shape_and_of_several_each_take_their_own_step(draw):
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (4, 8, 1, 1)]
    gradients = [draw(*shape, seed=place) for place, shape in enumerate(shapes)]
    kernels = [nn.Parameter(torch.zeros(shape).double()) for shape in shapes]
    for kernel, gradient in zip(kernels, gradients):
        kernel.grad = gradient.clone()
    Muon(kernels, [nn.Parameter(torch.zeros(1))], lr=0.1).step()
    for kernel, gradient in zip(kernels, gradients):
        alone = nn.Parameter(torch.zeros_like(kernel))
        alone.grad = gradient.clone()
        Muon([alone], [nn.Parameter(torch.zeros(1))], lr=0.1).step()
        assert_close(kernel.detach(), alone.detach(), rtol=0.0, atol=0.02 * alone.abs().max().item())
        assert (kernel * gradient).sum() < 0
