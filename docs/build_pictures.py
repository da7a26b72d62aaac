"""Draws the pictures of these pages, in light and dark, from a run of `python train.py`: `python docs/build_pictures.py RUN`.

The figure of samplers shows the table of evaluation.md.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ddpm_lightning import DDIM, Denoiser, Step, load_denoiser
from ddpm_lightning.images import SeededNoise, as_pictures, save_gif, save_png
from ddpm_lightning.plots import draw_comparison, draw_schedules
from ddpm_lightning.sheets import Picture, contact_sheet, sheet
from ddpm_lightning.viewer import beside_estimates, evenly

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
ROWS = ["xₜ", "x̂₀(xₜ)"]


def steps_of(denoiser: Denoiser, count: int) -> list[Step]:
    """The reverse process of the first images of a seed, in 50 steps of DDIM."""
    noise = SeededNoise(0, range(count))
    x, sampler = noise.draw((1, 8, 8)), DDIM(50)
    return list(beside_estimates(denoiser.schedule.num_steps, x, sampler.trajectory(denoiser, x, randn=noise)))


def frame(step: Step) -> Picture:
    """Eight images, above the estimates of x_0."""
    return sheet(as_pictures(torch.cat([step.x, step.x0])), columns=8, names=ROWS, title=f"t = {step.t:.7g}", cell=64)


def strip(steps: list[Step]) -> Picture:
    """As a run draws it."""
    cells = torch.stack([torch.stack([step.x, step.x0], dim=1) for step in steps], dim=2)
    return sheet(
        as_pictures(cells.flatten(0, 2)),
        columns=len(steps),
        names=[text for i in range(len(cells)) for text in (f"sample {i}   {ROWS[0]}", ROWS[1])],
        heads=[f"t = {step.t:.7g}" for step in steps],
        row_breaks=range(2, 2 * len(cells), 2),
    )


def samplers() -> Iterator[tuple[str, list[tuple[float, float, float]]]]:
    """(evaluations, FID, 0) by sampler, from the table of evaluation.md."""
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    table, _, _ = text[text.index("| sampler | 10") :].partition("\n\n")
    head, *rows = re.findall(r"^\| (?:sampler|`).*\|$", table, re.MULTILINE)
    counts = [int(count.replace(",", "")) for count in re.findall(r"[\d,]+", head)]
    for row in rows:
        name, *cells = (cell.strip(" `*") for cell in row.strip("|").split("|"))
        found = [(count, float(cell.split()[0]), 0.0) for count, cell in zip(counts, cells, strict=True) if cell]
        own = re.findall(r"\((\d+)\)", row)  # evaluations that differ from the column's
        yield name, [(float(own[i]) if own else count, fid, 0.0) for i, (count, fid, _) in enumerate(found)]


def main() -> None:
    denoiser = load_denoiser(sys.argv[1])
    eight, four = steps_of(denoiser, 8), steps_of(denoiser, 4)
    samples = contact_sheet(steps_of(denoiser, 64)[-1].x)
    save_png(samples.pixels, PICTURES / "digits_grid.png", samples.facts)
    for theme, suffix in (("light", ""), ("dark", "_dark")):
        os.environ["DDPM_THEME"] = theme
        draw_schedules(PICTURES / f"schedules{suffix}.png")
        draw_comparison(
            PICTURES / f"digits_samplers{suffix}.png", dict(samplers()), metric="FID (own classifier, 1,500 samples)"
        )
        save_gif([frame(eight[i]).pixels for i in evenly(len(eight), 26)], PICTURES / f"digits_trajectory{suffix}.gif")
        drawn = strip([four[i] for i in evenly(len(four), 11)])
        save_png(drawn.pixels, PICTURES / f"digits_trajectory{suffix}.png", drawn.facts)


if __name__ == "__main__":
    main()
