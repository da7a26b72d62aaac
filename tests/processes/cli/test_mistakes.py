"""Wrong names on the command line."""

import pytest

from tests.helpers.scripts import script

MISTAKES = {
    "train.py model=unet_smal": "model=unet_smal does not exist: did you mean unet_small?",
    "train.py experiment=digit": "experiment=digit does not exist: did you mean digits?",
    "train.py experimnt=digits": "there is no key experimnt: did you mean experiment?",
    "train.py optimiser.lr=1": "there is no key optimiser: did you mean optimizer?",
    "train.py optimizer.lrr=1": "there is no key optimizer.lrr: did you mean lr?",
    "train.py lr=1": "there is no key lr: did you mean optimizer.lr?",
    "train.py trainer.max_step=3": "there is no key trainer.max_step: did you mean max_steps?",
    "train.py callbacks.ema.decai=0.9": "there is no key callbacks.ema.decai: did you mean decay?",
    "train.py callbacks.emma.decay=0.9": "there is no key callbacks.emma: did you mean ema?",
    "train.py modle=unet_small": "there is no key modle: did you mean model?",
    "train.py loss/time=uniform": "there is no key loss/time: did you mean loss/times?",
    "train.py loss.times=uniform": "loss/times is a config group: did you mean loss/times=uniform?",
    "train.py hydra.run.dirr=x": "there is no key hydra.run.dirr: did you mean dir?",
    "train.py ~optimiser": "~optimiser takes nothing away: did you mean optimizer?",
    "train.py ~loss=simpl": "~loss=simpl takes nothing away: did you mean simple?",
    "train.py ~optimizer": "nothing is chosen for optimizer: choose one of its files (adam, adamw",
    "train.py schedule=linear,cosine": "schedule=linear,cosine holds several values: give -m",
    "train.py -m schedule=linear,cosin": "schedule=cosin does not exist: did you mean cosine?",
    "train.py -m modle=a,b": "there is no key modle: did you mean model?",
    "train.py -sc install=csh": "-sc must be install=bash, install=zsh, install=fish, uninstall=bash",
    "sample.py sampler.num_step=3": "there is no key sampler.num_step: did you mean num_steps?",
    "sample.py schedule=linear": "sample has no config group schedule: (choose from sampler)",
    "evaluate.py num_sample=3": "there is no key num_sample: did you mean num_samples?",
    "evaluate.py featurs=inception": "there is no key featurs: did you mean features?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_wrong_name_is_told_with_the_nearest_one(line, tmp_path):
    name, *args = line.split()
    result = script(name, *args, cwd=tmp_path, timeout=30)
    assert result.returncode == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("error: ")
    assert MISTAKES[line] in said
    assert not any(tmp_path.iterdir())
