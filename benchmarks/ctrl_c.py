"""Press Ctrl-C at random moments of a tiny run, once and twice, and resume each run that had passed its first validation.

    python benchmarks/ctrl_c.py [--count 30] [--seed 0]

The moments are spread evenly over the time that an uninterrupted run takes, from its start to its end; a second press
follows within a second. A run counts as lost if it had passed its first validation and does not resume. The exit code is
1 if one is lost, ends with a traceback or does not say how to resume.
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

STEPS = 60
RUN = (
    "train.py",
    *(word for word in TINY if not word.startswith(("callbacks.checkpoint", "trainer.max_steps", "trainer.val"))),
    *("logger=none", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=10", "hydra.run.dir=run"),
    *(f"callbacks.{name}.every_n_steps=20" for name in ("sample_grid", "raw_grid", "trajectory")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="runs for one press and for two (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    draw, faults = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        length = start(Path(folder) / "whole", [])["seconds"]
        print(f"an uninterrupted run takes {length:.1f} s")
        for presses in (1, 2):
            counted: Counter[str] = Counter()
            for i in range(options.count):
                moments = [draw.uniform(0, length), draw.uniform(0, 1)][:presses]
                outcome, result = interrupted(Path(folder) / f"{presses}_{i}", moments)
                counted[outcome] += 1
                if outcome.startswith("FAULT"):
                    faults += 1
                    print(moments, outcome, json.dumps(result, indent=1))
            print(
                f"{presses} press(es): " + ", ".join(f"{n} {what}" for what, n in sorted(counted.items())), flush=True
            )
    return int(faults > 0)


def start(folder: Path, moments: list[float], *words: str) -> dict:
    """The outcome of a run, interrupted these seconds after its start, and after the press before."""
    folder.mkdir(exist_ok=True)
    (folder / "started").touch()
    signals = [["started", moment, signal.SIGINT] for moment in moments]
    (result,) = start_all([{"argv": list(words or RUN), "cwd": str(folder), "signals": signals}])
    return result


def interrupted(folder: Path, moments: list[float]) -> tuple[str, dict]:
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
