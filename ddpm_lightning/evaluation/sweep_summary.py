"""The summary of a sweep of `evaluate.py`."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm_lightning.evaluation.table import aligned
from ddpm_lightning.files import replace_file
from ddpm_lightning.plots import draw_comparison
from ddpm_lightning.runs.names import named
from ddpm_lightning.terminal import Activity

__all__ = ["SweepSummary"]

log = logging.getLogger(__name__)

# Protocol keys that evaluations may differ in, besides the sampler.
NAMED = (
    "checkpoint",
    "weights",
    "guidance_scale",
    "guidance_interval",
    "guidance_rescale",
    "autoguidance",
    "labels",
    "num_samples",
    "seeds",
    "reference",
    "reference_images",
    "features",
)
COLUMNS = ("fid", "kid", "inception_score", "precision", "recall")


class SweepSummary(Callback):
    """Writes the evaluations of a sweep to `comparison.md` and `comparison.png` in the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            with Activity("Comparing the evaluations"):
                _write(Path(config.hydra.sweep.dir))
        except Exception as error:  # the evaluations themselves are complete
            print(f"the evaluations could not be compared: {error}", file=sys.stderr, flush=True)


def _write(folder: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/evaluation.json"))]
    if not found:
        log.warning("%s has no evaluations to compare", folder)
        return
    named = sorted(zip(names_of(found), found, strict=True), key=lambda pair: (pair[0], _evaluations(pair[1])))
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for name, summary in named:
        fid = summary["metrics"]["fid"]
        curves.setdefault(name, []).append((_evaluations(summary), fid["value"], fid.get("spread", 0.0)))
    table = table_of([summary for _, summary in named])
    with replace_file(folder / "comparison.md") as file:
        file.write(table + "\n")
    protocol = named[0][1]["protocol"]
    metric = f"FID ({protocol['features'].split(' (')[0]}, {protocol['num_samples']:,} samples)"
    draw_comparison(folder / "comparison.png", curves, metric=metric)
    name, best = min(named, key=lambda pair: pair[1]["metrics"]["fid"]["value"])
    fid, steps = best["metrics"]["fid"]["value"], best["protocol"]["steps"]
    print("", *_lines_of([summary for _, summary in named]), sep="\n")
    print(f"\nBest FID (lower is better): {fid:.4g} with {name}, {steps} steps")
    print(f"{folder / 'comparison.md'}\n{folder / 'comparison.png'}", flush=True)


def _evaluations(summary: Mapping[str, Any]) -> int:
    return summary["protocol"]["network_evaluations_per_image"]


def _columns(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics that all evaluations have, with their best values."""
    columns = [name for name in COLUMNS if all(name in summary["metrics"] for summary in summaries)]
    return {
        name: (min if name in ("fid", "kid") else max)(summary["metrics"][name]["value"] for summary in summaries)
        for name in columns
    }


def _lines_of(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The evaluations as a table for a terminal, with a star at the best value of each column."""
    columns = _columns(summaries)
    rows = []
    for name, summary in zip(names_of(summaries), summaries, strict=True):
        values = [(summary["metrics"][column], best) for column, best in columns.items()]
        cells = [_value(row) + ("*" if row["value"] == best else " ") for row, best in values]
        rows.append([name, f"{_evaluations(summary):,}", *cells])
    yield from aligned(["sampler", "evaluations", *(f"{name} " for name in columns)], rows)
    yield "* best of the column"


def _value(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.4g}" + (f" ± {row['spread']:.2g}" if "spread" in row else "")


def table_of(summaries: list[dict[str, Any]]) -> str:
    """The evaluations as a Markdown table, with the best value of each column in bold."""
    columns = _columns(summaries)
    head = ["sampler", "steps", "evaluations", *columns, "images/s"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for name, summary in zip(names_of(summaries), summaries, strict=True):
        protocol = summary["protocol"]
        cells = [name, protocol["steps"], _evaluations(summary)]
        for column, best in columns.items():
            row = summary["metrics"][column]
            cells.append(f"**{_value(row)}**" if row["value"] == best else _value(row))
        cells.append(f"{summary['timing']['images_per_second_of_one_process']:.3g}")
        lines.append(f"| {' | '.join(_cell(str(cell)) for cell in cells)} |")
    shared = [key for key in NAMED if key not in _differing(summaries)]
    lines.append("\n" + "; ".join(_cell(f"{key}: {summaries[0]['protocol'].get(key)}") for key in shared))
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Escape text for a Markdown table."""
    plain = re.sub(r"[\\`\[\]|]", r"\\\g<0>", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _differing(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in NAMED if len({str(summary["protocol"].get(key)) for summary in summaries}) > 1]


def names_of(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sampler of each evaluation as on the command line, with the settings that differ between them, except the number of steps."""
    nodes = [dict(summary["protocol"]["sampler"]) for summary in summaries]
    names = [named("sampler", node).choice for node in nodes]
    values: dict[tuple[str, str], set[str]] = {}
    for name, node in zip(names, nodes, strict=True):
        for key, value in node.items():
            values.setdefault((name, key), set()).add(str(value))
    names_with_settings = []
    for name, node, summary in zip(names, nodes, summaries, strict=True):
        settings = [f"{k}={v}" for k, v in node.items() if k != "num_steps" and len(values[name, k]) > 1]
        rest = [f"{key}={summary['protocol'].get(key)}" for key in _differing(summaries)]
        names_with_settings.append(" ".join([name, *settings, *rest]))
    return names_with_settings
