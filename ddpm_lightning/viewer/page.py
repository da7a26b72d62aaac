"""The viewer's page: frames of images, embedded as PNG sprite sheets."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import torch
from PIL import Image
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser, Guidance
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.viewer.frames import EPSILON_RANGE, Frame

__all__ = ["captions_of", "facts_of", "render", "sprite_sheet"]


def facts_of(
    sampler: Sampler,
    num_steps: int,
    denoiser: Denoiser,
    *,
    seed: int,
    guidance: Guidance,
    names: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """How images were sampled, by name, for a page or the metadata of a file.

    Args:
        sampler: the sampler.
        num_steps: its number of steps.
        denoiser: the denoiser.
        seed: of the noise.
        guidance: of classifier-free guidance.
        names: the names of "sampler" and "schedule" in the config; the sampler's class and no schedule if unknown.
    """
    facts = {
        "sampler": type(sampler).__name__,
        "steps": f"{num_steps:,} of T = {denoiser.schedule.num_steps:,}",
        "seed": str(seed),
        **(names or {}),
        "prediction": denoiser.prediction,
    }
    if denoiser.conditional or guidance.scale != 1:
        facts["guidance scale"] = f"{guidance.scale:g}"
    if guidance.scale == 1:
        return facts
    if guidance.interval is not None:
        facts["guidance at σ"] = " to ".join(f"{level:g}" for level in guidance.interval)
    return facts | ({"guidance rescaled by": f"{guidance.rescale:g}"} if guidance.rescale else {})


def captions_of(count: int, labels: Sequence[int] | None = None, names: Sequence[str] = ()) -> list[str]:
    """Each image's number, and where there are labels its label, used in turn, by its name where it has one."""
    captions = [f"sample {i}" for i in range(count)]
    if labels is None:
        return captions
    used = [names[label] if label < len(names) else f"label {label}" for label in labels]
    return [f"{caption}: {used[i % len(used)]}" for i, caption in enumerate(captions)]


def render(pixels: Tensor, frames: Sequence[Frame], *, facts: Mapping[str, str], captions: Sequence[str]) -> str:
    """The page, which needs no other file and no network; every text is plain text.

    A fragment such as `#frame=5` in its address opens it at that frame, counted from 0.

    Args:
        pixels: (B, F, 3, C, H, W) uint8, from `pixels_of`.
        frames: the F frames.
        facts: how the images were sampled, by name.
        captions: one for each of the B images.
    """
    total = frames[-1].step + 1
    if len(frames) < total:
        facts = {**facts, "shown": f"{len(frames)} of {total:,} timesteps"}
    rows = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()]
    data = {
        "frames": [[f.step, f.t, round(f.signal, 4), round(f.noise, 4)] for f in frames],
        "height": pixels.shape[-2],
        "width": pixels.shape[-1],
        "columns": _columns(len(frames)),
        "images": [
            {"caption": caption, "sheets": [_data_url(sprite_sheet(image[:, i])) for i in range(3)]}
            for caption, image in zip(captions, pixels, strict=True)
        ],
    }
    return Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8")).substitute(
        title="The reverse process" + (f" of {len(captions)} samples" if len(captions) > 1 else ""),
        facts="\n".join(rows),
        last=len(frames) - 1,
        range=f"{EPSILON_RANGE:g}",
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no "</script>" in a caption
    )


def sprite_sheet(images: Tensor) -> Tensor:
    """One image (C, H', W') with images (F, C, H, W) row by row in a nearly square grid without gaps, black where there is none."""
    columns = _columns(len(images))
    cells = torch.cat([images, images.new_zeros(-len(images) % columns, *images.shape[1:])])
    return cells.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _data_url(image: Tensor) -> str:
    array = image.permute(1, 2, 0).contiguous().numpy()
    file = BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(file, format="png", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
