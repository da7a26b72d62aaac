"""Wrong names on the command line."""

import pytest

from tests.helpers.scripts import script

MISTAKES = {
    "train.py model=unet_smal": "model=unet_smal does not exist: did you mean model=unet_small?",
    "train.py experiment=digit": "experiment=digit does not exist: did you mean experiment=digits?",
    "train.py experimnt=digits": "there is no key experimnt: did you mean experiment=digits?",
    "train.py optimiser.lr=1": "there is no key optimiser: did you mean optimizer.lr=1?",
    "train.py optimizer.lrr=1": "there is no key optimizer.lrr: did you mean optimizer.lr=1?",
    "train.py lr=1": "there is no key lr: did you mean optimizer.lr=1?",
    "train.py trainer.max_step=3": "there is no key trainer.max_step: did you mean trainer.max_steps=3?",
    "train.py callbacks.ema.decai=0.9": "there is no key callbacks.ema.decai: did you mean callbacks.ema.decay=0.9?",
    "train.py callbacks.emma.decay=0.9": "there is no key callbacks.emma: did you mean callbacks.ema.decay=0.9?",
    "train.py modle=unet_small": "there is no key modle: did you mean model=unet_small?",
    "train.py loss/time=uniform": "there is no key loss/time: did you mean loss/times=uniform?",
    "train.py loss.times=uniform": "loss/times is a config group: did you mean loss/times=uniform?",
    "train.py hydra.run.dirr=x": "there is no key hydra.run.dirr: did you mean hydra.run.dir=x?",
    "train.py callbacks=ema": "callbacks=ema selects only that part: omit it (callbacks=default includes it)",
    "train.py callbacks=scatter": "add it to a complete set (default, fid, points, post_hoc), as in callbacks=[default,scatter]",
    "train.py -m callbacks=default,checkpoint": "callbacks=checkpoint selects only that part: omit it",
    "train.py callbacks=defaut": "callbacks=defaut does not exist: did you mean callbacks=default? (choose from default, fid, points, post_hoc)",
    "train.py ~optimiser": "~optimiser removes nothing: did you mean ~optimizer?",
    "train.py ~loss=simpl": "~loss=simpl removes nothing: did you mean ~loss=simple?",
    "train.py ~optimizer": "optimizer must not be empty: remove ~optimizer (or optimizer=[]) from the command line, or choose from adam, adamw",
    "train.py schedule=linear,cosine": "schedule=linear,cosine has two values: add -m",
    "train.py -m schedule=linear,cosin": "schedule=cosin does not exist: did you mean schedule=cosine?",
    "train.py -m modle=a,b": "there is no key modle: did you mean model=a,b?",
    "train.py -sc install=csh": "-sc must be install=bash, install=zsh, install=fish, uninstall=bash",
    "sample.py edit.strength=0.5": "settings of edit require edit=...: add it, from deblur",
    "sample.py sampler.num_step=3": "there is no key sampler.num_step: did you mean sampler.num_steps=3?",
    "sample.py schedule=linear": "sample has no config group schedule: the checkpoint holds its own model, schedule and prediction",
    "evaluate.py num_sample=3": "there is no key num_sample: did you mean num_samples=3?",
    "evaluate.py featurs=inception": "there is no key featurs: did you mean features=inception?",
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
