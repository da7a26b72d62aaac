"""Read a run's records, possibly untrusted, as names and plain values that can be replayed without running code."""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString, RangeSweep
from hydra.errors import HydraException

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import within
from ddpm_lightning.records.moved import rename_targets
from ddpm_lightning.run_folder import SWEEP

__all__ = ["NAMES", "WRITTEN_TO", "Vocabulary", "length", "quoted", "read_record", "recorded_sweep"]

WRITTEN_TO = (  # keys of paths
    "cache_dir",
    "default_root_dir",
    "dir",
    "dirpath",
    "folder",
    "out_dir",
    "run_dir",
    "save_dir",
    "sub_dir",
)
NAMES = ("name", "version", "filename", "filename_suffix")  # keys of values appended to a path
_BYTES = 2**18  # a record is a few kilobytes
_LINES, _LINE = 1_000, 10_000  # maximum number of overrides, and characters per override
_JOBS = 10_000  # maximum length of a range

# Allowed Hydra settings: the launcher and its resources, as numbers and words.
_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
_HYDRA_CHOICES = re.compile(
    "basic|joblib|submitit_local|submitit_slurm|optuna|tpe|random|grid|cmaes|nsgaii|motpe", re.ASCII
)
_HYDRA_KEYS = re.compile(
    r"hydra\.sweeper\.(n_trials|n_jobs|max_batch_size|max_failure_rate|direction|study_name|sampler\.seed)|"
    r"hydra\.launcher\.(n_jobs|timeout_min|cpus_per_task|gpus_per_node|gpus_per_task|tasks_per_node|mem_gb|nodes|"
    r"partition|qos|constraint|gres|account|array_parallelism|max_num_timeout|signal_delay_s)"
)
_PARAMS = "hydra.sweeper.params."
_NO_CHOICE = "no config folder has that choice; name yours with --config-dir"


