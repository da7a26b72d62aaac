import math

import pytest
import torch
from hydra.utils import instantiate

from ddpm_lightning.models import DiT, dit
from ddpm_lightning.models.dit import positions
from tests.helpers.configs import config_of

TINY = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}


def scrambled(model, std=0.2):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def size(model):
    return sum(p.numel() for p in model.parameters())


def linear(inputs, outputs):
    return (inputs + 1) * outputs


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_sizes_are_the_papers(width, depth, heads, millions):
    """Peebles & Xie 2023, Table 1: on latents of four channels, with 1,000 classes and a learned variance."""
    with torch.device("meta"):
        model = DiT(4, 8, hidden_size=width, depth=depth, num_heads=heads, num_classes=1000)
    w = width
    block = linear(w, 3 * w) + linear(w, w) + linear(w, 4 * w) + linear(4 * w, w) + linear(w, 6 * w)
    embeddings = linear(4 * 2 * 2, w) + linear(256, w) + linear(w, w) + 1001 * w
    assert size(model) == embeddings + depth * block + linear(w, 2 * w) + linear(w, 8 * 2 * 2)
    assert round(size(model) / 1e6) == millions


def test_the_largest_has_the_number_that_the_papers_code_prints():
    """There the table of 16×16 positions is counted as a parameter too."""
    with torch.device("meta"):
        model = DiT(4, 8, hidden_size=1152, depth=28, num_heads=16, num_classes=1000)
    assert size(model) + 16 * 16 * 1152 == 675_129_632


@pytest.mark.parametrize(
    ("choice", "parameters"), [("dit_s", 32_865_056), ("dit_b", 130_315_808), ("dit_tiny", 822_752)]
)
def test_presets_on_the_papers_latents(choice, parameters):
    settings = ["data.channels=4", "data.num_classes=1000", "learned_variance=true", "run_dir=unused"]
    with torch.device("meta"):
        model = instantiate(config_of(f"model={choice}", *settings).model)
    assert (size(model), model.num_classes, model.out_channels) == (parameters, 1000, 8)


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
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_positions_are_the_sinusoids_of_column_and_row():
    table = positions(2, 3, 8, device=torch.device("cpu")).reshape(2, 3, 8)
    omega = torch.tensor([1.0, 0.01])
    for row in range(2):
        for column in range(3):
            expected = torch.cat([f(n * omega) for n in (column, row) for f in (torch.sin, torch.cos)])
            torch.testing.assert_close(table[row, column], expected)


def test_times_are_the_sinusoids_of_the_papers_code():
    model, seen = DiT(1, 1, **TINY), []
    model.time_embedding.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    t = torch.tensor([0, 1, 998, 999])
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(4, 1, 4, 4), t)
    angle = t[:, None].double() * 10000.0 ** (-torch.arange(128) / 128)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0].double(), torch.cat([angle.sin(), angle.cos()], dim=1), rtol=0, atol=1e-4)


def test_weights_begin_as_in_the_papers_code():
    model = DiT(3, 3, patch_size=4, hidden_size=128, depth=1, num_heads=2, num_classes=200)
    block = model.blocks[0]
    for layer, inputs, outputs in (
        (model.patches, 3 * 4 * 4, 128),
        (block.qkv, 128, 3 * 128),
        (block.out, 128, 128),
        (block.mlp[0], 128, 4 * 128),
        (block.mlp[3], 4 * 128, 128),
    ):
        bound = math.sqrt(6 / (inputs + outputs))
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for part in (model.time_embedding.net[0], model.time_embedding.net[2], model.class_embedding):
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in (block.modulation, model.modulation, model.out):
        assert not layer.weight.any()
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_the_output_is_zero_at_the_start_and_every_block_adds_nothing():
    model = DiT(1, 2, **TINY)
    assert torch.equal(model(torch.randn(2, 1, 8, 8), torch.tensor([0, 999])), torch.zeros(2, 2, 8, 8))
    h, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(model.blocks[0](h, condition), h)


