"""What a checkpoint's config may name."""

import pytest
from omegaconf import OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.trust import check_targets
from tests.helpers.configs import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_every_target_that_we_ship_may_be_resumed():
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        group = path.relative_to(ROOT / "conf").parts[0]
        if group in ("experiment", "sweep", "hydra") or path.stem == "custom":  # the last is given by hand, and refused
            continue
        check_targets({group: plain_config(path)}, "run")


def plain_config(path):
    """A file of conf/ with the files of its defaults list below it, and without what is taken from other groups."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    merged = {}
    for part in node.pop("defaults", []):
        if isinstance(part, dict):
            (key, name), *_ = part.items()
            merged[key] = plain_config(path.parent / key / f"{name}.yaml")
        elif part != "_self_":
            merged |= plain_config(path.parent / f"{part}.yaml")
    return without_interpolations(merged | node)


def without_interpolations(node):
    if isinstance(node, dict):
        return {key: without_interpolations(child) for key, child in node.items()}
    if isinstance(node, list):
        return [without_interpolations(child) for child in node]
    return "taken" if isinstance(node, str) and "${" in node else node


def test_a_part_in_the_place_of_another_is_refused():
    """A data set reads files by libraries that may run code: it is no network."""
    loader = {"_target_": "ddpm_lightning.data.datasets.huggingface", "root": "pandas"}
    network = {"_target_": "ddpm_lightning.models.UNet"}
    for role, node in (
        ("denoiser", {"_target_": "ddpm_lightning.denoiser.Denoiser", "model": loader}),
        ("denoiser", loader),
        ("run", {"model": loader}),
        ("run", {"callbacks": {"a": loader}}),
        ("run", {"callbacks": {"a": {"_target_": "ddpm_lightning.callbacks.EMA", "decay": loader}}}),
        ("run", {"data": network}),
        ("run", {"seed": loader}),
        ("run", {"callbacks": {"a": {"_target_": "ddpm_lightning.loggers.WandbLogger"}}}),
        ("run", {"logger": {"a": {"_target_": "ddpm_lightning.callbacks.EMA"}}}),
        ("sampler", {"_target_": "ddpm_lightning.samplers.reverse_step"}),
        ("features", {"_target_": "ddpm_lightning.metrics.features.custom", "net": network}),
        ("data", {"_target_": "ddpm_lightning.data.datasets.image_folder", "root": "/"}),
    ):
        with pytest.raises(UserError, match=r"asks for ddpm_lightning\..*in this place: refused"):
            check_targets(node, role)


@pytest.mark.parametrize(
    ("role", "target"),
    [
        ("logger", "ddpm_lightning.loggers.wandb.WandbLogger"),  # whose keys are filtered by the short name
        ("model", "ddpm_lightning.models.layers.Upsample"),
        ("model", "ddpm_lightning.models.fast_cpu.FastDropout"),
        ("model", "ddpm_lightning.models." + ".".join("a" * 2000)),
        ("optimizer", "torch.optim.adam.adam"),
        ("dataset", "ddpm_lightning.data.shards.find_shards"),
        ("lr_scheduler", "torch.optim.lr_scheduler.os.system"),
    ],
)
def test_what_a_package_offers_for_other_uses_is_refused(role, target):
    with pytest.raises(UserError, match="refused"):
        check_targets({"_target_": target}, role)
