"""Compare loss curves of 50 steps in float64 with the golden file or another commit.

python benchmarks/curves.py                     prints each curve's largest relative difference from tests/golden/curves.json
python benchmarks/curves.py --against COMMIT    compares with another commit instead
python benchmarks/curves.py --write             writes tests/golden/curves.json

A curve is the loss of a small network at each step of an experiment with one prediction type; data, order, t, ε, loss,
gradient, clipping and optimizer are the run's own. In float64, machines differ by 1e-16 per operation and by less than
1e-9 after 50 steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from ddpm_lightning.data.source import Share
from ddpm_lightning.runs.build import build_module
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.seeds import derive

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "curves.json"
STEPS, BATCH = 50, 16
EXPERIMENTS = (
    "digits",
    "digits_conditional",
    "digits_cosine_v",
    "digits_learned_variance",
    "digits_super_resolution",
    "two_moons",
)
PREDICTIONS = ("epsilon", "x0", "v", "flow")
SMALL = {"model.hidden_size=16": ("two_moons",), "model.base_channels=8 model.norm_groups=4": EXPERIMENTS[:-1]}


def names() -> list[str]:
    """The curves, by experiment and prediction."""
    return [f"{experiment} {prediction}" for experiment in EXPERIMENTS for prediction in PREDICTIONS]


def curve(name: str) -> list[float]:
    """The losses of a curve."""
    experiment, prediction = name.split()
    small = [text for texts, which in SMALL.items() if experiment in which for text in texts.split()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "train",
            [
                f"experiment={experiment}",
                f"prediction={prediction}",
                *small,
                "lr_scheduler.total_iters=5",
                "run_dir=unused",
            ],
        )
    torch.manual_seed(0)
    module = build_module(config).double()
    data = build("data", config.data)
    data.setup()
    optimizers = module.configure_optimizers()
    optimizer, rates = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    loader = data.source.train_loader(Share(BATCH), torch.device("cpu"))
    losses: list[float] = []
    while len(losses) < STEPS:
        for batch in loader:
            torch.manual_seed(derive(0, "step", len(losses), 0))
            given = data.on_after_batch_transfer(batch, 0)
            loss = module.training_step(given._replace(x0=given.x0.double()), 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(optimizer, 1.0, "norm")
            optimizer.step()
            rates.step()
            losses.append(loss.item())
            if len(losses) == STEPS:
                break
    return losses


def difference(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def at(commit: str) -> Mapping[str, list[float]]:
    """The curves of another commit, computed with its code and this file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tree"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", folder, commit], check=True, capture_output=True
        )
        try:
            script = folder / "benchmarks" / "curves.py"
            script.write_text(Path(__file__).read_text())
            command = [sys.executable, script, "--print"]
            told = subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
            )
            return json.loads(told.stdout)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--print", action="store_true", help="the curves as JSON")
    parser.add_argument("--against", metavar="COMMIT")
    given = parser.parse_args()
    others = (
        {} if given.write or given.print else at(given.against) if given.against else json.loads(GOLDEN.read_text())
    )
    ours = {name: curve(name) for name in names()}
    if given.print:
        print(json.dumps(ours))
    elif given.write:
        GOLDEN.parent.mkdir(exist_ok=True)
        lines = [
            f"  {json.dumps(name)}: {json.dumps([float(f'{loss:.12g}') for loss in losses])}"
            for name, losses in ours.items()
        ]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    else:
        for name, losses in ours.items():
            print(f"{name:<36}{difference(losses, others[name]):10.1e}")


if __name__ == "__main__":
    main()
