"""Folders of jobs that were never trained, and the tables of a report."""

import csv
import json
import re
from itertools import dropwhile, takewhile

import torch
from omegaconf import OmegaConf

from ddpm_lightning.images import grid, save_png
from tests.helpers.configs import config_of


def fabricate(
    folder,
    number,
    *overrides,
    status="finished",
    best=None,
    steps=(50, 100),
    images=None,
    errors=None,
    logger=("logger=none",),
    **said,
):
    """A job's folder as train.py leaves it, without having trained."""
    seed = next((o for o in overrides if o.startswith("seed=")), "seed=0")
    run = folder / f"{number}_{','.join(overrides).replace('=', '_')}"
    run.mkdir(parents=True)
    config = config_of(*overrides, *logger, f"run_dir='{run}'")
    OmegaConf.save(config, run / "config.yaml", resolve=True)
    best = {"val/loss": 0.1, **(best or {})}
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train/loss", "train/wall_seconds", "train/loss_q1", *best])
        for step in steps:
            writer.writerow([step, 10 / step, step / 10, 0.2, *[""] * len(best)])
            writer.writerow([step, "", "", "", *[value * 100 / step for value in best.values()]])
    for step, row in (errors or {}).items():
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows.append({"step": step, **{f"mse_at_log_snr/{level}": value for level, value in row.items()}})
        with (run / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    if images is None:
        shade = int(seed.removeprefix("seed=")) * 9
        images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 8, 8) * 10 + shade
    save_png(grid(images), run / "samples" / "grid_0000100.png")
    summary = {
        "status": status,
        "steps": steps[-1],
        "wall_seconds": 20.0 + number,
        "parameters": 284_513,
        "processes": 1,
        "images_per_second": 1000.0,
        "best": best,
        "final": {key: 1.1 * value for key, value in best.items()},
        "overrides": list(overrides),
        **said,
    }
    if status:
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def rows_of(markdown, heading):
    """The rows of the first table of a section."""
    lines = markdown.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    table = [*takewhile(lambda line: line.startswith("| "), dropwhile(lambda line: not line.startswith("| "), lines))]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table][2:]
