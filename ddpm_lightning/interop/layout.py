"""Translate our U-Net and schedule to diffusers' configs and parameter names, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.models import UNet
from ddpm_lightning.models.layers import require_multiple
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["config_of", "names", "schedule_of", "scheduler_of", "settings_of"]

PREDICTION_TYPES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
# diffusers' layers whose concatenation is one of ours: in the network, then in a part of a block.
NETWORK = {
    "conv_in": ["conv_in"],
    "time_embedding.net.0": ["time_embedding.linear_1"],
    "time_embedding.net.2": ["time_embedding.linear_2"],
    "class_embedding": ["class_embedding"],
    "norm_out": ["conv_norm_out"],
    "conv_out": ["conv_out"],
}
PART = {
    "block.norm1": ["resnets.{index}.norm1"],
    "block.conv1": ["resnets.{index}.conv1"],
    "block.emb": ["resnets.{index}.time_emb_proj"],
    "block.norm2": ["resnets.{index}.norm2"],
    "block.conv2": ["resnets.{index}.conv2"],
    "block.skip": ["resnets.{index}.conv_shortcut"],
    "attention.norm": ["attentions.{index}.group_norm"],
    "attention.qkv": ["attentions.{index}.to_q", "attentions.{index}.to_k", "attentions.{index}.to_v"],
    "attention.out": ["attentions.{index}.to_out.0"],
    "resize.conv": ["{way}samplers.0.conv"],
}
# The accepted values of UNet2DModel settings that `UNet` does not have.
FIXED = {
    "_class_name": ("UNet2DModel",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, 1.0),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
BETA_SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": schedules.linear,
    "scaled_linear": schedules.quadratic,
    "squaredcos_cap_v2": lambda T, beta_start, beta_end: schedules.cosine(T),
    "sigmoid": schedules.sigmoid_beta,
}


def names(model: UNet) -> dict[str, list[str]]:
    """Map each of our parameters to the diffusers parameters that it concatenates."""
    layers, last = {**NETWORK}, len(model.plan.widths) - 1
    for part in model.plan.parts():
        way = {"down": "down", "up": "up", "grow": "up"}.get(part.name.partition(".")[0], "mid")
        number = part.level if way == "down" else last - part.level
        block = "mid_block" if way == "mid" else f"{way}_blocks.{number}"
        for mine, theirs in PART.items():
            layers[f"{part.name}.{mine}"] = [f"{block}.{name.format(index=part.index, way=way)}" for name in theirs]
    paths = {name: name.rpartition(".") for name in model.state_dict()}
    return {name: [f"{layer}.{kind}" for layer in layers[path]] for name, (path, _, kind) in paths.items()}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert UNet2DModel's config to UNet's arguments."""
    for key, allowed in FIXED.items():
        if key in config:
            _require_ours(key, config[key], allowed)
    widths = config["block_out_channels"]
    for width in widths:
        require_multiple("block_out_channels", width, widths[0])
    down = config["down_block_types"]
    attending = [down[i : i + 1] == ["AttnDownBlock2D"] for i in range(len(widths))]
    for key, types in _block_types(attending).items():
        _require_ours(key, config[key], [types])
    groups = config.get("norm_num_groups", 32)
    # With "scale_shift" the middle attention has a norm only if set.
    plain = config.get("resnet_time_scale_shift", "default") == "default"
    _require_ours("attn_norm_num_groups", config.get("attn_norm_num_groups"), [None, groups] if plain else [groups])
    return {
        "in_channels": config.get("in_channels", 3),
        "out_channels": config.get("out_channels", 3),
        "base_channels": widths[0],
        "channel_multipliers": [width // widths[0] for width in widths],
        "num_res_blocks": config.get("layers_per_block", 2),
        "attention_levels": [i for i, here in enumerate(attending) if here],
        "head_channels": config.get("attention_head_dim", 8),
        "dropout": config.get("dropout", 0.0),
        "num_classes": None,
        "norm_groups": groups,
        "norm_eps": config.get("norm_eps", 1e-5),
        "scale_shift_norm": not plain,
        "downsample_padding": config.get("downsample_padding", 1),
        "frequency_shift": config.get("freq_shift", 0),
    }


def config_of(model: UNet, size: Sequence[int]) -> dict[str, Any]:
    """Convert a UNet to UNet2DModel's config.

    Raises:
        UserError: for a setting without a counterpart in diffusers.
    """
    plan, time = model.plan, model.time_embedding
    block, attention = model.middle_in.block, model.middle_in.attention
    assert attention is not None
    _require_theirs("dims", model.dims, 2)
    _require_theirs("condition_size", model.condition_size, None)
    _require_theirs("condition_channels", model.condition_channels, None)
    _require_theirs("resblock_updown", model.resblock_updown, False)
    _require_theirs("attention_out_bias", attention.out.bias is not None, True)
    _require_theirs("time_hidden_channels", time.net[0].out_features, time.net[2].out_features)
    _require_theirs("time_scale", float(time.scale), 1.0)
    _require_theirs("channel_multipliers[0]", plan.channel_multipliers[0], 1)
    head_channels = plan.head_channels
    if head_channels is None and plan.num_heads > 1:
        head_channels, *others = {part.out_channels // part.heads for part in plan.parts() if part.heads}
        if others:
            _require_theirs("num_heads", plan.num_heads, 1)
    for side in size:
        require_multiple(
            "image_size", side, model.multiple, hint="diffusers does not pad images; export to safetensors"
        )
    attending = [level in plan.attention_levels for level in range(len(plan.widths))]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.35.0",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "block_out_channels": plan.widths,
        "layers_per_block": plan.num_res_blocks,
        **_block_types(attending),
        "attention_head_dim": head_channels,
        "dropout": block.dropout.p,
        "num_class_embeds": None if model.num_classes is None else model.num_classes + 1,
        "norm_num_groups": plan.norm_groups,
        "attn_norm_num_groups": plan.norm_groups if block.scale_shift else None,
        "norm_eps": model.norm_out.eps,
        "resnet_time_scale_shift": "scale_shift" if block.scale_shift else "default",
        "downsample_padding": model.downsample_padding,
        "flip_sin_to_cos": False,
        "freq_shift": time.frequency_shift,
    }


def _block_types(attending: Sequence[bool]) -> dict[str, list[str]]:
    return {
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attending],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attending)],
    }