class _Loader(yaml.SafeLoader):
    """YAML of plain data with string keys, without aliases, which can expand beyond the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if not all(isinstance(key, str) for key in mapping):
            raise yaml.YAMLError("it holds a key that is not a string")
        return mapping


_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null")
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}


# As OmegaConf reads YAML: dates are strings, 1e-4 is a number, and 1:1 is not.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?((\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][\d_]*)$"), [*"-+0123456789"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), [*"-+0123456789."])


def read_record(path: Path) -> Any:
    """Read a YAML file as plain data.

    Raises:
        UserError: if that fails.
    """
    why = f"it must be a file of at most {_BYTES:,} bytes"
    try:
        if path.is_file() and path.stat().st_size <= _BYTES:
            record = yaml.load(path.read_text(encoding="utf-8"), _Loader)
            rename_targets(record)
            return record
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:160]
    raise UserError(f"{path} cannot be read as a record of a run ({why}): choose another folder")


def recorded_sweep(folder: Path) -> dict[str, Any]:
    """The `hydra` node of a sweep's record, as plain data.

    Raises:
        UserError: if the record cannot be read or is not a sweep's.
    """
    with suppress(UserError, TypeError, KeyError, AttributeError):  # reported below
        hydra: dict[str, Any] = read_record(folder / SWEEP)["hydra"]
        overrides, sweeper = hydra["overrides"], hydra["sweeper"]
        if (
            _are_texts(overrides["hydra"])
            and _are_texts(overrides["task"])
            and isinstance(sweeper.get("params"), dict | None)
            and within(sweeper.get("n_trials", 1), "1..")
            and isinstance(hydra["job"], dict)
        ):
            return hydra
    raise UserError(
        f"{folder / SWEEP} must be the record of a sweep, but is damaged or another file: choose another folder"
    )


def quoted(path: Path) -> str:
    """Quote a path for Hydra's command line.

    Raises:
        UserError: for a path that Hydra cannot read back.
    """
    text = path.as_posix()
    if "${" in text or "\\" in text:
        raise UserError(f"a folder's name must not contain ${{ or a backslash, got {text}: rename the folder")
    return "'" + text.replace("'", r"\'") + "'"


class Vocabulary:
    """The keys and groups of our configs, which are the only ones a record may override.

    Args:
        groups: the choices of each config group, such as "data".
        keys: other top-level keys, such as "seed".
        hydra: whether to allow a sweep's launcher settings.
    """

    def __init__(self, groups: Mapping[str, Collection[str]], keys: Collection[str], *, hydra: bool = False):
        self._with_hydra = hydra
        self._groups = {group: names for group, names in groups.items() if group.partition("/")[0] != "hydra"}
        self._keys = {*self._groups, *keys} - {"hydra", "resume", "trust", *WRITTEN_TO}
        self._parser = OverridesParser.create()

    def replayable(self, overrides: Iterable[Any]) -> list[str]:
        """A record's overrides of our own groups and keys with plain values.

        If a choice from a missing config folder is named, its keys may not exist and are added.
        """
        whys = {text: self.objection(text) for text in islice(overrides, _LINES) if isinstance(text, str)}
        replayed = [text for text, why in whys.items() if why is None]
        if _NO_CHOICE not in whys.values():
            return replayed
        return [f"++{text.lstrip('+')}" if re.match(r"[+\w]+\.", text) else text for text in replayed]

    def objection(self, text: Any) -> str | None:
        """Why an override cannot be replayed; None if it can."""
        if not isinstance(text, str) or text.startswith("-"):
            return "it is a flag, not a key with a value"
        if len(text) > _LINE:
            return f"it has more than {_LINE:,} characters"
        try:
            override = self._parser.parse_override(text)
            value = override.value()
        except (HydraException, ValueError, RecursionError):
            return "it cannot be read"
        key = override.key_or_group
        if override.package is not None or not re.fullmatch(r"[\w./-]+", key, re.ASCII):
            return "it names a package"
        return self._hydra(key, value) if key.startswith("hydra") else self._own(key, value)

    def _own(self, key: str, value: Any) -> str | None:
        first, *others = re.split(r"[./]", key)
        if first not in self._keys:
            return f"{first} is not a key of this program's config"
        if any(part.startswith("_") for part in others):
            return "it chooses code to run"
        if others and (others[-1] in WRITTEN_TO or (others[-1] in NAMES and not _all(value, _is_name))):
            return "it says where files are written"
        if ("/" in key or (key in self._groups)) and not _all(value, _is_choice):
            return "it names no file of a config group"
        if key in self._groups and not _all(value, lambda choice: _exist(choice, self._groups[key])):
            return _NO_CHOICE
        return None if _all(value, _is_plain) else "its value is more than plain data"

    def _hydra(self, key: str, value: Any) -> str | None:
        if not self._with_hydra:
            return "it sets what Hydra itself does"
        if key.startswith(_PARAMS) and isinstance(value, str | int | float | QuotedString):
            text = value.text if isinstance(value, QuotedString) else value
            return self.objection(f"{key.removeprefix(_PARAMS)}={text}")
        if key in _HYDRA_GROUPS:
            return None if _HYDRA_CHOICES.fullmatch(str(value)) else "it chooses code to run"
        if _HYDRA_KEYS.fullmatch(key) and re.fullmatch(r"[\w.,:-]+", str(value), re.ASCII):
            return None
        return "it sets what Hydra itself does"


def _all(value: Any, test: Any) -> bool:
    """Whether a value, or each value of a sweep, passes a test."""
    if isinstance(value, RangeSweep):
        return length(value) <= _JOBS
    return all(test(one) for one in value.list) if isinstance(value, ChoiceSweep) else test(value)


def length(sweep: RangeSweep) -> float:
    """The approximate length of a range, without expanding it."""
    start, stop, step = (float(number or 0) for number in (sweep.start, sweep.stop, sweep.step))
    return abs((stop - start) / step) if step else float("inf")


def _exist(value: Any, names: Collection[str]) -> bool:
    """Whether a choice, or each of a list, is among the names; null always is."""
    return all(one is None or str(one) in names for one in (value if isinstance(value, list) else [value]))


def _is_choice(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_choice, value))
    return value is None or re.fullmatch(r"\w[\w-]*", str(value), re.ASCII) is not None


def _is_name(value: Any) -> bool:
    path = Path(str(value))
    return not path.is_absolute() and ".." not in path.parts


def _is_plain(value: Any) -> bool:
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str):
        return "${" not in value and not value.strip().startswith("pipe:")
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        names = [str(name) for name in value]
        acts = any(name.startswith("_") or name in (*WRITTEN_TO, *NAMES) for name in names)
        return not acts and all(map(_is_plain, value.values()))
    return True


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _LINES
        and all(isinstance(text, str) and len(text) <= _LINE for text in value)
    )
