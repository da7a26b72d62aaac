import pytest
import torch
from torch.nn import functional as F

from ddpm_lightning.models import MLP


def scrambled(**options):
    torch.manual_seed(0)
    model = MLP(2, 2, hidden_size=16, depth=2, **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_the_first_output_is_zero_and_learning_begins_with_the_last_layer():
    torch.manual_seed(0)
    model = MLP()
    x, t = torch.randn(5, 2, 1, 1), torch.tensor([0, 1, 10, 500, 999])
    out = model(x, t)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad.abs().max() > 0} == {"out.weight", "out.bias"}


def test_the_forward_pass_is_the_formula():
    model = scrambled(num_classes=3).double()
    x, t, y = torch.randn(4, 2, 1, 1).double(), torch.tensor([0, 7, 400, 999]), torch.tensor([0, 1, 2, 1])
    p = dict(model.named_parameters())

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, h):
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return h * p[f"{name}.weight"] + p[f"{name}.bias"]

    points = x[:, :, 0, 0]
    angles = torch.cat([points * torch.pi * 2.0**k for k in (-1, 0, 1, 2)], dim=1)
    e = F.silu(model.time_embedding(t) + p["class_embedding.weight"][y])
    h = linear("first", torch.cat([points, angles.sin(), angles.cos()], dim=1))
    for i in range(2):
        at = f"blocks.{i}"
        h = h + linear(f"{at}.fc2", F.silu(linear(f"{at}.fc1", norm(f"{at}.norm", h)) + linear(f"{at}.emb", e)))
    torch.testing.assert_close(model(x, t, y)[:, :, 0, 0], linear("out", F.silu(norm("norm_out", h))))


def test_time_and_label_matter_and_no_label_is_the_last_row():
    model, x = scrambled(num_classes=3), torch.randn(4, 2, 1, 1)
    t = torch.full((4,), 50)
    labelled = [model(x, t, torch.full((4,), label)) for label in range(4)]
    for i, one in enumerate(labelled):
        for two in labelled[:i]:
            assert (one - two).abs().max() > 0.01
    assert torch.equal(model(x, t), labelled[3])
    assert (model(x, t) - model(x, t + 1)).abs().max() > 1e-4


def test_each_point_is_by_itself():
    model, x, t = scrambled().double(), torch.randn(6, 2, 1, 1).double(), torch.arange(6) * 100
    torch.testing.assert_close(model(x, t)[2:4], model(x[2:4], t[2:4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer .* got 0"),
        ({"hidden_size": 7}, "hidden_size must be a multiple of 2, got 7"),
        ({"depth": -1}, "depth must be an integer .* got -1"),
        ({"num_classes": 0}, "num_classes must be .* or null, got 0"),
        ({"in_channels": 1.5}, "in_channels must be an integer .* got 1.5"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(**options)


def test_images_and_labels_that_it_does_not_take_are_refused():
    model, t = scrambled(), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"x must be points of shape \(B, 2, 1, 1\), got \(1, 2, 8, 8\)"):
        model(torch.zeros(1, 2, 8, 8), t)
    with pytest.raises(ValueError, match="takes none"):
        model(torch.zeros(1, 2, 1, 1), t, t)
