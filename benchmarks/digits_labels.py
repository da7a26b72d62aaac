"""Label accuracy of conditional samples, by a support vector machine trained on the real digits.

python benchmarks/digits_labels.py CHECKPOINT [--scales 0 1 2 4] [--images 1000] [--sampler ddim] [--steps 50]

The checkpoint comes from `python train.py experiment=digits_conditional`. Half of the real digits train the classifier,
and its accuracy on the other half is printed first.
"""

import argparse

import torch
from hydra import compose, initialize
from hydra.utils import instantiate
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from ddpm_lightning import Guided, load_denoiser
from ddpm_lightning.images import SeededNoise, to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()

    real = load_digits()
    x, y = real.data / 16, real.target
    print(f"real digits, the other half: {SVC(gamma='scale').fit(x[::2], y[::2]).score(x[1::2], y[1::2]):.3f}")
    reader = SVC(gamma="scale").fit(x, y)
    denoiser = load_denoiser(arguments.checkpoint)
    with initialize("../conf", version_base="1.3"):
        overrides = [f"sampler={arguments.sampler}", f"sampler.num_steps={arguments.steps}"]
        sampler = instantiate(compose("sample", overrides).sampler)
    labels = torch.arange(arguments.images) % 10
    for scale in arguments.scales:
        noise = SeededNoise(0, range(arguments.images))
        images = sampler(Guided(denoiser, scale), noise.draw((1, 8, 8)), labels, randn=noise)
        read = reader.predict(to_uint8(images).flatten(1).numpy() / 255)
        print(
            f"guidance_scale={scale:g}: {(read == labels.numpy()).mean():.3f} of {arguments.images} match their label"
        )


if __name__ == "__main__":
    main()
