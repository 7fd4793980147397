"""Muon on matrices that are the module's own weights."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from worker.layers import channels_last, conv
from worker.train.optimiser import MatrixMuon, as_matrix


def network() -> nn.Module:
    torch.manual_seed(0)
    return channels_last(nn.Sequential(conv(3, 8), nn.SiLU(), conv(8, 4, 1), nn.Flatten(2)))


def backward(module: nn.Module) -> None:
    module.zero_grad()
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    module(images).square().mean().backward()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_a_convolutions_matrix_multiplies_patches():
    layer = channels_last(conv(3, 8).requires_grad_(False))
    matrix = as_matrix(layer.weight)
    assert matrix.shape == (8, 27)
    patch = torch.randn(1, 3, 3, 3)
    expected = torch.nn.functional.conv2d(patch, layer.weight).flatten()
    torch.testing.assert_close(matrix @ patch.permute(0, 2, 3, 1).flatten(), expected)


def test_a_matrix_shares_its_weights_memory():
    for weight in (channels_last(conv(3, 8)).weight, conv(8, 4, 1).weight, nn.Linear(3, 5).weight):
        assert as_matrix(weight).data_ptr() == weight.data_ptr()


def test_a_module_that_is_not_channels_last_is_refused():
    """Its matrices would be copies, and it would never learn."""
    with pytest.raises(AssertionError, match="channels-last"):
        MatrixMuon(conv(3, 8), 0.1, 0.0)


def test_a_step_changes_every_weight_of_the_module():
    module = network()
    before, optimiser = weights(module), MatrixMuon(module, 0.1, 0.0)
    backward(module)
    optimiser.step(0.1)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))
    backward(module)
    first = sum(float(p.grad.square().sum()) for p in module.parameters())
    for _ in range(20):
        optimiser.step(0.02)
        backward(module)
    assert sum(float(p.grad.square().sum()) for p in module.parameters()) < first


def test_the_learning_rate_is_that_of_the_step():
    module = network()
    optimiser = MatrixMuon(module, 0.1, 0.1)
    backward(module)
    before = weights(module)
    optimiser.step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def test_an_update_is_nearly_orthogonal_whatever_the_gradients_scale():
    updates = []
    for scale in (1.0, 1e4):
        layer = nn.Linear(16, 16)
        nn.init.zeros_(layer.weight)
        optimiser = MatrixMuon(layer, 1.0, 0.0)
        gradient = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
        layer.weight.grad, layer.bias.grad = scale * gradient, torch.zeros(16)
        optimiser.step(1.0)
        updates.append(layer.weight.detach().clone())
    values = torch.linalg.svdvals(updates[0])
    assert float(values.max() / values.min()) < 4 < float(torch.linalg.cond(gradient))
    torch.testing.assert_close(updates[1], updates[0], atol=0.02, rtol=0.02)


def test_a_weight_without_a_gradient_is_left_alone():
    module = network()
    optimiser = MatrixMuon(module, 0.1, 0.0)
    backward(module)
    frozen = module[0].weight
    frozen.grad = None
    before = frozen.detach().clone()
    optimiser.step(0.1)
    assert torch.equal(frozen, before)


def test_the_state_comes_back():
    module = network()
    optimiser = MatrixMuon(module, 0.1, 0.0)
    for _ in range(3):
        backward(module)
        optimiser.step(0.1)
    state, results = deepcopy(optimiser.state_dict()), []
    for known in (state, None):
        twin = network()
        twin.load_state_dict(module.state_dict())
        restored = MatrixMuon(twin, 0.1, 0.0)
        if known:
            restored.load_state_dict(known)
        backward(twin)
        restored.step(0.1)
        results.append(weights(twin))
    backward(module)
    optimiser.step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(weights(module), results[0], strict=True))
    assert not torch.equal(results[0][0], results[1][0])
