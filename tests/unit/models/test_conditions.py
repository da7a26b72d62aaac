"""Networks on signals and videos, and with vectors and images for a condition."""

import pytest
import torch
from torch import nn

from ddpm_lightning.errors import UserError
from ddpm_lightning.models import MLP, DiT, UNet
from ddpm_lightning.models.layers import ResBlock, SelfAttention

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "dropout": 0.0}


def awake(model):
    """Weights that are nowhere zero, so that all of the network is seen in its output."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("size", [(12,), (13,), (8, 6), (3, 5, 6), (4, 8, 8)])
@pytest.mark.parametrize("updown", [False, True])
def test_a_unet_of_any_dims_gives_what_it_is_given(size, updown):
    model = awake(UNet(3, 6, dims=len(size), resblock_updown=updown, **SMALL))
    out = model(torch.randn(2, 3, *size), torch.tensor([0, 5]))
    assert out.shape == (2, 6, *size)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def middle(weight, dims):
    """A kernel of a signal as that of an image or video of one row, whose other rows are zero."""
    wide = weight.new_zeros(*weight.shape[:2], *[weight.shape[-1]] * dims)
    wide[(..., *[weight.shape[-1] // 2] * (dims - 1), slice(None))] = weight
    return wide


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [ResBlock, SelfAttention])
def test_a_signal_is_an_image_of_one_row(kind, dims):
    norm = lambda channels: nn.GroupNorm(4, channels)  # noqa: E731
    settings = {"norm": norm, "dims": 1}
    if kind is ResBlock:
        narrow = awake(ResBlock(8, 8, emb_dim=6, dropout=0.0, **settings))
        wide = ResBlock(8, 8, emb_dim=6, dropout=0.0, **{**settings, "dims": dims})
        rest = (torch.randn(2, 6),)
    else:
        narrow, rest = awake(SelfAttention(8, num_heads=2, **settings)), ()
        wide = SelfAttention(8, num_heads=2, **{**settings, "dims": dims})
    state = {k: middle(v, dims) if v.ndim == 3 else v for k, v in narrow.state_dict().items()}
    wide.load_state_dict(state)
    x = torch.randn(2, 8, 10)
    expected = narrow(x.clone(), *rest)
    found = wide(x.reshape(2, 8, *[1] * (dims - 1), 10).clone(), *rest)
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-5, atol=1e-5)


NETWORKS = {
    "UNet": lambda **kind: UNet(1, 1, **SMALL, **kind),
    "DiT": lambda **kind: DiT(1, 1, hidden_size=16, depth=2, num_heads=2, **kind),
    "MLP": lambda **kind: MLP(1, 1, hidden_size=16, **kind),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors(name):
    model, t = awake(NETWORKS[name](condition_size=5)), torch.tensor([1, 2, 3])
    x = torch.randn(3, 1, 1, 1) if name == "MLP" else torch.randn(3, 1, 8, 8)
    y = torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t), model(x, t, model.null(y)))
        out = model(x, t, y)
        assert (out - model(x, t)).abs().max() > 1e-3
        torch.testing.assert_close(model(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"the condition must have shape \(5\) per sample, got \(4,\)"):
            model(x, t, torch.randn(3, 4))


@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_images(name):
    model, t = awake(NETWORKS[name](condition_channels=2)), torch.tensor([1, 2, 3])
    x, y = torch.randn(3, 1, 8, 8), torch.randn(3, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t), model(x, t, model.null(y)))
        out = model(x, t, y)
        assert (out - model(x, t)).abs().max() > 1e-3
        flat = torch.ones(3, 2, 1, 1) * torch.tensor([0.5, -2.0])[:, None, None]
        torch.testing.assert_close(model(x, t, flat), model(x, t, flat.expand(-1, -1, 8, 8)))  # resized
        with pytest.raises(ValueError, match=r"shape \(2, any, any\) per sample, got \(1, 4, 4\)"):
            model(x, t, y[:, :1])


def test_what_does_not_go_together():
    with pytest.raises(UserError, match=r"one kind of condition, got num_classes=10 and condition_size=5"):
        UNet(1, 1, num_classes=10, condition_size=5, **SMALL)
    with pytest.raises(UserError, match=r"dims must be an integer from 1 to 3, got 4"):
        UNet(1, 1, dims=4, **SMALL)
    with pytest.raises(ValueError, match=r"the data have 1 spatial axes, but the model has dims=2"):
        UNet(1, 1, **SMALL)(torch.zeros(1, 1, 8), torch.tensor([0]))