def test_patches_are_put_back_where_they_came_from(monkeypatch):
    """Tokens [v, −v] of pixels ±1 have mean 0 and variance 1, which the last norm leaves as they are."""
    monkeypatch.setattr(dit, "positions", lambda height, width, dim, *, device: torch.zeros(1, dim))
    model = DiT(2, 2, patch_size=3, hidden_size=36, depth=1, num_heads=1)
    pixels = torch.eye(18)
    with torch.no_grad():
        model.patches.weight.copy_(torch.cat([pixels, -pixels]).reshape(36, 2, 3, 3))
        model.out.weight[:, :18] = pixels.reshape(2, 3, 3, 18).permute(1, 2, 0, 3).reshape(18, 18)
    x = torch.randn(2, 2, 9, 6).sign()
    torch.testing.assert_close(model(x, torch.tensor([3, 500])), x)


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


def test_images_know_nothing_of_each_other():
    model = scrambled(DiT(1, 1, num_classes=3, **TINY))
    x, t, y = torch.randn(4, 1, 6, 4), torch.tensor([0, 5, 500, 999]), torch.tensor([3, 0, 1, 2])
    order = torch.tensor([2, 0, 3, 1])
    out = model(x, t, y)
    torch.testing.assert_close(model(x[order], t[order], y[order]), out[order], rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, t, y)[1].square().sum(), x)
    assert gradient.flatten(1).any(dim=1).tolist() == [False, True, False, False]


def test_checkpointing_changes_no_gradient():
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = scrambled(DiT(1, 1, dropout=0.5, checkpointing=checkpointing, **TINY)).train()
        model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(None))
        torch.manual_seed(1)
        model(torch.ones(2, 1, 8, 8), torch.tensor([1, 5])).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(runs) == (3 if checkpointing else 1)  # once, then once and once again
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    model.eval()(torch.ones(2, 1, 8, 8), torch.tensor([1, 5])).sum().backward()
    assert len(runs) == 4


def test_dropout_is_for_training():
    model, x, t = scrambled(DiT(1, 1, dropout=0.5, **TINY)), torch.ones(2, 1, 8, 8), torch.tensor([1, 5])
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.equal(model(x, t), model(x, t))


def test_the_mlps_width_is_its_ratio():
    assert DiT(1, 1, **TINY, mlp_ratio=2.5).blocks[0].mlp[0].out_features == 40


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_narrow_types_are_near(dtype, tolerance):
    model, x, t = scrambled(DiT(1, 1, **TINY), 0.1), torch.randn(2, 1, 8, 8), torch.tensor([5, 999])
    stream = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: stream.append(out.dtype))
    with torch.autocast("cpu", dtype):
        narrow = model(x, t)
    wide = model(x, t)
    assert stream == [torch.float32, torch.float32]
    assert (narrow - wide).abs().max() < tolerance * wide.abs().max()
    assert model.to(dtype)(x.to(dtype), t).dtype == dtype


def test_the_layout_changes_nothing():
    model, x, t = scrambled(DiT(3, 3, **TINY)), torch.randn(2, 3, 6, 4), torch.tensor([5, 999])
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last), t), model(x, t))


def test_nothing_is_read_back_from_the_device():
    """On the meta device there is nothing to read."""
    with torch.device("meta"):
        model = DiT(1, 2, num_classes=3, checkpointing=True, **TINY)
        out = model(torch.empty(2, 1, 9, 7), torch.zeros(2).long(), torch.zeros(2).long())
    assert out.shape == (2, 2, 9, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(hidden_size=30), "hidden_size must be a multiple of 4, got 30"),
        (lambda: DiT(hidden_size=64, num_heads=3), "hidden_size must be a multiple of num_heads=3, got 64"),
        (lambda: DiT(patch_size=0), "patch_size must be an integer from 1 to 10000000, got 0"),
        (lambda: DiT(depth=0), "depth must be an integer from 1 to 1000, got 0"),
        (lambda: DiT(num_heads=0), "num_heads must be an integer from 1 to 10000000, got 0"),
        (lambda: DiT(num_classes=0), "num_classes must be .* or null, got 0"),
        (lambda: DiT(dropout=1.0), r"dropout must be a number in \[0, 1\), got 1.0"),
        (lambda: DiT(mlp_ratio=0.001), r"hidden_size \* mlp_ratio must be a number in \[1, inf\), got 0.384"),
        (lambda: DiT(1, 1, **TINY)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "3 channels, but the model has"),
        (
            lambda: DiT(1, 1, **TINY)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long()),
            "labels were given",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
