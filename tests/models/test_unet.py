import pytest
import torch

from ddpm_lightning.models import UNet
from ddpm_lightning.models.layers import Downsample, ResBlock, SelfAttention, TimeEmbedding

TINY = {"base_channels": 16, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 8}


def test_ho_et_als_cifar10_network_has_their_number_of_parameters():
    assert sum(p.numel() for p in UNet().parameters()) == 35_746_307


def test_the_output_is_zero_at_the_start_and_every_branch_adds_nothing():
    model = UNet(1, 1, **TINY)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
    assert torch.equal(model(x, t), torch.zeros(2, 1, 8, 8))
    h, emb = torch.randn(2, 16, 4, 4), torch.randn(2, 64)
    for part in model.modules():
        if isinstance(part, SelfAttention) and part.out.in_features == 16:
            assert torch.equal(part(h), h)
        if isinstance(part, ResBlock) and part.conv1.in_channels == part.conv2.out_channels == 16:
            assert torch.equal(part(h, emb), h)


def test_time_embedding_equals_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    embedding = TimeEmbedding(32, 8)
    embedding.net = torch.nn.ModuleList([torch.nn.Linear(1, 1)])  # only for its dtype
    embedding.net.forward = lambda x: x
    t = torch.tensor([0, 1, 17, 999])
    expected = get_timestep_embedding(t, 32, flip_sin_to_cos=False, downscale_freq_shift=1)
    torch.testing.assert_close(embedding(t), expected, rtol=1e-4, atol=1e-4)


def test_attention_equals_its_definition():
    layer = SelfAttention(8, num_heads=2, norm_groups=4)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 3, 5)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).chunk(3, -1)
    heads = []
    for i in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., i] @ k[..., i].transpose(1, 2) / 2, -1)  # √d = 2
        heads.append(weights @ v[..., i])
    expected = x + layer.out(torch.cat(heads, -1)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_downsampling_pads_below_and_to_the_right():
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert layer(x).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]


def test_the_network_sees_the_time_and_keeps_images_apart():
    model = UNet(3, 3, dropout=0.5, **TINY).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 3, 8, 12).expand(2, -1, -1, -1)
    out = model(x, torch.tensor([3, 500]))
    assert (out[0] - out[1]).abs().max() > 1e-3
    torch.testing.assert_close(model(x[:1], torch.tensor([3]))[0], out[0], rtol=1e-4, atol=1e-5)


def test_labels_change_the_output():
    model = UNet(1, 1, num_classes=3, **TINY).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.tensor([5, 5])
    out = model(x, t, torch.tensor([0, 2]))
    assert (out[0] - out[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(base_channels=20), "20 channels cannot be split into norm_groups=32"),
        (lambda: UNet(base_channels=32, num_heads=3), "num_heads=3"),
        (lambda: UNet(attention_levels=(4,)), "attention_levels=.4. must lie within 0..3"),
        (lambda: UNet(dropout=1.0), "dropout=1.0"),
        (lambda: UNet(num_res_blocks=0), "num_res_blocks=0"),
        (lambda: UNet(1, 1, **TINY)(torch.zeros(1, 1, 9, 8), torch.zeros(1)), "9x8 pixels cannot be halved 1 times"),
        (
            lambda: UNet(1, 1, **TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1)),
            "3 channels, the model takes in_channels=1",
        ),
        (
            lambda: UNet(1, 1, **TINY)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long()),
            "labels were given",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
