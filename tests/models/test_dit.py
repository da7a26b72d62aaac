import pytest
import torch

from ddpm_lightning.models import DiT
from ddpm_lightning.models.dit import positions

TINY = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}


def scrambled(model, std=0.2):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_sizes_are_the_papers(width, depth, heads, millions):
    """Peebles & Xie 2023, Table 1: on latents of four channels, with 1,000 classes and a learned variance."""
    with torch.device("meta"):
        model = DiT(4, 8, hidden_size=width, depth=depth, num_heads=heads, num_classes=1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_the_output_equals_diffusers():
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=1,
        dropout=0.0,
        norm_eps=1e-6,
    ).eval()
    ours = scrambled(DiT(3, 6, **TINY, num_classes=5))
    ours.time_embedding.frequency_shift = 1  # theirs differs from the paper's code in this
    state = theirs.state_dict()

    def copy(to, layer):
        state[f"{to}.weight"].copy_(layer.weight)
        state[f"{to}.bias"].copy_(layer.bias)

    with torch.no_grad():
        copy("pos_embed.proj", ours.patches)
        for i, block in enumerate(ours.blocks):
            at = f"transformer_blocks.{i}"
            copy(f"{at}.norm1.linear", block.modulation)
            embedder = f"{at}.norm1.emb"
            for n, layer in ((1, ours.time_embedding.net[0]), (2, ours.time_embedding.net[2])):
                copy(f"{embedder}.timestep_embedder.linear_{n}", layer)
            # theirs are [cos, sin]
            first = state[f"{embedder}.timestep_embedder.linear_1.weight"]
            first.copy_(ours.time_embedding.net[0].weight.roll(128, 1))
            state[f"{embedder}.class_embedder.embedding_table.weight"].copy_(ours.class_embedding.weight)
            for name, weight, bias in zip(
                ("to_q", "to_k", "to_v"), block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True
            ):
                state[f"{at}.attn1.{name}.weight"].copy_(weight)
                state[f"{at}.attn1.{name}.bias"].copy_(bias)
            copy(f"{at}.attn1.to_out.0", block.out)
            copy(f"{at}.ff.net.0.proj", block.mlp[0])
            copy(f"{at}.ff.net.2", block.mlp[3])
        copy("proj_out_1", ours.modulation)
        copy("proj_out_2", ours.out)
    theirs.load_state_dict(state)
    x, t, y = torch.randn(3, 3, 8, 8), torch.tensor([0, 17, 999]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected, got = theirs(x, t, y).sample, ours(x, t, y)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_positions_are_the_sinusoids_of_column_and_row():
    table = positions(2, 3, 8, device=torch.device("cpu")).reshape(2, 3, 8)
    omega = torch.tensor([1.0, 0.01])
    for row in range(2):
        for column in range(3):
            expected = torch.cat([f(n * omega) for n in (column, row) for f in (torch.sin, torch.cos)])
            torch.testing.assert_close(table[row, column], expected)


def test_the_output_is_zero_at_the_start_and_every_block_adds_nothing():
    model = DiT(1, 2, **TINY)
    assert torch.equal(model(torch.randn(2, 1, 8, 8), torch.tensor([0, 999])), torch.zeros(2, 2, 8, 8))
    h, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(model.blocks[0](h, condition), h)


def test_patches_are_put_back_where_they_came_from():
    model = DiT(1, 1, patch_size=3, hidden_size=12, depth=1, num_heads=1)
    with (
        torch.no_grad()
    ):  # out ∘ patches is the identity up to the norm: each patch of the output looks at its own only
        model.out.weight.normal_()
    x = torch.randn(1, 1, 9, 6, requires_grad=True)
    model.blocks[0].modulation.weight.data.zero_()
    out = model(x, torch.tensor([3]))
    (gradient,) = torch.autograd.grad(out[0, 0, 4, 2], x)
    reached = torch.zeros(9, 6, dtype=torch.bool)
    reached[3:6, 0:3] = True
    assert torch.equal(gradient[0, 0] != 0, reached)


@pytest.mark.parametrize("image", [(9, 7), (1, 1), (8, 8), (2, 5)])
def test_any_size(image):
    model = scrambled(DiT(1, 1, **TINY))
    x = torch.randn(2, 1, *image)
    out = model(x, torch.tensor([5, 800]))
    assert out.shape == x.shape
    torch.testing.assert_close(model(x[1:], torch.tensor([800])), out[1:], rtol=1e-4, atol=1e-5)
    assert (out - model(x, torch.tensor([6, 800]))).abs().amax((1, 2, 3))[1] < 1e-5


def test_no_label_is_a_label_of_its_own():
    model = scrambled(DiT(1, 1, num_classes=3, **TINY))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 5])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([3, 3])))
    assert (model(x, t) - model(x, t, torch.tensor([0, 1]))).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = scrambled(DiT(1, 1, dropout=0.5, checkpointing=checkpointing, **TINY)).train()
        torch.manual_seed(1)
        model(torch.ones(2, 1, 8, 8), torch.tensor([1, 5])).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_bfloat16_is_near():
    model, x, t = scrambled(DiT(1, 1, **TINY), 0.1), torch.randn(2, 1, 8, 8), torch.tensor([5, 999])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(x, t)
    wide = model(x, t)
    assert (narrow - wide).abs().max() < 0.05 * wide.abs().max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(hidden_size=30), "hidden_size=30 holds no"),
        (lambda: DiT(hidden_size=64, num_heads=3), "hidden_size=64 cannot be split into num_heads=3"),
        (lambda: DiT(patch_size=0), "patch_size=0"),
        (lambda: DiT(dropout=1.0), "dropout=1.0"),
        (lambda: DiT(1, 1, **TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "3 channels, the model takes"),
        (
            lambda: DiT(1, 1, **TINY)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long()),
            "labels were given",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
