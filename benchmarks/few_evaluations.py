"""How good each sampler is with few network evaluations: FID against that of Algorithm 25.2 with all its steps, on one checkpoint.

python benchmarks/few_evaluations.py CHECKPOINT [--images 1500] [--seeds 5] [--samplers ddim dpmpp_2m ...] [--evaluations 3 5 8 10 20]

Each value is the mean over the seeds of noise, none of which `ddpm times` has learned from, with the standard deviation. FID is that
of evaluate.py's own classifier and the training images. Samplers of two evaluations per step take half the steps. "learned" is what
`ddpm times` finds, in about --seconds each; it is stored beside the checkpoint.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from ddpm_lightning import CONF_DIR
from ddpm_lightning.evaluation.features import load_extractor
from ddpm_lightning.evaluation.real_images import load_real_images
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics.distances import frechet_distance
from ddpm_lightning.metrics.features import extract
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.learned_times import find_times, learned_settings
from ddpm_lightning.runs.process_group import ALONE
from ddpm_lightning.runs.sampling_setup import count_evaluations, prepare_sampling

BATCH = 500


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--samplers", nargs="+", default=["dpmpp_2m", "dpmpp_2m_sde", "sa_solver", "unipc", "learned"])
    parser.add_argument("--spacings", nargs="+", default=["trailing", "quadratic", "karras"])
    parser.add_argument("--evaluations", nargs="+", type=int, default=[3, 5, 8, 10, 20])
    parser.add_argument("--seconds", type=float, default=100.0, help="of each search for times")
    parser.add_argument("--reference-steps", type=int, default=None, help="of Algorithm 25.2; default: all, 0: none")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        config = compose("evaluate", [f"ckpt_path='{arguments.checkpoint}'"])
    setup = prepare_sampling(config, ALONE)
    real = load_real_images(config, setup)
    model = load_extractor(config, real.data, setup.device, ALONE).model
    reference = extract(model, real.train.images)
    denoiser = setup.denoiser

    def fids(sampler) -> list[float]:
        found = []
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            images = []
            for first in range(0, arguments.images, BATCH):
                noise = SeededNoise(seed, range(first, min(first + BATCH, arguments.images)))
                images.append(to_uint8(sampler(setup.guided, noise.draw(setup.shape).to(setup.device), randn=noise)))
            found.append(frechet_distance(reference, extract(model, torch.cat(images))).value)
        return found

    def composed(name: str, *overrides: str):
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            return compose("sample", [f"sampler={name}", *overrides]).sampler

    steps = denoiser.schedule.num_steps if arguments.reference_steps is None else arguments.reference_steps
    base = math.nan
    if steps:
        whole = fids(build("sampler", composed("ancestral", f"sampler.num_steps={steps}")))
        base = statistics.mean(whole)
        print(f"Algorithm 25.2, {steps:,} steps: FID {base:.2f} ± {spread(whole):.2f}", flush=True)
    for evaluations in arguments.evaluations:
        rows = []
        for name in arguments.samplers:
            for spacing in ["learned"] if name == "learned" else arguments.spacings:
                two = name in ("heun", "edm")
                node = composed(name, f"sampler.num_steps={(evaluations + 1) // 2 if two else evaluations}")
                if spacing == "learned":
                    if node.get("eta", 0.0) > 0:
                        continue
                    find_times(arguments.checkpoint, steps=node.num_steps, sampler=name, seconds=arguments.seconds)
                    node.update(learned_settings(arguments.checkpoint, denoiser, node))
                else:
                    node.spacing = spacing
                sampler = build("sampler", node)
                spent, found = count_evaluations(sampler, denoiser.schedule), fids(sampler)
                rows.append((statistics.mean(found), spread(found), name, spacing, spent))
        for mean, deviation, name, spacing, spent in sorted(rows):
            times = f"  {mean / base:6.3f} times" if steps else ""
            print(
                f"{spent:3d} evaluations  {name:13s} {spacing:9s} FID {mean:7.2f} ± {deviation:5.2f}{times}", flush=True
            )


def spread(values: list[float]) -> float:
    """The standard deviation; not a number of one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


if __name__ == "__main__":
    main()
