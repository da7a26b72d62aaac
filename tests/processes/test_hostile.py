"""Folders and files that a stranger wrote, drawn by a fuzzer: none acts, none crashes, each is refused in a sentence or is harmless."""

import bz2
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.interop import to_diffusers
from tests.helpers.configs import FIGURES, NO_FIGURES, TINY
from tests.helpers.forked import start_all
from tests.helpers.yard import Yard, edit, judge

pytestmark = [pytest.mark.filterwarnings("ignore:.*treespec", "ignore:Sparse invariant")]


def drawn(strategy, count):
    """So many different examples of a strategy, the same each time."""
    found = {}

    @settings(
        max_examples=5 * count,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example):
        found.setdefault(repr(example), example)

    collect()
    assert len(found) >= count
    return random.Random(0).sample([*found.values()], count)


NODES = (  # code that leaves a trace
    {"_target_": "os.mkdir", "path": "TRACE"},
    {"_target_": "shutil.copyfile", "src": "VICTIM/note", "dst": "TRACE"},
    {"_target_": "subprocess.run", "args": ["touch", "TRACE"]},
    {"_target_": "builtins.exec", "_args_": ["open('TRACE','w')"]},
    {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["TRACE"]}},
    {"_target_": "ddpm_lightning.run_folder.shutil.copyfile", "src": "VICTIM/note", "dst": "TRACE"},
    {"_target_": "ddpm_lightning.callbacks.checkpoint.os.mkdir", "path": "TRACE"},
    {"_target_": "ddpm_lightning.data.datasets.huggingface", "root": "pandas", "channels": 1, "image_size": [8, 8]},
)

OVERRIDES = (  # lines of a record; NODE is one of those above
    "+callbacks.evil=NODE",
    "++callbacks.ema=NODE",
    "+logger.evil=NODE",
    "model=NODE",
    "++data.channels=NODE",
    "++trainer.plugins=[NODE]",
    "++trainer.strategy=NODE",
    "+data@hydra.callbacks.x=webdataset",
    "+data@callbacks.x=webdataset",
    "optimizer._target_=os.mkdir",
    "+callbacks.ema._args_=[TRACE]",
    "--config-dir=EVIL",
    "--config-path=EVIL",
    "--config-name=evil",
    "-m",
    "--help",
    "hydra.searchpath=[file://EVIL]",
    "hydra.overrides.hydra=[hydra.searchpath=[file://EVIL]]",
    "+hydra.callbacks.x=NODE",
    "hydra/callbacks=evil",
    "hydra.run.dir=TRACE",
    "hydra.sweep.dir=TRACE",
    "hydra.sweep.subdir=../../../TRACE",
    "hydra.job_logging.handlers.file.filename=TRACE",
    "hydra.job_logging.handlers.console.class=os.mkdir",
    "hydra.hydra_logging.root.handlers=[TRACE]",
    "hydra.launcher._target_=os.mkdir",
    "hydra/launcher=submitit_local",
    "hydra.launcher.setup=[touch TRACE]",
    "hydra/sweeper=evil",
    "hydra.sweeper.custom_search_space=os.mkdir",
    "hydra.job.env_set.DDPM_ALLOW_PIPE=1",
    "hydra.job.env_set.DDPM_TRUST=os",
    "trust=[os,shutil]",
    "++trust=[os] model=NODE",
    "+experiment=../../evil/experiment/evil",
    "experiment=EVIL/experiment/evil",
    "data=EVIL/experiment/evil",
    "data.root='pipe:touch TRACE'",
    "data=webdataset data.root='pipe:touch TRACE'",
    "callbacks.checkpoint.dirpath=VICTIM/checkpoints",
    "callbacks.sample_grid.folder=VICTIM/samples",
    "++logger.tensorboard={_target_: ddpm_lightning.loggers.TensorBoardLogger, save_dir: VICTIM, name: x}",
    "logger=tensorboard logger.tensorboard.name=../../../../VICTIM",
    "run_dir=VICTIM",
    "+logger.tensorboard.sub_dir=VICTIM",
    "out_dir=VICTIM",
    "hydra.sweeper.params.seed=1",
    "hydra.launcher.n_jobs=100000",
    "seed=range(0,5,0)",
    "resume=VICTIM",
    "seed=${oc.create:NODE}",
    "seed=${run_name:}",
    "init_from=${oc.env:HOME}",
    "features=custom features.net._target_=os.mkdir",
    "seed=range(0,1000000000000)",
    "seed=shuffle(range(0,100000000))",
    "seed=[",
    "=",
    "'",
    "a@b@c=d",
    "~hydra",
    "sweep=../../EVIL/experiment/evil",
)

