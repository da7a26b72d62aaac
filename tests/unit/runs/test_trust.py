"""What a checkpoint's config may name."""

import sys

import pytest
from omegaconf import OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.trust import check_targets, packages_to_trust
from tests.helpers.configs import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_every_target_that_we_ship_may_be_resumed():
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        group = path.relative_to(ROOT / "conf").parts[0]
        if (
            group in ("experiment", "sweep", "hydra", "edit") or path.stem == "custom"
        ):  # the last is given by hand, and refused
            continue
        check_targets({group: plain_config(path)}, "run")


def plain_config(path):
    """A file of conf/ with the files of its defaults list below it, and without what is taken from other groups."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    merged = {}
    for part in node.pop("defaults", []):
        if isinstance(part, dict):
            (key, name), *_ = part.items()
            if key.startswith("override "):
                continue
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
        with pytest.raises(UserError, match=r"asks for ddpm_lightning\..*never allowed, so it is refused"):
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


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    """A user's package, which imports more than it defines."""
    (tmp_path / "mylab_of_test").mkdir()
    (tmp_path / "mylab_of_test" / "__init__.py").write_text(
        "import os, pathlib, shutil, functools\n"
        "from os import mkdir, system\n"
        "from pathlib import Path\n"
        "class Net:\n    made = None\n    @classmethod\n    def make(cls): return cls()\n"
        "class Folder(Path): pass\n"
        "def schedule(): return 1\n"
        "remove = functools.partial(shutil.rmtree, ignore_errors=True)\n"
        "runner = os.system\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "mylab_of_test"
    sys.modules.pop("mylab_of_test", None)


@pytest.mark.parametrize("name", ["Net", "Net.make", "schedule"])
def test_what_a_trusted_package_defines_may_stand_anywhere(mylab, name, tmp_path):
    node = {"_target_": f"{mylab}.{name}"}
    for role, config in (
        ("denoiser", {"_target_": "ddpm_lightning.denoiser.Denoiser", "model": node}),
        ("run", {"callbacks": {"mine": {**node, "_partial_": True}}}),
        ("run", {"model": {**node, "inner": {"_target_": "torch.nn.SiLU"}}}),
        (
            "run",
            {
                "data": {
                    **node,
                    "source": {"_target_": "torchvision.datasets.MNIST"},
                    "folder": "/data",
                    "cache_dir": "/x",
                }
            },
        ),
        ("run", {"model": {**node, "inner": [{"_target_": "ddpm_lightning.models.UNet", "norm": node}]}}),
    ):
        check_targets(config, role, trust=["other", mylab], folder=tmp_path)
        with pytest.raises(UserError, match=rf"if you trust {mylab}, add trust=\[{mylab}\]"):
            check_targets(config, role)
        assert packages_to_trust(config) == [mylab]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "os.mkdir",
        "mkdir",
        "runner",
        "Path",
        "Path.touch",
        "Folder.touch",
        "shutil.rmtree",
        "remove",
        "functools.partial",
        "schedule.__globals__",
        "Net.__class__",
        "Net.__subclasses__",
        "Net.made",
        "pathlib.os.system",
        "__builtins__.exec",
        "schedule.__call__",
        "nothing",
        "nothing.at.all",
    ],
)
def test_what_a_trusted_package_has_only_imported_is_refused(mylab, target):
    with pytest.raises(UserError, match="not defined in|cannot be imported"):
        check_targets({"model": {"_target_": f"{mylab}.{target}"}}, "run", trust=[mylab])


@pytest.mark.parametrize("package", ["", "*", "my lab", "mylab-x", "a..b"])
def test_only_packages_can_be_trusted(package):
    with pytest.raises(UserError, match="trust must name packages"):
        check_targets({}, "run", trust=[package])


@pytest.mark.parametrize(
    "package", ["builtins", "subprocess", "torch", "torch.hub", "lightning", "hydra", "ddpm_lightning"]
)
def test_what_runs_any_code_cannot_be_trusted_and_is_not_offered(package):
    with pytest.raises(UserError, match="trust must name packages of your own"):
        check_targets({}, "run", trust=[package])
    node = {"model": {"_target_": f"{package}.load"}}
    with pytest.raises(UserError, match="refused") as told:
        check_targets(node, "run")
    assert "trust=" not in str(told.value)
    assert packages_to_trust(node) == []


def test_a_longer_name_is_another_package(mylab):
    """trust=[my] does not trust mylab, and trust=[mylab.nets] not all of mylab."""
    for trusted in (mylab[:5], f"{mylab}.nets", f"{mylab}x"):
        with pytest.raises(UserError, match="if you trust"):
            check_targets({"model": {"_target_": f"{mylab}.Net"}}, "run", trust=[trusted])


def test_a_config_grants_no_trust_to_itself(mylab):
    with pytest.raises(UserError, match="if you trust"):
        check_targets({"trust": [mylab], "model": {"_target_": f"{mylab}.Net"}}, "run")


def test_the_environment_trusts(mylab, monkeypatch):
    monkeypatch.setenv("DDPM_TRUST", f"other,{mylab}")
    check_targets({"model": {"_target_": f"{mylab}.Net"}}, "run")


@pytest.mark.parametrize(
    "node",
    [
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"}}},
        {"logger": {"a": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "RUN", "name": "x"}}},
        {"trainer": {"profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "RUN"}}},
        {"optimizer": {"_target_": "torch.optim.RAdam"}},
        {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR"}},
    ],
)
def test_parts_of_pytorch_and_lightning_need_no_trust(node, tmp_path):
    check_targets(placed(node, tmp_path), "run", folder=tmp_path)
    assert packages_to_trust(node) == []


@pytest.mark.parametrize(
    "node",
    [
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.os.system"}}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/elsewhere"}}},
        {
            "callbacks": {
                "a": {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": "RUN",
                    "filename": "../../x",
                }
            }
        },
        {"logger": {"a": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "file:/elsewhere"}}},
        {"logger": {"a": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "RUN", "name": "../.."}}},
        {"logger": {"a": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "save_dir": "RUN/%2e%2e"}}},
        {"logger": {"a": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "memory://x"}}},
        {
            "callbacks": {
                "a": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "filename": "{step:c}{step:c}/x"}
            }
        },
        {"trainer": {"profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "/elsewhere"}}},
    ],
)
def test_they_reach_nothing_outside_the_run(node, tmp_path):
    with pytest.raises(UserError, match="refused"):
        check_targets(placed(node, tmp_path), "run", folder=tmp_path)


def placed(node, folder):
    if isinstance(node, dict):
        return {key: placed(child, folder) for key, child in node.items()}
    return node.replace("RUN", str(folder)) if isinstance(node, str) else node
