"""Composed configs, and the overrides that make a whole run last a second."""

from pathlib import Path

from hydra import compose, initialize_config_dir

import ddpm_lightning  # noqa: F401  registers the resolvers of conf/

ROOT = Path(__file__).parents[2]

# A network of some thousand weights and four steps, with all figures.
WHOLE = (
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=2",
    "sampler.num_steps=4",
    "callbacks.sample_grid.num_samples=4",
    "callbacks.sample_grid.every_n_steps=2",
    "callbacks.raw_grid.num_samples=4",
    "callbacks.raw_grid.every_n_steps=2",
    "callbacks.neighbors.num_samples=2",
    "callbacks.neighbors.num_neighbors=2",
    "callbacks.log_snr.num_images=4",
    "callbacks.trajectory.num_samples=2",
    "callbacks.trajectory.num_columns=3",
    "callbacks.trajectory.every_n_steps=2",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.checkpoint.save_top_k=-1",
    "lr_scheduler.total_iters=2",
)

# Without plots and most of the validation, which take half of the time.
PLOTS = ("log_snr", "schedule_curves", "forward_strip")
TINY = (
    *(o for o in WHOLE if not o.startswith("callbacks.log_snr.")),
    *(f"callbacks.{name}=null" for name in PLOTS),
    "trainer.limit_val_batches=3",
)

FIGURES = ("sample_grid", "raw_grid", "trajectory", "neighbors", *PLOTS)
NO_FIGURES = tuple(f"callbacks.{name}=null" for name in FIGURES)

IMAGES_ALONE = ("callbacks.sample_grid", "callbacks.raw_grid", "callbacks.neighbors", "callbacks.trajectory")

TINY_POINTS = (
    "data=two_moons",
    "data.dataset.num_points=200",
    "model=mlp",
    "model.hidden_size=16",
    "callbacks=points",
    "callbacks.scatter.num_samples=20",
    "callbacks.scatter.num_columns=3",
    "callbacks.scatter.every_n_steps=2",
    *(o for o in WHOLE if not o.startswith(("model.", *IMAGES_ALONE))),
)


def config_of(*overrides, name="train"):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def train_config(folder, *overrides, tiny=TINY):
    return config_of(*tiny, "logger=none", f"run_dir={folder}", *overrides)


def choices(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def hydra_of(*overrides, name="train"):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed = [o for o in overrides if not o.startswith(("sweep=", "hydra."))]
        config = compose(name, [o for o in overrides if o not in typed], return_hydra_config=True).hydra
    config.overrides.task = typed
    return config
