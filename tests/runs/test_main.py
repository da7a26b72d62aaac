"""The likelihood of a run's checkpoint."""

import json

import pytest

from ddpm_lightning.__main__ import main


def test_the_likelihood_of_a_checkpoint(tiny_run, capsys):
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    assert main(["likelihood", str(checkpoint), "--num-images", "3"]) == 0
    said = json.loads((tiny_run / "likelihood" / "bits_per_dim.json").read_text())
    terms = said["bits_per_dim"]
    assert terms["prior"] + terms["diffusion"] + terms["decoder"] == pytest.approx(terms["total"])
    assert said["protocol"]["images"] == 3
    assert said["protocol"]["reverse_variance"] == "small"
    rows = (tiny_run / "likelihood" / "by_step.csv").read_text().splitlines()[1:]
    assert len(rows) == 1000
    assert sum(float(row.rsplit(",", 1)[1]) for row in rows) == pytest.approx(terms["total"] - terms["prior"], rel=1e-4)
    assert f"total      {terms['total']:.4f} ±" in capsys.readouterr().out
    assert (tiny_run / "likelihood" / "by_step.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--num-images", "0"], "num_images must be"),
        (["--weights", "best"], "weights must be ema or raw"),
        (["--variance", "x"], "variance must be"),
    ],
)
def test_what_the_likelihood_refuses(tiny_run, capsys, options, says):
    assert main(["likelihood", str(tiny_run / "checkpoints" / "last.ckpt"), *options]) == 1
    assert says in capsys.readouterr().err
