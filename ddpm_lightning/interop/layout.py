"""Our U-Net and schedule in the words of diffusers' configs, and each of our parameters in its names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.models import UNet
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["config_of", "names", "schedule_of", "scheduler_of", "settings_of"]

PREDICTION_TYPES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
# What UNet2DModel's config may say beside the settings that are read, with its defaults.
FIXED = {
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
}
BETA_SCHEDULES: dict[str, Callable[[int, float, float], NoiseSchedule]] = {
    "linear": lambda T, start, end: schedules.linear(T, beta_start=start, beta_end=end),
    "scaled_linear": lambda T, start, end: schedules.quadratic(T, beta_start=start, beta_end=end),
    "squaredcos_cap_v2": lambda T, start, end: schedules.cosine(T),
    "sigmoid": lambda T, start, end: schedules.sigmoid_beta(T, beta_start=start, beta_end=end),
}


def names(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each of our parameters with theirs, which it is the concatenation of."""

    def layer(mine: str, *theirs: str, bias: bool = True) -> Iterator[tuple[str, list[str]]]:
        for kind in ("weight", "bias") if bias else ("weight",):
            yield f"{mine}.{kind}", [f"{their}.{kind}" for their in theirs]

    def block(mine: str, theirs: str, skip: bool) -> Iterator[tuple[str, list[str]]]:
        for ours, name in BLOCK.items():
            if ours != "skip" or skip:
                yield from layer(f"{mine}.block.{ours}", f"{theirs}.{name}")

    def attention(mine: str, theirs: str) -> Iterator[tuple[str, list[str]]]:
        yield from layer(f"{mine}.attention.norm", f"{theirs}.group_norm")
        yield from layer(f"{mine}.attention.qkv", *(f"{theirs}.to_{part}" for part in "qkv"))
        yield from layer(f"{mine}.attention.out", f"{theirs}.to_out.0")

    blocks, base = settings["num_res_blocks"], settings["base_channels"]
    widths = [base * m for m in settings["channel_multipliers"]]
    levels, attending = len(widths), set(settings["attention_levels"])
    yield from layer("conv_in", "conv_in")
    yield from layer("time_embedding.net.0", "time_embedding.linear_1")
    yield from layer("time_embedding.net.2", "time_embedding.linear_2")
    if settings["num_classes"] is not None:
        yield from layer("class_embedding", "class_embedding", bias=False)
    number, channels, skips = 0, base, [base]
    for i, width in enumerate(widths):
        for j in range(blocks):
            yield from block(f"down.{number}", f"down_blocks.{i}.resnets.{j}", channels != width)
            if i in attending:
                yield from attention(f"down.{number}", f"down_blocks.{i}.attentions.{j}")
            number, channels = number + 1, width
            skips.append(channels)
        if i < levels - 1:
            yield from layer(f"down.{number}.resize.conv", f"down_blocks.{i}.downsamplers.0.conv")
            number += 1
            skips.append(channels)
    yield from block("middle_in", "mid_block.resnets.0", skip=False)
    yield from attention("middle_in", "mid_block.attentions.0")
    yield from block("middle_out", "mid_block.resnets.1", skip=False)
    for stage, i in enumerate(reversed(range(levels))):
        for j in range(blocks + 1):
            yield from block(f"up.{stage}.{j}", f"up_blocks.{stage}.resnets.{j}", channels + skips.pop() != widths[i])
            if i in attending:
                yield from attention(f"up.{stage}.{j}", f"up_blocks.{stage}.attentions.{j}")
            channels = widths[i]
        if i > 0:
            yield from layer(f"grow.{stage}.resize.conv", f"up_blocks.{stage}.upsamplers.0.conv")
    yield from layer("norm_out", "conv_norm_out")
    yield from layer("conv_out", "conv_out")


