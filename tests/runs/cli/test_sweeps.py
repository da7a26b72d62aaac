"""What the jobs of a sweep share."""

import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.module import DDPM
from ddpm_lightning.runs import build
from ddpm_lightning.schedules import NoiseSchedule
from tests.helpers.configs import train_config
from tests.helpers.resuming import assert_equal


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
def test_jobs_of_one_seed_share_weights_order_and_noise(tmp_path, monkeypatch):
    """Whatever the schedule: what differs between them is the schedule's doing."""
    taken = {}

    def watch(schedule, seed):
        seen = taken.setdefault((schedule, seed), {"weights": [], "noise": [], "t": [], "images": [], "validation": []})
        step = DDPM.training_step

        def training_step(self, batch, batch_idx):
            if not seen["weights"]:
                seen["weights"] = [p.detach().clone() for p in self.parameters()]
            seen["images"].append(batch[0].clone())
            outputs = step(self, batch, batch_idx)
            seen["t"].append(outputs["t"].clone())
            return outputs

        def q_sample(self, x0, t, noise):
            if torch.is_grad_enabled():
                seen["noise"].append(noise.clone())
            else:  # the bound's t lie where the schedule's terms are large, its noise does not depend on them
                loss = len(seen["validation"]) % 3 == 0
                seen["validation"].append((t.clone() if loss else None, noise.clone()))
            return plain(self, x0, t, noise)

        plain = NoiseSchedule.q_sample
        with monkeypatch.context() as patch:
            patch.setattr(DDPM, "training_step", training_step)
            patch.setattr(NoiseSchedule, "q_sample", q_sample)
            patch.setattr(build, "_try_steps", lambda *_: None)  # which takes steps, too
            folder = tmp_path / f"{schedule}{seed}"
            runs.train(
                train_config(
                    folder,
                    f"schedule={schedule}",
                    f"seed={seed}",
                    "callbacks.log_snr=null",
                    "callbacks.forward_strip=null",
                )
            )
        return seen

    linear, cosine, other = watch("linear", 0), watch("cosine", 0), watch("linear", 1)
    assert len(linear["noise"]) == len(linear["images"]) == 4
    assert len(linear["validation"]) > 4
    assert_equal(linear, cosine)
    for what in ("weights", "images", "t", "noise", "validation"):
        with pytest.raises(AssertionError):
            assert_equal(linear[what], other[what])
