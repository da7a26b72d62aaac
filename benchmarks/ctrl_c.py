"""Press Ctrl-C at random moments of a tiny run, once and twice, and resume each run that had passed its first validation.

python benchmarks/ctrl_c.py [--count 30] [--seed 0]

A press comes up to 0.7 s after a random event: the run's start, its first validation, a figure, or the checkpoint that
precedes the last figures; a second press follows within 0.7 s. A run is lost if it had passed its first validation and
does not resume. The exit code is 1 if a run is lost, ends with a traceback or does not say how to resume.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers.configs import TINY
from tests.helpers.forked import start_all

STEPS = 45
EVENTS = (
    "run/config.yaml",
    "run/checkpoints/best.ckpt",
    "run/samples/grid_0000010.png",
    "run/samples/grid_0000040.png",
    f"run/checkpoints/step_{STEPS:07d}.ckpt",
)
RUN = (
    "train.py",
    *(word for word in TINY if not word.startswith(("callbacks.checkpoint", "trainer.max_steps", "trainer.val"))),
    *("logger=none", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=10", "hydra.run.dir=run"),
    *("callbacks.sample_grid.every_n_steps=10", "sampler.num_steps=20"),
    *(f"callbacks.{name}=null" for name in ("raw_grid", "trajectory", "neighbors", "log_snr", "schedule_curves")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="runs for one press and for two (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    draw, faults = random.Random(options.seed), 0
    counted: dict[int, Counter[str]] = {1: Counter(), 2: Counter()}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2 * options.count):
            presses = 1 + i % 2
            moments = [[draw.choice(EVENTS), draw.uniform(0, 0.7)], [EVENTS[0], draw.uniform(0, 0.7)]][:presses]
            outcome, result = interrupted(Path(folder) / str(i), moments)
            counted[presses][outcome] += 1
            print(f"{i + 1}: {presses} press(es) after {moments[0][0]}: {outcome}", flush=True)
            if outcome.startswith("FAULT"):
                faults += 1
                print(json.dumps(result, indent=1), flush=True)
    for presses, outcomes in counted.items():
        print(f"{presses} press(es): " + ", ".join(f"{n} {what}" for what, n in sorted(outcomes.items())))
    return int(faults > 0)


def start(folder: Path, moments: list[list], *words: str) -> dict:
    """The outcome of a run that is interrupted these seconds after a file has appeared, and after the press before."""
    folder.mkdir(exist_ok=True)
    signals = [[event, seconds, signal.SIGINT] for event, seconds in moments]
    (result,) = start_all([{"argv": list(words or RUN), "cwd": str(folder), "signals": signals}])
    return result


def interrupted(folder: Path, moments: list[list]) -> tuple[str, dict]:
    """What became of an interrupted run."""
    result, run = start(folder, moments), folder / "run"
    if result["code"] == 0:
        return "finished before", result
    if "Traceback" in result["err"] or result["code"] != 130:
        return "FAULT: ended badly", result
    metrics = run / "metrics.csv"
    validated = (run / "checkpoints" / "best.ckpt").exists() or (metrics.exists() and "val/loss" in metrics.read_text())
    if not (run / "checkpoints" / "last.ckpt").exists():
        return ("FAULT: lost" if validated else "before the first validation, nothing saved"), result
    if "Resume with: python train.py resume=run" not in result["out"]:
        return "FAULT: does not say how to resume", result
    again = start(folder, [], "train.py", "resume=run")
    summary = json.loads((run / "summary.json").read_text())
    if again["code"] or (summary["status"], summary["steps"]) != ("finished", STEPS):
        return "FAULT: does not resume", again
    return f"{'after' if validated else 'before'} the first validation, resumed to the end", result


if __name__ == "__main__":
    sys.exit(main())