def _require_ours(key: str, value: Any, choices: Sequence[Any]) -> None:
    require_one_of(key, value, choices, hint="this package has no other U-Net")


def _require_theirs(setting: str, value: Any, choice: Any) -> None:
    require_one_of(f"model.{setting}", value, [choice], hint="diffusers has no other U-Net; export to safetensors")


def schedule_of(config: Mapping[str, Any]) -> tuple[NoiseSchedule, str, bool]:
    """Convert DDPMScheduler's config to noise schedule, prediction type and learned_variance."""
    predictions = {theirs: mine for mine, theirs in PREDICTION_TYPES.items()}
    predicted = config.get("prediction_type", "epsilon")
    require_one_of("prediction_type", predicted, [*predictions])
    if betas := config.get("trained_betas"):
        schedule = schedules.from_betas(betas)
    else:
        kind = config.get("beta_schedule", "linear")
        require_one_of("beta_schedule", kind, [*BETA_SCHEDULES])
        ends = {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
        schedule = BETA_SCHEDULES[kind](config.get("num_train_timesteps", 1000), **ends)
    if config.get("rescale_betas_zero_snr"):
        schedule = schedules.rescale_zero_terminal_snr(schedule)
    return schedule, predictions[predicted], config.get("variance_type", "fixed_small") in ("learned", "learned_range")


def scheduler_of(denoiser: Denoiser) -> dict[str, Any]:
    require_one_of(
        "prediction", denoiser.prediction, [*PREDICTION_TYPES], hint="diffusers has no other; export to safetensors"
    )
    betas = denoiser.schedule.betas
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": PREDICTION_TYPES[denoiser.prediction],
        "variance_type": "learned_range" if denoiser.learned_variance else "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
    }