NOT_TEXTS = (None, 7, ["seed=1"], {"seed": 1}, True, 1e300, b"\x00", "\x00", "x" * 100_000)


def placed(value, places):
    """A hostile value with the paths of this test's folder in it."""
    text = json.dumps(value)
    for name, path in places.items():
        text = text.replace(name, str(path))
    return json.loads(text)


def as_yaml_has_it(record, places):
    return placed([text.hex() if isinstance(text, bytes) else text for text in record], places)


def inline(node):
    """A node as an override's value, which has no quoted keys."""
    return json.dumps(node, separators=(",", ":")).replace('"', "'").replace("'_", "_").replace("_':", "_:")


@st.composite
def override(draw):
    text = draw(st.sampled_from(OVERRIDES))
    return text.replace("NODE", inline(draw(st.sampled_from(NODES)))).split(" ")


lines = st.lists(override() | st.sampled_from(NOT_TEXTS).map(lambda value: [value]), min_size=1, max_size=2).map(
    lambda several: [text for one in several for text in one]
)


def test_records_of_runs_do_nothing(tiny_run, tmp_path):
    places, ways = ["folder", "checkpoint", "both", "nothing saved"], ["named", "auto"]
    cases = drawn(st.tuples(lines, st.sampled_from(places), st.sampled_from(ways)), 12)
    yards, starts = [], []
    for number, (record, where, how) in enumerate(cases):
        yard = Yard(tmp_path, tiny_run, number)
        lines_of = as_yaml_has_it(record, yard.places)
        if where in ("checkpoint", "both"):
            edit(yard.run, lambda checkpoint, lines=lines_of: checkpoint.update(overrides=lines))
        if where != "checkpoint":
            (yard.run / ".hydra").mkdir()
            (yard.run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(lines_of))
        if where == "nothing saved":
            shutil.rmtree(yard.run / "checkpoints")
        (yard.run / "summary.json").unlink()
        yards.append((yard, yard.around()))
        starts.append(
            {
                "argv": ["train.py", "resume=auto" if how == "auto" else f"resume={yard.run}"],
                "cwd": str(yard.path),
            }
        )
        shutil.move(yard.victim / "checkpoints", yard.victim / "kept")
        yards[-1] = (yard, yard.around())
    refused = judge(start_all(starts), yards, cases)
    print(f"{refused} of {len(cases)} refused")


