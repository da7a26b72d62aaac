"""What `sample.py` does."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm_lightning import viewer
from ddpm_lightning.data.source import in_turn
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import save_image, save_png
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.runs.editing import edit_images
from ddpm_lightning.runs.names import weights_in_words
from ddpm_lightning.runs.out_dir import claim_out_dir, replace_files
from ddpm_lightning.runs.process_group import ProcessGroup, join_process_group
from ddpm_lightning.runs.sampling_setup import SamplingSetup, prepare_sampling
from ddpm_lightning.runs.schema import Sampling, check_types
from ddpm_lightning.sheets import Picture, captions_of, contact_sheet
from ddpm_lightning.terminal import Activity

__all__ = ["sample"]

_FILES = re.compile(
    r"\d{5,}\.(png|tiff)|grid\.png|scatter\.png|reverse_process\.html|labels\.csv|samples\.np[yz]", re.ASCII
)


def sample(config: DictConfig) -> Path:
    """Sample images, or what else the model was trained on, from a checkpoint, and return the folder that they were written to.

    Image i's noise depends on the seed and on i only, whatever the batch size and the device. The processes that torchrun
    or SLURM started sample the batches in turn, and rank zero writes all images.

    Raises:
        UserError: for a checkpoint or a setting that cannot be used.
    """
    _check(config)
    with join_process_group() as group:
        with Activity("Loading the checkpoint"):
            setup = prepare_sampling(config, group)
        if config.ckpt_path is None and group.rank == 0:
            print(f"Sampling from the newest run: {setup.path}", flush=True)
        if config.get("edit") is not None:
            return edit_images(config, setup, group)
        require_one_of("format", config.format, _formats(setup), hint=f"the model samples {setup.kind}")
        if config.format == "html":
            most, hint = viewer.most_images(setup.shape), "format=html shows every image at every step"
            require("num_samples", config.num_samples, f"1..{most}", hint=hint)
        out = claim_out_dir(config, setup.path, group, kind="samples", files=_FILES)
        samples = _sample_batches(config, setup, group)
        if group.rank == 0:
            with Activity("Writing the samples"):
                _write(samples, out, config, setup)
    return out


def _check(config: DictConfig) -> None:
    for key in ("num_samples", "batch_size"):
        require(key, config[key], "1..100000000")
    require("seed", config.seed, "0..")
    check_types(config, Sampling)


def _formats(setup: SamplingSetup) -> list[str]:
    """In which the samples can be written as what they are."""
    channels, dtype = setup.shape[0] if len(setup.shape) == 3 else 0, setup.values.dtype
    is_8_bit = channels in (1, 3) and dtype == "uint8"
    files = {
        "html": viewer.is_viewable(setup.shape),
        "png": is_8_bit or (channels == 1 and dtype == "uint16"),
        "tiff": channels == 1 and dtype != "uint8",
    }
    return ["grid", *(name for name, fits in files.items() if fits), "npz", "npy"]


def _sample_batches(config: DictConfig, setup: SamplingSetup, group: ProcessGroup) -> list[Tensor]:
    """All batches in order on rank zero; in each round every rank samples one, and sends it there.

    A batch is (B, C, ...), and with format=html the (B, F, 3, C, H, W) of `viewer.pixels_of`.
    """
    frames = _frames(config, setup) if config.format == "html" else None
    collected: list[Tensor] = []
    batches = torch.arange(config.num_samples).split(config.batch_size)
    with Activity("sampling", total=len(batches) * setup.steps, unit="steps") as activity:
        for first in range(0, len(batches), group.world_size):
            mine = None
            if first + group.rank < len(batches):
                work = config.seed, batches[first + group.rank].tolist(), activity.advance
                mine = viewer.pixels_of(setup.trajectory(*work), frames) if frames else setup.samples(*work)
            found = group.gather(mine)
            activity.advance(setup.steps * (len(found) - 1))
            collected += found
    return collected


def _frames(config: DictConfig, setup: SamplingSetup) -> list[viewer.Frame]:
    return viewer.choose_frames(setup.times, setup.denoiser.schedule, num_images=config.num_samples, shape=setup.shape)


def _page(pixels: Tensor, config: DictConfig, setup: SamplingSetup) -> str:
    facts = setup.facts(weights=config.weights, seed=config.seed)
    captions = viewer.captions_of(len(pixels), setup.labels, setup.data.get("class_names") or ())
    return viewer.render(pixels, _frames(config, setup), facts=facts, captions=captions)


def _write(samples: list[Tensor], out: Path, config: DictConfig, setup: SamplingSetup) -> None:
    """Write all files atomically, in place of those of an earlier sampling."""
    with replace_files(out, _FILES) as folder:
        if config.format == "html":
            with replace_file(folder / "reverse_process.html") as file:
                file.write(_page(torch.cat(samples), config, setup))
        else:
            facts = setup.facts(weights=config.weights, seed=config.seed)
            _write_files(torch.cat(samples), folder, config.format, setup, facts)
    print(
        f"Saved {config.num_samples} {setup.kind[:-1] if config.num_samples == 1 else setup.kind} to {out} "
        f"({weights_in_words(config.weights)} of {setup.path}, {setup.steps} steps)"
    )


def _write_files(samples: Tensor, out: Path, form: str, setup: SamplingSetup, facts: dict[str, str]) -> None:
    labels = None if setup.labels is None else in_turn(torch.tensor(setup.labels), range(len(samples)))
    array = setup.values.array(samples)
    if form == "npy":
        np.save(out / "samples.npy", array)
    elif form == "npz":
        held = {"points": lambda: array.reshape(len(array), -1), "images": lambda: array.transpose(0, 2, 3, 1)}
        arrays = {setup.kind: held.get(setup.kind, lambda: array)()}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        elif (y := in_turn(setup.condition, range(len(samples)))) is not None:
            named = y if isinstance(y, Mapping) else {"condition": y}
            arrays |= {name: rows.numpy() for name, rows in named.items()}
        np.savez_compressed(out / "samples.npz", **arrays)  # type: ignore[arg-type]
    elif form in ("png", "tiff"):
        for i, image in enumerate(array):
            given = {} if labels is None else {"label": str(int(labels[i]))}
            save_image(image, out / f"{i:05d}.{form}", {**facts, "image": str(i), **given})
        if labels is not None:
            rows = [f"{i:05d}.{form},{label}" for i, label in enumerate(labels.tolist())]
            (out / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    else:
        picture = _picture(samples, labels, setup)
        name = "scatter.png" if setup.kind == "points" else "grid.png"
        save_png(picture.pixels, out / name, {**facts, **picture.facts})


def _picture(samples: Tensor, labels: Tensor | None, setup: SamplingSetup) -> Picture:
    """All samples in one figure."""
    class_names = setup.data.get("class_names") or ()
    if setup.kind == "points":
        from ddpm_lightning.plots import Panel, draw_points  # and with it matplotlib

        names = captions_of(sorted(set(setup.labels or ())), class_names)
        return Picture(draw_points([[Panel(f"{len(samples):,} generated points", samples, labels)]], names=names), {})
    return contact_sheet(setup.values.normalize(samples), setup.condition, class_names=class_names)
