"""`python -m ddpm_lightning`: what it writes, and what it refuses."""

import pytest

from ddpm_lightning import schedules
from ddpm_lightning.__main__ import main
from ddpm_lightning.plots import FAMILIES


def test_the_picture_goes_where_it_is_told(tmp_path, capsys):
    path = tmp_path / "all.png"
    assert main(["schedules", "--out", str(path), "--num-steps", "2"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.stat().st_size > 10_000


def test_every_family_is_drawn():
    drawn = {name.partition(",")[0] for name in FAMILIES}
    lists = {"LearnedSchedule", "NoiseSchedule", "from_betas", "from_alpha_bar", "rescale_zero_terminal_snr"}
    assert drawn == {"linear_zero_snr", *schedules.__all__} - lists


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "command"),
        (["draw"], 2, "invalid choice: 'draw'"),
        (["time", "x"], 2, "did you mean times? see"),
        (["times", "x", "--step", "4"], 2, "unrecognized arguments: --step 4: did you mean --steps? see"),
        (["schedules", "--colour", "red"], 2, "--colour"),
        (["schedules", "--num-steps", "many"], 2, "invalid int value: 'many'"),
        (["schedules", "--num-steps", "1"], 1, "num_steps must be an integer of at least 2, got 1"),
        (["schedules", "--num-steps", "100000"], 1, "num_steps=100000: linear: "),
        (["schedules", "--out", "picture.jpg"], 1, "the suffix of --out must be .png, got '.jpg'"),
        (["schedules", "--out", "no/such/folder/a.png"], 1, "no/such/folder/a.png cannot be written"),
        (["report", ""], 1, "folder must be a run, a sweep, or a folder of these, got ''"),
        (["report", "", "--wandb"], 1, "folder must be a run, a sweep, or a folder of these, got ''"),
        (["evaluate-sweep"], 2, "the following arguments are required: folder"),
        (["evaluate-sweep", ""], 1, "folder must be a run, a sweep, or a folder of these, got ''"),
        (["evaluate-sweep", "gone"], 1, "the folder must contain finished runs of train.py with checkpoints, got gone"),
        (
            ["evaluate-sweep", "x", "ckpt_path=y"],
            1,
            "ckpt_path must be left out, since evaluate-sweep evaluates every run",
        ),
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


def test_an_interrupt_ends_in_one_word(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_lightning.plots.draw_schedules", interrupted)
    assert main(["schedules"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
