"""The table of a study."""

from omegaconf import OmegaConf

from ddpm_lightning.evaluation.sweep_summary import names_of, table_of
from tests.helpers.configs import choices, config_of


def test_the_best_of_each_column_is_marked():
    def summary(fid, recall, eta):
        metrics = {"fid": {"value": fid}, "recall": {"value": recall, "spread": 0.1}}
        protocol = {
            "sampler": {"_target_": "ddpm_lightning.samplers.DDIM", "eta": eta, "clip": 1.0}, "steps": 10, "network_evaluations_per_image": 10,
            "weights": "ema", "checkpoint": "x", "num_samples": 5, "reference_images": 6, "reference": "train", "features": "f",
        }  # fmt: skip
        return {"metrics": metrics, "protocol": protocol, "timing": {"images_per_second_of_one_process": 3.0}}

    lines = table_of([summary(2.0, 0.5, 0.0), summary(3.0, 0.75, 1.0)]).splitlines()
    assert lines[-1].startswith("checkpoint: x; weights: ema; ")
    assert lines[2] == "| ddim eta=0.0 | 10 | 10 | **2** | 0.5 ± 0.1 | 3 |"
    assert lines[3] == "| ddim eta=1.0 | 10 | 10 | 3 | **0.75 ± 0.1** | 3 |"


def test_a_study_names_all_that_differs():
    def summary(scale, checkpoint):
        protocol = {
            "sampler": {"_target_": "a.DDIM", "num_steps": 5},
            "guidance_scale": scale,
            "checkpoint": checkpoint,
        }
        return {"protocol": protocol}

    assert names_of([summary(2, "a"), summary(3, "a")]) == ["DDIM guidance_scale=2", "DDIM guidance_scale=3"]
    assert names_of([summary(2, "a"), summary(2, "b")]) == ["DDIM checkpoint=a", "DDIM checkpoint=b"]
    assert names_of([summary(2, "a")]) == ["DDIM"]  # a class of one's own


def test_a_study_names_samplers_as_they_are_typed():
    """And not by their class, which several of them share."""

    def summary(name, *overrides):
        node = OmegaConf.to_container(config_of(f"sampler={name}", *overrides, name="evaluate").sampler, resolve=True)
        return {"protocol": {"sampler": node}}

    names = [name for name in choices("sampler") if name not in ("ddpm", "dpmpp", "euler")]  # other names of some
    assert names_of([summary(name) for name in names]) == names
    assert names_of([summary(name, "sampler.num_steps=7") for name in names]) == names
    etas = [summary("ddim"), summary("ddim", "sampler.eta=0.5"), summary("dpmpp_2m_sde")]
    assert names_of(etas) == ["ddim eta=0.0", "ddim eta=0.5", "dpmpp_2m_sde"]
