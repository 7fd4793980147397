"""The shared layers: how they start and what they leave alone."""

import pytest
import torch

from worker.layers import (
    Attention2d,
    ResidualBlock,
    Stack,
    channels_last,
    conv,
    module_dtype,
    num_parameters,
)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_keeps_size_and_variance(kernel):
    torch.manual_seed(0)
    layer = conv(64, 64, kernel).requires_grad_(False)
    out = layer(torch.randn(2, 64, 20, 30))
    assert out.shape == (2, 64, 20, 30)
    assert float(out[..., 1:-1, 1:-1].std()) == pytest.approx(1.0, abs=0.1)
    assert not layer.bias.any()


def test_a_gain_scales_the_start():
    torch.manual_seed(0)
    loud = conv(8, 8)
    torch.manual_seed(0)
    torch.testing.assert_close(conv(8, 8, gain=0.5).weight, 0.5 * loud.weight)


def test_residual_blocks_start_near_the_identity_but_not_at_it():
    torch.manual_seed(0)
    x = torch.randn(2, 32, 8, 8)
    change = (ResidualBlock(32).requires_grad_(False)(x) - x).std()
    assert 0.01 < float(change) < 0.3


def test_an_empty_stack_is_the_identity():
    x = torch.randn(1, 4, 3, 5)
    assert torch.equal(Stack(4, 0)(x), x)
    assert len(Stack(4, 3)) == 3


@pytest.fixture
def attention():
    torch.manual_seed(0)
    layer = Attention2d(16, head_channels=8)
    torch.nn.init.normal_(layer.out.weight, std=0.3)
    return layer.requires_grad_(False)


def test_attention_starts_as_the_identity_up_to_a_constant():
    x = torch.randn(2, 32, 4, 6)
    change = Attention2d(32)(x) - x
    torch.testing.assert_close(change, change[:1, :, :1, :1].expand_as(change))


def test_attention_mixes_cells_of_a_picture_without_regard_to_their_order(attention):
    x = torch.randn(2, 16, 4, 6)
    order = torch.randperm(24)
    mixed = attention(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(attention(x.flatten(2)[..., order].view_as(x)), mixed)


def test_attention_reaches_every_cell_of_its_own_picture_only(attention):
    x = torch.randn(2, 16, 4, 6)
    changed = x.clone()
    changed[0, 0, 0, 0] += 3
    moved = (attention(changed) - attention(x)).abs().amax(1)
    assert (moved[0] > 0).all() and not moved[1].any()


def test_channels_last_changes_the_layout_and_no_value():
    layer = conv(8, 8)
    before = layer.weight.detach().clone()
    assert channels_last(layer) is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, before)


def test_parameters_are_counted_and_typed():
    layer = conv(2, 3)
    assert num_parameters(layer) == 3 * 2 * 9 + 3
    assert module_dtype(layer) == torch.float32
    assert module_dtype(layer.bfloat16()) == torch.bfloat16
