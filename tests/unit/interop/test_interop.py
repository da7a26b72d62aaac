"""Folders of diffusers, in and out, against diffusers itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.interop import from_diffusers, images_of, to_diffusers
from ddpm_lightning.models import DiT, UNet

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


# The configs of google/ddpm-cifar10-32 and google/ddpm-celebahq-256.
SHARED = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}

CIFAR10 = {
    **SHARED,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "sample_size": 32,
}

CELEBAHQ = {
    **SHARED,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}

OTHER = {  # what the two do not have
    "attention_head_dim": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 1,
    "out_channels": 2,
    "num_class_embeds": 3,
    "sample_size": 12,
}


def scramble(model, std=0.03):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def pipeline(folder, config, **scheduler):
    model = scramble(diffusers.UNet2DModel(**config))
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(**scheduler)).save_pretrained(folder)
    return model


@pytest.mark.parametrize(("config", "size"), [(CIFAR10, 32), (CELEBAHQ, 32), (OTHER, 12)])
def test_the_same_output_in_both_directions(config, size, tmp_path):
    theirs = pipeline(tmp_path / "in", config)
    denoiser = from_diffusers(tmp_path / "in")
    x = torch.randn(1, config["in_channels"], size, size)
    labels = torch.tensor([2]) if "num_class_embeds" in config else None
    for t in (0, 17, 999):
        with torch.no_grad():
            expected = theirs(x, t, class_labels=labels).sample
            got = denoiser.model(x, torch.tensor([t]), labels)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    to_diffusers(denoiser, tmp_path / "out", image_size=images_of(tmp_path / "in")["image_size"])
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out").unet
    with torch.no_grad():
        torch.testing.assert_close(
            back(x, 17, class_labels=labels).sample, theirs(x, 17, class_labels=labels).sample, rtol=1e-5, atol=1e-5
        )
    again = from_diffusers(tmp_path / "out")
    assert again.model.plan == denoiser.model.plan
    assert repr(again.model) == repr(denoiser.model)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in denoiser.state_dict().items())
    assert images_of(tmp_path / "out") == images_of(tmp_path / "in")


def test_attention_under_its_old_names_and_a_pickled_state(tmp_path):
    pipeline(tmp_path / "new", OTHER)
    pipeline(tmp_path / "old", OTHER)
    unet = tmp_path / "old" / "unet"
    state = load_file(unet / "diffusion_pytorch_model.safetensors")
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        state = {key.replace(new, old): value for key, value in state.items()}
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, unet / "diffusion_pytorch_model.bin")
    one, other = (from_diffusers(tmp_path / name).state_dict() for name in ("new", "old"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_no_label_is_added_as_zeros(tmp_path):
    pipeline(tmp_path / "in", OTHER)
    model = from_diffusers(tmp_path / "in").model
    assert (model.num_classes, len(model.class_embedding.weight)) == (3, 4)
    assert (model.class_embedding.weight[3] == 0).all()


@pytest.mark.parametrize(
    ("scheduler", "ours"),
    [
        ({}, schedules.linear()),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, schedules.quadratic()),
        ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}, schedules.cosine(100)),
        ({"beta_schedule": "sigmoid"}, schedules.sigmoid_beta()),
        ({"trained_betas": [0.1, 0.2, 0.9], "num_train_timesteps": 3}, schedules.from_betas([0.1, 0.2, 0.9])),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_schedules_and_predictions(scheduler, ours, prediction, tmp_path):
    theirs = diffusers.DDPMScheduler(**scheduler, prediction_type=prediction, variance_type="learned_range")
    model = scramble(diffusers.UNet2DModel(**OTHER))
    diffusers.DDPMPipeline(model, theirs).save_pretrained(tmp_path / "in")
    denoiser = from_diffusers(tmp_path / "in")
    assert denoiser.prediction == {"sample": "x0", "v_prediction": "v"}.get(prediction, prediction)
    assert denoiser.learned_variance
    torch.testing.assert_close(denoiser.schedule.alpha_bar, ours.alpha_bar)
    torch.testing.assert_close(denoiser.schedule.alpha_bar[1:], theirs.alphas_cumprod, rtol=1e-3, atol=1e-7)
    to_diffusers(denoiser, tmp_path / "out", image_size=[12, 12])
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out").scheduler
    torch.testing.assert_close(back.alphas_cumprod, ours.alpha_bar[1:], rtol=1e-3, atol=1e-7)
    assert (back.config.prediction_type, back.config.variance_type) == (prediction, "learned_range")
    assert torch.equal(from_diffusers(tmp_path / "out").schedule.alpha_bar, denoiser.schedule.alpha_bar)


def test_what_diffusers_has_no_place_for_is_refused(tmp_path):
    tiny = {"base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    for model, says in (
        (DiT(1, 1, hidden_size=16, depth=1, num_heads=2), "DiT has no counterpart"),
        (
            UNet(1, 1, **tiny, resblock_updown=True),
            "model.resblock_updown must be false, got true: diffusers has no other U-Net; export",
        ),
        (UNet(1, 1, **tiny, time_hidden_channels=8), "model.time_hidden_channels must be 32, got 8"),
        (UNet(1, 1, **tiny, num_heads=2, attention_levels=(0,)), "model.num_heads must be 1, got 2"),
        (UNet(1, 1, **{**tiny, "channel_multipliers": (2, 2)}), r"model.channel_multipliers\[0\] must be 1, got 2"),
        (UNet(1, 1, **tiny), "image_size must be a multiple of 2, got 9: diffusers does not pad"),
    ):
        with pytest.raises(UserError, match=says):
            to_diffusers(Denoiser(model, schedules.linear(4)), tmp_path / "out", image_size=[9, 8])
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        to_diffusers(Denoiser(UNet(1, 1, **tiny), schedules.linear(4)), tmp_path / "full")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DConditionModel"),
        ("act_fn", "mish"),
        ("time_embedding_type", "fourier"),
        ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"]),
        ("up_block_types", ["AttnUpBlock2D", "UpBlock2D"]),
        ("block_out_channels", [16, 40]),
        ("class_embed_type", "timestep"),
        ("attn_norm_num_groups", 4),
    ],
)
def test_networks_that_are_none_of_ours_are_named(key, value, tmp_path):
    pipeline(tmp_path, OTHER)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=rf"\b{key} must be .*, got ") as raised:
        from_diffusers(tmp_path)
    assert "\n" not in str(raised.value)


def test_damaged_folders_are_named(tmp_path):
    pipeline(tmp_path, OTHER)
    weights, config = tmp_path / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "unet" / "config.json"
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    whole = weights.read_bytes()

    def fails(says):
        with pytest.raises(UserError, match=says) as raised:
            from_diffusers(tmp_path)
        assert "\n" not in str(raised.value)

    weights.write_bytes(whole[: len(whole) // 2])
    fails("safetensors cannot be read .*: download the folder again")
    weights.unlink()
    fails("diffusion_pytorch_model.safetensors is missing: give the folder")
    save_file({"conv_in.weight": torch.zeros(1)}, weights)
    fails("cannot be read .KeyError: ")
    scheduler.write_text('{"beta_schedule": "exp"}')
    fails(": beta_schedule must be linear, scaled_linear, .* got 'exp'")
    scheduler.write_text('{"prediction_type": "flow"}')
    fails(": prediction_type must be epsilon, sample or v_prediction, got 'flow'")
    config.write_text("{")
    fails(r"config.json cannot be read .JSONDecodeError")
    config.unlink()
    fails("config.json is missing: give the folder of a DDPMPipeline")