def test_records_of_sweeps_do_nothing(tiny_run, tmp_path):
    places, ways = ["task", "hydra", "params", "shape"], ["named", "auto"]
    cases = drawn(st.tuples(lines, st.sampled_from(places), st.sampled_from(ways)), 12)
    yards, starts = [], []
    for number, (record, where, how) in enumerate(cases):
        yard = Yard(tmp_path, tiny_run, number)
        sweep = yard.path / "multirun" / "2026-01-01" / "10-00-00"
        shutil.move(yard.run, sweep / "0_seed_0")
        lines_of = as_yaml_has_it(record, yard.places)
        hydra = {
            "overrides": {"task": [], "hydra": []},
            "sweeper": {"params": None},
            "job": {"config_name": "train"},
        }
        if where == "params":
            hydra["sweeper"]["params"] = {str(text).partition("=")[0]: str(text).partition("=")[2] for text in lines_of}
            hydra["overrides"]["task"] = ["seed=7", *map(str, lines_of)]
        elif where == "shape":
            hydra["job"]["config_name"] = lines_of[0]
            hydra["overrides"]["task"] = lines_of
        else:
            hydra["overrides"][where] = lines_of
        (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
        yards.append((yard, yard.around(sweep)))
        asked = "resume=auto" if how == "auto" else f"resume={sweep}"
        tame = [text for text in TINY if not text.startswith("callbacks.checkpoint.save_top_k")]
        starts.append({"argv": ["train.py", "-m", asked, *tame, "logger=none"], "cwd": str(yard.path)})
    refused = judge(
        start_all(starts), yards, cases, own=lambda yard: (yard.path / "multirun" / "2026-01-01" / "10-00-00",)
    )
    assert refused > 9


KEYS = (
    "config",
    "state_dict",
    "ema_state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "training_metrics",
    "loss_guard",
    "overrides",
    "metrics_rows",
    "global_step",
    "epoch",
    "pytorch-lightning_version",
    "summary",
)

VALUES = (None, -1, 10**18, "x", [], {}, [[]], {"a": {}}, 0.5, True, torch.zeros(3), torch.full((2, 2), float("nan")))

ROLES = ("model", "schedule", "sampler", "loss", "data", "optimizer", "lr_scheduler", "features", "trainer", "denoiser")

ABSURD = (
    ("model", "base_channels", 10**7),
    ("model", "num_res_blocks", 10**9),
    ("model", "channel_multipliers", [10**6] * 5),
    ("schedule", "num_steps", 10**12),
    ("data", "image_size", [8192, 8192]),
    ("data", "image_size", [10**9, 10**9]),
    ("data", "batch_size", 10**9),
    ("data", "num_classes", 10**12),
    ("data", "root", "pipe:touch TRACE"),
    ("data", "val_fraction", "half"),
    ("trainer", "devices", 10**6),
    ("trainer", "strategy", "deepspeed"),
    ("trainer", "precision", "int4"),
    ("trainer", "default_root_dir", "VICTIM"),
    ("trainer", "profiler", "TRACE"),
    ("denoiser", "prediction", "${oc.env:HOME}"),
    ("denoiser", "_convert_", "object"),
)

PATHS = (
    ("callbacks", "checkpoint", "dirpath", "VICTIM/checkpoints"),
    ("callbacks", "checkpoint", "dirpath", "outputs/2025-01-01/victim/checkpoints"),
    ("callbacks", "best_checkpoint", "dirpath", "RUN/checkpoints/../../../2025-01-01/victim"),
    ("callbacks", "sample_grid", "folder", "RUN/link/samples"),
    ("callbacks", "log_snr", "folder", "VICTIM"),
    (
        "logger",
        "t",
        None,
        {"_target_": "ddpm_lightning.loggers.TensorBoardLogger", "save_dir": "RUN", "name": "../../x"},
    ),
    ("logger", "t", None, {"_target_": "ddpm_lightning.loggers.TensorBoardLogger", "save_dir": "VICTIM"}),
    ("logger", "w", None, {"_target_": "ddpm_lightning.loggers.WandbLogger", "project": "x", "save_dir": "VICTIM"}),
)

TENSORS = ("stride 0", "offset", "meta", "sparse", "nan", "shape", "dtype", "none", "text", "huge step")

FILES = ("bomb", "two names", "code", "code outside", "cut", "empty", "text", "numbers", "no zip", "nested", "cycle")


class Code:
    """Unpickled, it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@st.composite
def harm(draw):
    """What is changed: its kind, and the details."""
    kind = draw(st.sampled_from(["value", "target", "absurd", "path", "tensor", "file"]))
    details = {
        "value": st.tuples(st.sampled_from(KEYS), st.integers(0, len(VALUES) - 1)),
        "target": st.tuples(st.sampled_from(ROLES), st.sampled_from(NODES), st.booleans()),
        "absurd": st.sampled_from(ABSURD),
        "path": st.sampled_from(PATHS),
        "tensor": st.tuples(st.sampled_from(TENSORS), st.sampled_from(["state_dict", "optimizer_states"])),
        "file": st.sampled_from(FILES),
    }
    return kind, draw(details[kind])


def harmed(checkpoint, kind, details, places):
    """The change of a checkpoint's contents."""
    config = checkpoint["config"]
    if kind == "value":
        checkpoint[details[0]] = VALUES[details[1]]
    elif kind == "target":
        role, node, inside = details
        node, at = placed(node, places), config["denoiser"] if role in ("model", "schedule") else config
        if inside and isinstance(at.get(role), dict):
            at[role][next(iter(at[role].keys() - {"_target_"}))] = node
        else:
            at[role] = node
    elif kind == "absurd":
        where, key, value = details
        value = placed(value, places)
        for node in (config, config["denoiser"]) if where in ("model", "schedule") else (config,):
            node[where][key] = value
    elif kind == "path":
        group, name, key, value = details
        value = placed(value, places)
        if key is None:
            config[group][name] = value
        else:
            config[group][name][key] = value
    elif kind == "tensor":
        tensor_harmed(checkpoint, *details)


def tensor_harmed(checkpoint, what, where):
    states = checkpoint[where][0]["state"][0] if where == "optimizer_states" else checkpoint[where]
    key = "exp_avg" if where == "optimizer_states" else next(iter(states))
    tensor = states[key]
    states[key] = {
        "stride 0": lambda: torch.zeros(1).expand(10**6, 10**6),
        "offset": lambda: torch.zeros(4).as_strided((4,), (0,), 3),
        "meta": lambda: torch.empty(tensor.shape, device="meta"),
        "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1).long(), torch.ones(1), (10**12,)),
        "nan": lambda: torch.full_like(tensor, float("nan")),
        "shape": tensor.flatten()[:2].clone,
        "dtype": tensor.long,
        "none": lambda: None,
        "text": lambda: "weights",
        "huge step": lambda: torch.zeros(2, 3, 4),
    }[what]()
    if what == "huge step" and where == "optimizer_states":
        states["step"] = torch.tensor(1e38)


def file_harmed(path, what, trace):
    """The change of a checkpoint's file."""
    checkpoint = torch.load(path, weights_only=True)
    if what in ("code", "code outside"):
        checkpoint["config"]["hidden"] = Code(trace)
        if what == "code":
            torch.save(checkpoint, path)
        else:
            path.write_bytes(pickle.dumps(checkpoint["config"]))
    elif what == "nested":
        node = checkpoint["config"]["model"]
        for _ in range(100):
            node["deeper"] = node = {}
        torch.save(checkpoint, path)
    elif what == "cycle":
        checkpoint["config"]["model"]["self"] = checkpoint["config"]["model"]
        torch.save(checkpoint, path)
    elif what == "bomb":
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in members.items():
                new.writestr(name, content + b"\0" * 2**24 * name.endswith("/data/0"))
    elif what == "two names":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(archive.namelist()[0] + "2", b"x")
            archive.filelist[-1].filename = archive.filelist[0].filename
            archive.NameToInfo[archive.filelist[0].filename] = archive.filelist[-1]
            archive._didModify = True
    else:
        content = {
            "cut": path.read_bytes()[: path.stat().st_size // 2],
            "empty": b"",
            "text": b"hello",
            "numbers": np.arange(1000).tobytes(),
            "no zip": b"PK\3\4" + b"\xff" * 400,
        }
        path.write_bytes(content[what])


COMMANDS = ("resume", "resume", "sample", "init_from", "export", "likelihood", "report")


def command(name, yard):
    checkpoint = str(yard.run / "checkpoints" / "last.ckpt")
    return {
        "resume": ["train.py", f"resume={yard.run}", "trainer.max_steps=6"],
        "sample": ["sample.py", f"ckpt_path={checkpoint}", "num_samples=2", "sampler.num_steps=2", "device=cpu"],
        "init_from": [*training(), f"init_from={checkpoint}", f"hydra.run.dir={yard.run / 'new'}"],
        "export": ["-m", "ddpm_lightning", "export", checkpoint, str(yard.run / "exported")],
        "likelihood": ["-m", "ddpm_lightning", "likelihood", checkpoint, "--num-images", "1"],
        "report": ["-m", "ddpm_lightning", "report", str(yard.run)],
    }[name]


@pytest.mark.parametrize("part", range(4))
def test_checkpoints_do_nothing(tiny_run, tmp_path, part):
    """In four parts, which processes share."""
    cases = drawn(st.tuples(harm(), st.sampled_from(COMMANDS)), 60)[part::4]
    yards, starts = [], []
    for number, ((kind, details), name) in enumerate(cases):
        yard = Yard(tmp_path, tiny_run, number)
        places = {**yard.places, "RUN": yard.run}
        if kind == "path" and "link" in str(details):
            (yard.run / "link").symlink_to(yard.victim)
        edit(yard.run, lambda c, k=kind, d=details, p=places: harmed(c, k, d, p))
        if kind == "file":
            file_harmed(yard.run / "checkpoints" / "last.ckpt", details, yard.path / "trace")
        yards.append((yard, yard.around()))
        starts.append({"argv": command(name, yard), "cwd": str(yard.path)})
    refused = judge(start_all(starts), yards, cases)
    assert refused > 5


def diffusers_folder(folder, chance, denoiser, trace):
    to_diffusers(denoiser, folder)
    unet, scheduler = folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path = chance.choice([unet, scheduler, folder / "ddpm_lightning.json"])
    content = json.loads(path.read_text())
    key = chance.choice(sorted(content))
    value = chance.choice([None, -1, 10**9, "x", [], {}, [10**9] * 4, {"_target_": "os.mkdir", "path": str(trace)}])
    what = chance.choice(["json", "json", "json", "code", "header", "cut", "no json"])
    if what == "json":
        path.write_text(json.dumps({**content, key: value}))
    elif what == "code":
        weights.unlink()
        torch.save({"conv_in.weight": Code(trace)}, weights.with_suffix(".bin"))
    elif what == "header":
        weights.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        path.write_text("[" * 100_000)
    return ["sample.py", f"ckpt_path={folder}", "num_samples=1", "sampler.num_steps=2", "device=cpu"]


def dataset_folder(folder, chance, denoiser, trace):
    folder.mkdir()
    what = chance.choice(["pickle", "script", "yaml", "parquet", "name"])
    root = folder
    if what == "pickle":
        (folder / "train.pkl").write_bytes(pickle.dumps(Code(trace)))
    elif what == "script":
        (folder / f"{folder.name}.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    elif what == "yaml":
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: /etc/*\n---\n")
    elif what == "parquet":
        (folder / "train.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    else:
        root = chance.choice(["pandas", "csv", "text", "json", "parquet", "webdataset", "imagefolder"])
    return [*training(), "data=huggingface", f"data.root={root}"]


def picture_folder(folder, chance, denoiser, trace):
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    what = chance.choice(["postscript", "bomb", "cut", "text", "link"])
    if what == "postscript":
        code = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({trace}) (w) file closefile\nshowpage\n"
        (folder / "x.png").write_text(code)
    elif what == "bomb":
        (folder / "x.png").write_bytes(png_that_declares(60_000, 60_000))
    elif what == "cut":
        (folder / "x.png").write_bytes((folder / "0.png").read_bytes()[:40])
    elif what == "text":
        (folder / "x.tif").write_bytes(b"II*\0" + b"\xff" * 100)
    else:
        (folder / "x.png").symlink_to("/dev/zero")
    return [*training(), "data=image_folder", f"data.root={folder}", "data.image_size=[8,8]"]


def shard_folder(folder, chance, denoiser, trace):
    folder.mkdir()
    what = chance.choice(["sparse", "long", "name", "label", "cut", "postscript"])
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format="png")
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for i in range(40):
                info = tarfile.TarInfo(f"{i:03d}.png")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))
            extra = tarfile.TarInfo("../../trace.png" if what == "name" else "999.png")
            content = b"%!PS-Adobe-3.0\n" if what == "postscript" else b"x"
            extra.size = len(content)
            tar.addfile(extra, io.BytesIO(content))
    path = folder / "0.tar"
    held = bytearray(path.read_bytes())
    at = 40 * 1024
    if what in ("sparse", "long"):
        info = tarfile.TarInfo("999.png")
        info.size, info.type = 2**40, tarfile.GNUTYPE_SPARSE if what == "sparse" else tarfile.GNUTYPE_LONGNAME
        held[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
        if what == "sparse":
            head = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
            head[124:136] = b"00000000001\0"  # one byte is there
            head[386:398], head[398:410] = b"00000000000\0", b"00000000001\0"
            head[483:495] = b"\x80" + (2**40).to_bytes(11, "big")  # and 2^40 are declared
            head[148:156] = b" " * 8
            head[148:156] = f"{sum(head):06o}\0 ".encode()
            held[at : at + 512] = head
        path.write_bytes(held)
    elif what == "cut":
        path.write_bytes(held[: at - 100])
    options = ["data.image_size=[8,8]", "data.dataset.workers=0"]
    labels = ["data.num_classes=3"] * (what == "label")
    return [*training(), "data=webdataset", f"data.root={folder}", *options, *labels]


def png_that_declares(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def training():
    tiny = [text for text in TINY if not text.startswith(tuple(f"callbacks.{name}" for name in FIGURES))]
    return ["train.py", *tiny, *NO_FIGURES, "trainer.max_steps=1", "logger=none", "data.batch_size=2"]


def named_like_a_resolver(yard):
    """Hydra would read the name as another folder's."""
    strange = yard.path / "outputs" / "s" / "${now:..}" / "victim"
    shutil.move(yard.run, strange)
    return ["train.py", "resume=auto", "trainer.max_steps=6"], "must not contain ${ or a backslash"


def named_like_a_part_that_is_not_searched(yard):
    strange = yard.path / "outputs" / "wandb"
    shutil.move(yard.run, strange)
    (strange / ".hydra").symlink_to(yard.victim)
    return ["train.py", f"resume={strange}"], "is a link to"


def evaluations_elsewhere(yard):
    (yard.run / "evaluations").mkdir(exist_ok=True)
    (yard.run / "evaluations" / "bits_epsilon_small_0123456789ab").symlink_to(yard.victim)
    options = ["num_samples=10", "sampler.num_steps=2", "features.num_steps=1", "bits_images=1", "device=cpu"]
    return ["evaluate.py", f"ckpt_path={yard.run}", f"cache_dir={yard.run / 'cache'}", *options], "is a link to"


def links_at_temporary_names(yard):
    for pid in range(1, 32769, 8):  # those of every process here, in eight starts
        (yard.run / f".report.html.{pid}").symlink_to(yard.victim / "note")
    return ["-m", "ddpm_lightning", "report", str(yard.run)], None


def a_state_of_single_numbers(yard):
    """A fused kernel goes by the parameter's size."""

    def change(checkpoint):
        for state in checkpoint["optimizer_states"][0]["state"].values():
            state |= {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
        checkpoint["optimizer_states"][0]["param_groups"][0]["fused"] = True

    edit(yard.run, change)
    return ["train.py", f"resume={yard.run}", "trainer.max_steps=6"], "the optimizer state in"


def a_root_to_download_to(yard):
    def change(checkpoint):
        source = {"_target_": "torchvision.datasets.MNIST", "_partial_": True}
        dataset = {"_target_": "ddpm_lightning.data.datasets.from_torchvision", "_partial_": True, "source": source}
        checkpoint["config"]["data"]["dataset"] = {**dataset, "channels": 1, "image_size": [8, 8]}
        checkpoint["config"]["data"]["root"] = str(yard.victim)

    (yard.victim / ".ddpm_lightning_download_mine").mkdir()
    edit(yard.run, change)
    return ["train.py", f"resume={yard.run}"], "(named by a checkpoint) does not hold MNIST"


def a_pipe(yard):
    (yard.run / "summary.json").unlink()
    os.mkfifo(yard.run / "summary.json")
    return ["train.py", "resume=auto"], "is neither a file nor a folder"


def a_member_of_negative_size(yard):
    folder = yard.run / "shards"
    folder.mkdir()
    info = tarfile.TarInfo("1.png")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    head[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    for number in range(2):
        (folder / f"{number}.tar").write_bytes(bytes(head) * 2 + b"\0" * 1024)
    return [
        *training(),
        "data=webdataset",
        f"data.root={folder}",
        f"hydra.run.dir={yard.run / 'new'}",
    ], "cannot be read"


def a_shard_that_unpacks_to_gigabytes(yard):
    folder = yard.run / "shards"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.tar").write_bytes(bz2.compress(b"\0" * 2**24))
    return [
        *training(),
        "data=webdataset",
        f"data.root={folder}",
        f"hydra.run.dir={yard.run / 'new'}",
    ], "cannot be read"


def parts_of_other_types(yard):
    edit(yard.run, lambda checkpoint: checkpoint["config"].update(callbacks=None, logger=5))
    return ["train.py", f"resume={yard.run}"], "cannot be resumed ("


def a_loop(yard):
    (yard.run / "x").symlink_to("x")
    return ["train.py", f"resume={yard.run}"], None


FOUND = (
    named_like_a_resolver,
    named_like_a_part_that_is_not_searched,
    evaluations_elsewhere,
    links_at_temporary_names,
    a_state_of_single_numbers,
    a_root_to_download_to,
    a_pipe,
    a_member_of_negative_size,
    a_shard_that_unpacks_to_gigabytes,
    parts_of_other_types,
    a_loop,
)


def test_what_an_attacker_has_found(tiny_run, tmp_path):
    yards, starts, says = [], [], []
    for number, make in enumerate(FOUND):
        yard = Yard(tmp_path, tiny_run, number)
        (yard.run / "summary.json").write_text("{}")
        argv, sentence = make(yard)
        own = [
            path for path in (yard.run, yard.path / "outputs" / "s", yard.path / "outputs" / "wandb") if path.exists()
        ]
        yards.append((yard, yard.around(*own), own))
        starts.append({"argv": argv, "cwd": str(yard.path)})
        says.append(sentence)
    results = start_all(starts)
    for make, result, sentence, (yard, before, own) in zip(FOUND, results, says, yards, strict=True):
        told = f"{make.__name__}\n{result}"
        assert yard.around(*own) == before, told
        assert "Traceback" not in result["err"], told
        if sentence is not None:
            assert result["code"] == 1, told
            assert sentence in result["err"], told
            assert len([line for line in result["err"].splitlines() if line.startswith("error: ")]) == 1, told


MAKERS = (diffusers_folder, dataset_folder, picture_folder, shard_folder)


def test_folders_of_other_libraries_do_nothing(tiny_run, tmp_path):
    denoiser = runs.load_denoiser(tiny_run / "checkpoints" / "last.ckpt")
    yards, starts, cases = [], [], []
    for number in range(40):
        yard, chance = Yard(tmp_path, tiny_run, number), random.Random(number)
        folder = yard.path / "strange"
        start = MAKERS[number % 4](folder, chance, denoiser, yard.path / "trace")
        start += [f"hydra.run.dir={yard.path / 'mine'}"] if start[0] == "train.py" else []
        yards.append((yard, yard.around(folder, yard.path / "mine")))
        starts.append({"argv": start, "cwd": str(yard.path)})
        cases.append(start)
    judge(start_all(starts), yards, cases, own=lambda yard: (yard.path / "strange", yard.path / "mine"))
