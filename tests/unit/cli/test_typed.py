"""What is typed, and what Hydra then reads."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm_lightning.cli.typed import as_hydra_reads


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("data.root=/data/x=y", "data.root", "/data/x=y"),
        ("data.root=~/pictures", "data.root", "/home/student/pictures"),
        ("data.root=~", "data.root", "/home/student"),
        ("+data.root=~/a=b", "data.root", "/home/student/a=b"),
        ("data.root=/data/été", "data.root", "/data/été"),
        ("data.root=/data/a#b", "data.root", "/data/a#b"),
        ("data.root=/data/a (1)", "data.root", "/data/a (1)"),
        ("data.root=/data/it's", "data.root", "/data/it's"),
        ("data.root=C:\\a=b\\", "data.root", "C:\\a=b\\"),
        ("data.root=shards/{00..09}.tar", "data.root", "shards/{00..09}.tar"),
        ("ckpt_path=checkpoints/epoch=3-step=5.ckpt", "ckpt_path", "checkpoints/epoch=3-step=5.ckpt"),
        ("--schedule=cosine", "schedule", "cosine"),
        ("--optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("--data.root=~/a=b", "data.root", "/home/student/a=b"),
        ("seed=3", "seed", 3),
        ("data.image_size=[8,8]", "data.image_size", [8, 8]),
        ("data.root='/data/x=y'", "data.root", "/data/x=y"),
        ("logger.wandb.name=a b", "logger.wandb.name", "a b"),
        ("data.root=", "data.root", ""),
    ],
    ids=str,
)
def test_values(typed, key, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/student")
    (read,) = as_hydra_reads([typed])
    override = OverridesParser.create().parse_override(read)
    assert (override.key_or_group, override.value()) == (key, value)


@pytest.mark.parametrize(
    "typed",
    [
        "-m",
        "--multirun",
        "--config-dir",
        "--config-dir=conf",
        "-cd",
        "--help",
        "~callbacks.ema",
        "seed=0,1",
        "seed=[0",
        "model=unet_small",
    ],
)
def test_the_rest_stays(typed):
    assert as_hydra_reads([typed]) == [typed]
