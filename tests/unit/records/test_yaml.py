"""What a record may put on a command line."""

import pytest
import yaml

from ddpm_lightning.cli.resume import complete_arguments
from ddpm_lightning.errors import UserError
from ddpm_lightning.records.yaml import Vocabulary, length, read_record, recorded_sweep

GROUPS = {name: ["digits", "webdataset", "linear", "cosine"] for name in ("data", "schedule")}
GROUPS |= {name: ["default"] for name in ("callbacks", "loss", "sweep", "experiment", "logger")}
WORDS = Vocabulary(GROUPS, ["seed", "init_from", "trust"], hydra=True)


@pytest.mark.parametrize(
    "text",
    [
        "seed=3",
        "seed=0,1,2",
        "seed=range(0,5)",
        "data=digits",
        "schedule=linear,cosine",
        "loss/times=importance",
        "+data.flip=true",
        "~callbacks.fid",
        "callbacks.sample_grid=null",
        "data.root='a folder'",
        "data.root=../data",
        "init_from=outputs/a/b",
        "data.dataset.sizes={a: 1}",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweeper.params.seed='range(0,3)'",
        "hydra.launcher.partition=gpu",
    ],
)
def test_names_of_ours_and_plain_values_are_replayed(text):
    assert WORDS.objection(text) is None
    assert WORDS.replayable([text]) == [text]


def test_keys_beside_a_choice_that_is_not_there_are_added():
    """A run whose config folder is not named again: its checkpoint has what the choice did."""
    record = ["data=mine", "data.root=x", "+data.flip=true", "~callbacks.fid", "seed=1"]
    assert WORDS.replayable(record) == ["++data.root=x", "++data.flip=true", "~callbacks.fid", "seed=1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("--config-dir=evil", "a flag"),
        ("-m", "a flag"),
        (7, "a flag"),
        (["seed=1"], "a flag"),
        ("seed=[", "cannot be read"),
        ("data@callbacks.x=webdataset", "names a package"),
        ("+data@hydra.callbacks.x=webdataset", "names a package"),
        ("other=1", "not a key of this program"),
        ("resume=x", "not a key of this program"),
        ("trust=[os]", "not a key of this program"),
        ("+trust=[os]", "not a key of this program"),
        ("data=mine", "no config folder has that choice"),
        ("schedule=linear,mine", "no config folder has that choice"),
        ("run_dir=x", "not a key of this program"),
        ("callbacks.ema._target_=os.mkdir", "chooses code"),
        ("+callbacks.x={_target_: os.mkdir}", "more than plain data"),
        ("callbacks.x=[{a: {_target_: os.mkdir}}]", "more than plain data"),
        ("seed=${oc.env:HOME}", "more than plain data"),
        ("data.root='pipe:touch x'", "more than plain data"),
        ("data.root=choice(a,'pipe:touch x')", "more than plain data"),
        ("data=../../evil", "no file of a config group"),
        ("data=/tmp/evil", "no file of a config group"),
        ("data=digits,/tmp/evil", "no file of a config group"),
        ("callbacks.checkpoint.dirpath=x", "where files are written"),
        ("callbacks.fid.cache_dir=x", "where files are written"),
        ("logger.tensorboard.name=../../x", "where files are written"),
        ("+callbacks.x={dirpath: y}", "more than plain data"),
        ("seed=range(0,1000000000)", "more than plain data"),
        ("hydra.launcher.setup=[touch]", "what Hydra itself does"),
        ("hydra.launcher.partition='a b'", "what Hydra itself does"),
        ("hydra.sweeper.custom_search_space=os.system", "what Hydra itself does"),
        ("hydra.sweeper.params.optimizer='x'", "not a key of this program"),
        ("hydra.searchpath=[x]", "what Hydra itself does"),
        ("hydra/callbacks=x", "what Hydra itself does"),
        ("hydra/launcher=evil", "chooses code"),
    ],
)
def test_nothing_else_is(text, why):
    assert why in WORDS.objection(text)
    assert WORDS.replayable([text, "seed=1"]) == ["seed=1"]


def test_a_record_is_read_as_plain_data(tmp_path):
    path = tmp_path / "record.yaml"
    path.write_text("a: 1e-4\nb: 2020-01-01\nc: ${oc.env:HOME}\n")
    assert read_record(path) == {"a": 1e-4, "b": "2020-01-01", "c": "${oc.env:HOME}"}
    for text in ("a: &x [1]\nb: *x", "!!python/object/apply:os.mkdir [x]", "[" * 5000, "{", "a: " + "x" * 2**23):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path} cannot be read as a record"):
            read_record(path)
    with pytest.raises(UserError, match="cannot be read as a record"):
        read_record(tmp_path / "missing.yaml")


def test_a_sweeps_record(tmp_path):
    good = {
        "overrides": {"task": ["seed=0,1"], "hydra": []},
        "sweeper": {"params": None},
        "job": {"config_name": "train"},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": good}))
    assert recorded_sweep(tmp_path) == good
    for part, value in (
        ("overrides", {"task": "seed=1", "hydra": []}),
        ("overrides", {"task": [1], "hydra": []}),
        ("overrides", None),
        ("sweeper", {"params": [1]}),
        ("sweeper", {"params": None, "n_trials": "many"}),
        ("job", []),
    ):
        (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {**good, part: value}}))
        with pytest.raises(UserError, match="must be the record of a sweep"):
            recorded_sweep(tmp_path)


def test_the_length_of_a_range_without_its_values():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parse = OverridesParser.create().parse_override
    assert length(parse("seed=range(0,1000000000000)").value()) == 10**12
    assert length(parse("seed=range(0,1,0.25)").value()) == 4


def test_a_sweeps_line_that_is_not_replayed_is_typed_again(tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_LAUNCH", raising=False)
    lines = ["seed=0,1", "callbacks.checkpoint.dirpath=/scratch/run", "data=digits"]
    record = {"overrides": {"task": lines, "hydra": []}, "sweeper": {"params": None}, "job": {"config_name": "train"}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": record}))
    with pytest.raises(UserError, match=r"records 'callbacks.checkpoint.dirpath=/scratch/run', .*since it says where"):
        complete_arguments(["-m", f"resume={tmp_path}"])
    argv = complete_arguments(["-m", lines[1], f"resume={tmp_path}", "logger=none"])
    assert argv == ["-m", *lines, "logger=none", f"hydra.sweep.dir='{tmp_path}'"]
