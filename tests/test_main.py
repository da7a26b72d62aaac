"""`python -m ddpm_lightning`: what it writes, and what it refuses."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from ddpm_lightning import schedules
from ddpm_lightning.__main__ import main
from ddpm_lightning.plots import FAMILIES
from tests.conftest import ROOT


def test_schedules_are_drawn(tmp_path):
    command = [sys.executable, "-m", "ddpm_lightning", "schedules", "--num-steps", "100"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "schedules.png\n"), done.stderr
    with Image.open(tmp_path / "schedules.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # curves, not an empty page


def test_the_picture_goes_where_it_is_told(tmp_path, capsys):
    path = tmp_path / "all.png"
    assert main(["schedules", "--out", str(path), "--num-steps", "2"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.stat().st_size > 10_000


def test_every_family_is_drawn():
    drawn = {name.partition(",")[0] for name in FAMILIES}
    lists = {"NoiseSchedule", "from_betas", "from_alpha_bar", "rescale_zero_terminal_snr"}
    assert drawn == {"linear_zero_snr", *schedules.__all__} - lists


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "command"),
        (["draw"], 2, "invalid choice: 'draw'"),
        (["schedules", "--colour", "red"], 2, "--colour"),
        (["schedules", "--num-steps", "many"], 2, "invalid int value: 'many'"),
        (["schedules", "--num-steps", "1"], 1, "num_steps=1 gives no curve: give 2 or more"),
        (["schedules", "--num-steps", "100000"], 1, "num_steps=100000 is too many for linear"),
        (["schedules", "--out", "picture.jpg"], 1, "--out picture.jpg is no PNG: give a name that ends in .png"),
        (["schedules", "--out", "no/such/folder/a.png"], 1, "no/such/folder/a.png cannot be written"),
    ],
)
def test_mistakes_end_in_one_sentence(argv, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        got = main(argv)
    except SystemExit as end:  # argparse's own
        got = end.code
    printed = capsys.readouterr()
    assert got == code
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not list(tmp_path.iterdir())


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
        (["--num-images", "0"], "num_images=0"),
        (["--weights", "best"], "weights=best"),
        (["--variance", "x"], "variance=x"),
    ],
)
def test_what_the_likelihood_refuses(tiny_run, capsys, options, says):
    assert main(["likelihood", str(tiny_run / "checkpoints" / "last.ckpt"), *options]) == 1
    assert says in capsys.readouterr().err
