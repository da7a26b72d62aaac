"""The Tab key."""

import pytest

from ddpm_lightning.cli.completion import completions
from tests.helpers.command_line import CONF, files
from tests.helpers.configs import ROOT

KEYS = {
    "sch": ["schedule.", "schedule="],
    "loss": ["loss.", "loss/times=", "loss="],
    "schedule=c": ["schedule=constant", "schedule=cosine"],
    "loss/times=": [f"loss/times={name}" for name in files("loss/times")],
    "sweep=": [f"sweep={name}" for name in files("sweep")],
    "optimizer.l": ["optimizer.lr="],
    "callbacks.ema.": [f"callbacks.ema.{key}=" for key in ("_target_", "decay", "std", "warmup")],
    "callbacks.ema.decay=": ["callbacks.ema.decay=0.999"],
    "seed=": ["seed=0"],
    "compile=": ["compile=auto", "compile=false", "compile=graphs", "compile=true"],
    "model.checkpointing=": ["model.checkpointing=false", "model.checkpointing=true"],
    "prediction=": [f"prediction={name}" for name in ("edm", "epsilon", "flow", "v", "x0")],
    "data.num_classes=": [],
    "model.in_channels=": [],
    "~optim": ["~optimized_metric", "~optimizer", "~optimizer."],
    "+sched": ["+schedule="],
    "hydra/sweeper=b": ["hydra/sweeper=basic"],
    "hydra.run.d": ["hydra.run.dir="],
    "run_dir=do": ["run_dir=docs/"],
    "-m schedule=linear,co": ["schedule=linear,constant", "schedule=linear,cosine"],
    "schedule=cosine schedule.s": ["schedule.s="],
    "-m schedule=cosine,linear schedule.s": ["schedule.s="],
    "modle=x 'a b=[ optimizer.lr": ["optimizer.lr="],
    "modle": [],
}


@pytest.mark.parametrize("line", KEYS)
def test_a_word_is_completed(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    *words, word = line.split()
    assert completions([CONF], "train", words, word) == sorted(KEYS[line])
