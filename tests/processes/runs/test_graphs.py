"""CUDA graphs in two processes, with a recorder that runs the function at each replay."""

import torch

from tests.helpers.scripts import torchrun

TWICE = """
import sys
import torch
from tests.runs.runs.test_graphs import train

for graphed in (False, True):
    folder = f"{sys.argv[1]}/{graphed}"
    run, weights = train(folder, graphed, "trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", "model.dropout=0.1")
    assert run.trainer.world_size == 2
    if graphed:
        assert len(run.module._graphs) == 1
        assert run.module._average._flat
    torch.save(weights, f"{folder}_{run.trainer.global_rank}.pt")
"""


def test_gradients_are_averaged_after_the_replay(tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    (done,) = torchrun(script, tmp_path, cwd=tmp_path)
    assert done["code"] == 0, done["err"][-2000:]
    plain, *others = (torch.load(tmp_path / f"{graphed}_{rank}.pt") for graphed in (False, True) for rank in (0, 1))
    assert all(torch.equal(value, weights[name]) for weights in others for name, value in plain.items())