def settings_of(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """UNet's arguments from UNet2DModel's."""

    def refuse(key: str) -> UserError:
        return UserError(f"{path}: {key}={config.get(key)} is not a U-Net that this package has; it cannot be read")

    for key, allowed in FIXED.items():
        if key in config and config[key] not in allowed:
            raise refuse(key)
    widths = list(config.get("block_out_channels") or ())
    down, up = config.get("down_block_types") or (), config.get("up_block_types") or ()
    if not widths or any(width % widths[0] for width in widths):
        raise refuse("block_out_channels")
    if len(down) != len(widths) or set(down) - {"DownBlock2D", "AttnDownBlock2D"}:
        raise refuse("down_block_types")
    attention = [kind == "AttnDownBlock2D" for kind in down]
    if [kind == "AttnUpBlock2D" for kind in reversed(up)] != attention or set(up) - {"UpBlock2D", "AttnUpBlock2D"}:
        raise refuse("up_block_types")
    if config.get("resnet_time_scale_shift", "default") not in ("default", "scale_shift"):
        raise refuse("resnet_time_scale_shift")
    groups = config.get("norm_num_groups", 32)
    # With "scale_shift" the attention in the middle has no norm but the one that is asked for.
    plain = config.get("resnet_time_scale_shift", "default") == "default"
    if config.get("attn_norm_num_groups") not in ((None, groups) if plain else (groups,)):
        raise refuse("attn_norm_num_groups")
    return {
        "in_channels": config.get("in_channels", 3),
        "out_channels": config.get("out_channels", 3),
        "base_channels": widths[0],
        "channel_multipliers": [width // widths[0] for width in widths],
        "num_res_blocks": config.get("layers_per_block", 2),
        "attention_levels": [i for i, here in enumerate(attention) if here],
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
    """UNet2DModel's config, or the setting that it has no counterpart of."""
    settings = model.settings
    only = {"resblock_updown": False, "time_hidden_channels": None, "attention_out_bias": True}
    for key, value in only.items():
        if settings[key] != value:
            raise UserError(f"model.{key}={settings[key]}: diffusers' U-Net has none; export to safetensors")
    if settings["channel_multipliers"][0] != 1:
        raise UserError(
            f"model.channel_multipliers={list(settings['channel_multipliers'])}: diffusers' U-Net begins with 1; "
            "export to safetensors"
        )
    widths = [settings["base_channels"] * m for m in settings["channel_multipliers"]]
    attending = [i in settings["attention_levels"] for i in range(len(widths))]
    with_heads = {width for width, here in zip(widths, [*attending[:-1], True], strict=True) if here}
    heads, head_channels = settings["num_heads"], settings["head_channels"]
    if head_channels is None and heads > 1:
        if len(with_heads) > 1:
            raise UserError(f"model.num_heads={heads}: diffusers counts channels per head; export to safetensors")
        head_channels = with_heads.pop() // heads
    if any(side % model.multiple for side in size):
        raise UserError(
            f"images of {size[0]}x{size[1]} pixels are padded to multiples of {model.multiple} here, and not in diffusers; "
            "export to safetensors"
        )
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.35.0",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "block_out_channels": widths,
        "layers_per_block": settings["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attending],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attending)],
        "attention_head_dim": head_channels,
        "dropout": settings["dropout"],
        "num_class_embeds": None if model.num_classes is None else model.num_classes + 1,
        "norm_num_groups": settings["norm_groups"],
        "attn_norm_num_groups": settings["norm_groups"] if settings["scale_shift_norm"] else None,
        "norm_eps": settings["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if settings["scale_shift_norm"] else "default",
        "downsample_padding": settings["downsample_padding"],
        "flip_sin_to_cos": False,
        "freq_shift": settings["frequency_shift"],
    }


def schedule_of(config: Mapping[str, Any], path: Path) -> tuple[NoiseSchedule, str, bool]:
    """Schedule, prediction and whether the variance is learned, from DDPMScheduler's config."""
    kind, predicted = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    ours = {theirs: mine for mine, theirs in PREDICTION_TYPES.items()}
    if kind not in BETA_SCHEDULES and not config.get("trained_betas"):
        raise UserError(f"{path}: beta_schedule={kind} is unknown here: choose one of {', '.join(BETA_SCHEDULES)}")
    if predicted not in ours:
        raise UserError(f"{path}: prediction_type={predicted} is unknown: choose one of {', '.join(ours)}")
    try:
        if config.get("trained_betas"):
            schedule = schedules.from_betas(config["trained_betas"])
        else:
            steps, ends = (
                config.get("num_train_timesteps", 1000),
                (config.get("beta_start", 1e-4), config.get("beta_end", 0.02)),
            )
            schedule = BETA_SCHEDULES[kind](steps, *ends)
        if config.get("rescale_betas_zero_snr"):
            schedule = schedules.rescale_zero_terminal_snr(schedule)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error
    return schedule, ours[predicted], config.get("variance_type", "fixed_small") in ("learned", "learned_range")


def scheduler_of(denoiser: Denoiser) -> dict[str, Any]:
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
