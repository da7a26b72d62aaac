"""Ways in which files could grant themselves trust, or reach beyond a trusted package: nothing of theirs is run."""

import shutil

import pytest
import yaml

from tests.helpers.forked import start_all
from tests.helpers.scripts import script
from tests.helpers.yard import Yard, edit, judge

CODE = """
import os, pathlib
from os import mkdir
pathlib.Path({trace!r}).touch()

class Net:
    def __new__(cls, *args, **kwargs):
        pathlib.Path({trace!r}).touch()
"""
NODE = {"_target_": "evil.Net"}
EXPERIMENT = "# @package _global_\ntrust: [evil]\ncallbacks:\n  x:\n    _target_: evil.Net\n"


def named(config):
    """A config that names the package in three places."""
    config["model"], config["denoiser"]["model"] = dict(NODE), dict(NODE)
    config["callbacks"]["x"] = dict(NODE)


def of_overrides(*texts):
    def write(yard):
        lines = [text.replace("EVIL", str(yard.path / "configs")) for text in texts]
        edit(yard.run, lambda checkpoint: (named(checkpoint["config"]), checkpoint.update(overrides=lines)))

    return write


def config_of_the_checkpoint(yard):
    def change(checkpoint):
        named(checkpoint["config"])
        checkpoint["config"]["trust"] = ["evil"]

    edit(yard.run, change)


def nothing_saved(yard, record, *texts):
    shutil.rmtree(yard.run / "checkpoints")
    config = yaml.safe_load((yard.run / "config.yaml").read_text())
    named(config)
    (yard.run / "config.yaml").write_text(yaml.safe_dump({**config, **record}))
    (yard.run / ".hydra").mkdir()
    (yard.run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*texts]))
    (yard.run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(record))


def folder_of_configs(yard):
    """Beside the run and in the folder that it is started from."""
    for folder in (yard.path, yard.run):
        (folder / "conf" / "experiment").mkdir(parents=True)
        (folder / "conf" / "train.yaml").write_text("trust: [evil]\n")
        (folder / "conf" / "experiment" / "evil.yaml").write_text(EXPERIMENT)
    of_overrides("experiment=evil")(yard)


def imported(name):
    """The user trusts `good`, which imports more than it defines."""

    def write(yard):
        (yard.path / "good.py").write_text("import os, evil_inside\nfrom os import mkdir\nclass Net: pass\n")
        (yard.path / "evil_inside.py").write_text("def touch(path): open(path, 'w')\n")
        node = {"_target_": f"good.{name}", "path": str(yard.path / "trace")}
        edit(yard.run, lambda checkpoint: checkpoint["config"]["callbacks"].update(x=node))

    return write


WAYS = {
    "the checkpoint's config": config_of_the_checkpoint,
    "the checkpoint's overrides": of_overrides("trust=[evil]"),
    "an added override": of_overrides("+trust=[evil]", "++trust=[evil]", "trust=evil"),
    "a package of the override": of_overrides("trust@_global_=[evil]"),
    "a config folder that the record names": of_overrides("--config-dir=EVIL", "experiment=evil"),
    "a search path that the record names": of_overrides("hydra.searchpath=[file://EVIL]", "experiment=evil"),
    "an experiment by its path": of_overrides("experiment=../../EVIL/experiment/evil"),
    "the environment by the record": of_overrides("hydra.job.env_set.DDPM_TRUST=evil"),
    "a script by the record": of_overrides("hydra.job.env_set.DDPM_LAUNCH={trust: [evil]}"),
    "config.yaml": lambda yard: nothing_saved(yard, {"trust": ["evil"]}),
    "overrides.yaml": lambda yard: nothing_saved(yard, {}, "trust=[evil]"),
    "a folder of configs beside it": folder_of_configs,
}
BEYOND = ("os.mkdir", "mkdir", "evil_inside.touch", "os.path.os.mkdir", "Net.__class__")


@pytest.mark.parametrize("command", ["resume", "sample"])
def test_no_file_grants_trust(command, tiny_run, tmp_path):
    yards, starts = [], []
    for number, write in enumerate(WAYS.values()):
        yard = Yard(tmp_path, tiny_run, number)
        (yard.path / "evil.py").write_text(CODE.format(trace=str(yard.path / "trace")))
        shutil.move(yard.path / "evil", yard.path / "configs")
        (yard.path / "configs" / "experiment" / "evil.yaml").write_text(EXPERIMENT)
        (yard.run / "summary.json").unlink()
        write(yard)
        yards.append((yard, yard.around()))
        checkpoint = f"ckpt_path={yard.run}"
        argv = {"resume": ["train.py", f"resume={yard.run}"], "sample": ["sample.py", checkpoint, "device=cpu"]}[
            command
        ]
        starts.append({"argv": argv, "cwd": str(yard.path)})
    results = start_all(starts)
    refused = judge(results, yards, list(WAYS))
    assert refused == len(WAYS)
    for way, result in zip(WAYS, results, strict=True):
        if command == "resume" or "yaml" not in way:  # nothing is there to sample from
            assert "trust=[evil]" in result["err"], (way, result)  # the way out is the user's alone


def test_trust_in_a_package_reaches_what_it_defines(tiny_run, tmp_path):
    yards, starts = [], []
    for number, name in enumerate(BEYOND):
        yard = Yard(tmp_path, tiny_run, number)
        imported(name)(yard)
        yards.append((yard, yard.around()))
        starts.append(
            {"argv": ["train.py", f"resume={yard.run}", "trainer.max_steps=6", "trust=[good]"], "cwd": str(yard.path)}
        )
    results = start_all(starts)
    assert judge(results, yards, BEYOND, own=lambda yard: (yard.run, yard.path / "__pycache__")) == len(BEYOND)
    assert all("not defined in good" in result["err"] for result in results)


def test_a_folder_that_is_stood_in_runs_nothing(tiny_run, tmp_path):
    """Hydra imports what is called hydra_plugins, and PyTorch what an installed package's entry points name."""
    yard = Yard(tmp_path, tiny_run, 0)
    trace = yard.path / "trace"
    for name in ("hydra_plugins", "torch_backend"):
        (yard.path / name).mkdir()
        (yard.path / name / "__init__.py" if name == "torch_backend" else yard.path / name / "x.py").write_text(
            CODE.format(trace=str(trace))
        )
    (yard.path / "x-1.dist-info").mkdir()
    (yard.path / "x-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\n")
    (yard.path / "x-1.dist-info" / "entry_points.txt").write_text("[torch.backends]\nx = torch_backend:mkdir\n")
    (yard.path / "evil.py").write_text(CODE.format(trace=str(trace)))
    for arguments in (
        ["sample.py", f"ckpt_path={yard.run}", "num_samples=1", "sampler.num_steps=1"],
        ["train.py", "--cfg", "job"],
    ):
        result = script(*arguments, cwd=yard.path, env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert result.returncode == 0, result.stderr
    assert not trace.exists()
