"""Shards written here, in which every pixel of an image is its number: what is read, in which order, and what is said."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.shards import Shard, read_records, stretch
from ddpm_lightning.data.streams import Stream
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.trust import check_targets
from tests.conftest import ROOT, TINY, script, train_config


def picture(number, size=(8, 8)):
    file = io.BytesIO()
    pixels = np.full(size, number, np.uint8)
    pixels[0] = np.linspace(0, 255, size[1])  # shows whether it is mirrored
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write(path, numbers, *, broken=(), label=lambda number: number % 3, ending="png"):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image = picture(number)
            files = {ending: image[: len(image) // 2] if number in broken else image}
            if label is not None:
                files["cls"] = str(label(number)).encode()
            for name, data in files.items():
                member = tarfile.TarInfo(f"{number:05d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Five shards for training with 7, 8, 8, 9 and 8 images, and one for validation with 10."""
    folder = tmp_path / "shards"
    folder.mkdir()
    first = 0
    for i, n in enumerate([7, 8, 8, 9, 8, 10]):
        write(folder / f"{i:05d}.tar", range(first, first + n))
        first += n
    return folder


def stream(root, **options):
    return Stream(str(root), 1, **{"image_size": (8, 8), "workers": 0, "buffer": 4, **options})


def loader(root, *, rank=0, world_size=1, batch_size=5, seed=0, flip=False, **options):
    place = {"rank": rank, "world_size": world_size, "accumulate": 1, "device": torch.device("cpu")}
    return stream(root, **options).train_loader(batch_size, seed, flip=flip, **place)


def endless(source):
    while True:
        yield from source


def flat(batches):
    return [*chain.from_iterable(batches)]


def ids(source, batches):
    """The numbers of the images, each of which its pixels are."""
    out = []
    for batch in islice(endless(source), batches):
        assert (batch.x0[:, 0, -1, -1] == batch.ids).all()
        out.append(batch.ids.tolist())
    return out


def test_two_workers_of_two_processes_see_every_image_once_in_a_pass(shards):
    # forty images: each of the four lanes has ten to a pass, two batches
    parts = [ids(loader(shards, rank=rank, world_size=2, workers=2), 12) for rank in range(2)]
    for first in (0, 4, 8):
        seen = [i for part in parts for batch in part[first : first + 4] for i in batch]
        assert sorted(seen) == list(range(40))


@pytest.mark.parametrize(("lanes", "batch_size"), [(1, 7), (3, 3), (7, 2), (16, 1)])
def test_passes_are_whole_whatever_the_lanes(shards, lanes, batch_size):
    row = [ids(loader(shards, rank=lane, world_size=lanes, batch_size=batch_size), 400) for lane in range(lanes)]
    # a lane's stretches have 40/lanes images, give or take one, and no lane runs ahead
    per_lane = [[i for batch in part for i in batch] for part in row]
    for epoch in range(5):
        seen = []
        for lane, images in enumerate(per_lane):
            cuts = [((lane + e) % lanes) for e in range(epoch + 1)]
            sizes = [(part + 1) * 40 // lanes - part * 40 // lanes for part in cuts]
            seen += images[sum(sizes[:-1]) : sum(sizes)]
        assert sorted(seen) == list(range(40))
    spent = lanes * (400 * batch_size // 40)
    counted = Counter(i for images in per_lane for i in images[: spent * 40 // lanes])
    assert max(counted.values()) - min(counted.values()) <= lanes + 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_stream_goes_on_where_its_state_says(shards, workers, stop):
    options = {"rank": 1, "world_size": 2, "batch_size": 3, "flip": True, "workers": workers, "buffer": 5}
    whole = list(islice(endless(loader(shards, **options)), 14))
    first, second = loader(shards, **options), loader(shards, **options)
    for _ in islice(endless(first), stop):
        pass
    assert first.state_dict()["images"] == stop * 6  # and not what the workers have read ahead
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(islice(endless(second), 14 - stop), whole[stop:], strict=True):
        assert torch.equal(ours.x0, theirs.x0)
        assert torch.equal(ours.ids, theirs.ids)


def test_seeds_and_passes_differ_and_a_run_is_repeatable(shards):
    order = ids(loader(shards), 16)
    assert order == ids(loader(shards), 16)
    assert order != ids(loader(shards, seed=1), 16)
    assert order[:8] != order[8:]
    assert flat(order[:8]) != sorted(flat(order[:8]))


def test_a_block_is_shuffled_and_the_next_one_is_read_meanwhile(shards, monkeypatch):
    from ddpm_lightning.data import lanes

    opened, read = [], lanes.read_records
    monkeypatch.setattr(lanes, "read_records", lambda pieces: read(opened.append(p) or p for p in pieces))
    for _ in islice(endless(loader(shards, batch_size=1, buffer=4)), 4):
        pass
    assert len(opened) <= 2  # of five


def test_a_state_far_on_opens_no_shard_before_its_place(shards, monkeypatch):
    from ddpm_lightning.data import lanes

    opened, read = [], lanes.read_records
    monkeypatch.setattr(lanes, "read_records", lambda pieces: read(opened.append(p) or p for p in pieces))
    far = loader(shards, batch_size=1, buffer=4)
    far.load_state_dict({"images": 40_000 + 38})
    next(iter(far))
    assert len(opened) == 1


@pytest.mark.parametrize("change", [{"world_size": 2}, {"workers": 2}, {"batch_size": 4}])
def test_with_other_lanes_it_goes_on_with_the_next_pass(shards, caplog, change):
    """No image comes twice in a pass, and the next one is whole, in the order that it has from its beginning."""
    first = loader(shards, batch_size=5)
    for _ in islice(endless(first), 5):  # 25 of 40 images
        pass
    others = {"batch_size": 5, **change}
    ranks = [loader(shards, rank=r, **others) for r in range(others.get("world_size", 1))]
    for one in ranks:
        one.load_state_dict(first.state_dict())
    assert caplog.text.count("the stream goes on with its next pass, the number 2") == 1
    turns = [endless(one) for one in ranks]
    batches = 40 // (others["batch_size"] * len(ranks))
    seen = [i for _ in range(batches) for turn in turns for i in next(turn).ids.tolist()]
    assert sorted(seen) == list(range(40))
    assert ranks[0].state_dict()["images"] == 25 + 40
    again = loader(shards, rank=0, **others)
    again.load_state_dict(ranks[0].state_dict())  # of the same lanes: nothing is left out
    assert torch.equal(next(iter(again)).ids, next(turns[0]).ids)
    assert caplog.text.count("the stream goes on") == 1


def test_flips_mirror_half_of_the_images(shards):
    flipped = [
        (batch.x0[:, 0, 0, 0] == 255).float().mean().item()
        for batch in islice(endless(loader(shards, batch_size=40, flip=True)), 10)
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.1)
    assert len({*flipped}) > 1


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_validation_sees_the_last_shard_once(shards, workers, world_size, batch_size):
    if workers and batch_size != 4:
        pytest.skip("processes take time")
    seen, lengths = [], set()
    for rank in range(world_size):
        source = stream(shards, workers=workers)
        part = source.val_loader(batch_size, rank=rank, world_size=world_size, device=torch.device("cpu"))
        batches = list(part)
        assert len(batches) == len(part)
        assert all(1 <= len(batch.ids) <= batch_size + 1 for batch in batches)
        lengths.add(len(batches))
        seen += [i for batch in batches for i in batch.ids.tolist()]
    assert sorted(seen) == list(range(40, 50))
    assert len(lengths) == 1


def module(root, **options):
    data = {"channels": 1, "image_size": [8, 8], "batch_size": 4, **options}
    found = ImageDataModule(lambda: stream(root), **data)
    found.setup()
    return found


def test_parts_come_in_batches_in_their_order(shards):
    data = module(shards, num_classes=3)
    batches = list(data.batches("train", 16))
    assert [i for batch in batches for i in batch.ids.tolist()] == list(range(40))
    assert all(torch.equal(batch.y, batch.ids % 3) for batch in batches)
    assert batches[0].x0.dtype == torch.uint8
    part = data.split("validation")
    assert part.images[:, 0, -1, -1].tolist() == list(range(40, 50))
    assert part.labels.tolist() == [i % 3 for i in range(40, 50)]
    assert module(shards).split("validation").labels.tolist() == [0] * 10
    assert list(stream(shards, val_shards=0).batches("validation", 4)) == []


@pytest.mark.parametrize(
    "pattern",
    ["{}", "{}/*.tar", "{}/{{00000..00005}}.tar", "file:{}/{{00000..00005}}.tar", "pipe:cat {}/{{00000..00005}}.tar"],
)
def test_ways_to_name_shards(shards, pattern, tmp_path):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({f"{i:05d}.tar": n for i, n in enumerate([7, 8, 8, 9, 8, 10])}))
    found = stream(pattern.format(shards), sizes=str(sizes) if ":" in pattern else None)
    seen = [i for name in ("train", "validation") for batch in found.batches(name, 7) for i in batch.ids.tolist()]
    assert seen == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_counted_and_left_out(shards, workers, caplog):
    write(shards / "00002.tar", range(15, 23), broken=[17])
    order = flat(ids(loader(shards, workers=workers, max_damaged=0.1), 8))
    assert len(order) == 40  # the next takes its place
    assert set(range(40)) - {*order} == {17}
    assert f"00017 of {shards / '00002.tar'} (" in caplog.text
    assert caplog.text.count("is damaged and left out") == 1
    half = loader(shards, max_damaged=0.1)
    half.load_state_dict({"images": 4 * 5})
    assert flat(ids(half, 4)) == flat(ids(loader(shards, max_damaged=0.1), 8))[20:]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_images_end_it(shards, workers):
    write(shards / "00002.tar", range(15, 23), broken=[16, 17])
    with pytest.raises(
        UserError, match=r"2 of 40 images are damaged, among them .*: mend or remove .*max_damaged \(now 0.04\)"
    ):
        ids(loader(shards, workers=workers, max_damaged=0.04), 20)
    for i in range(5):
        write(shards / f"{i:05d}.tar", range(8 * i, 8 * i + 8), broken=range(40))
    with pytest.raises(UserError, match="max_damaged"):
        ids(loader(shards, workers=workers, max_damaged=1), 9)


def test_a_shard_that_ends_too_soon(shards, caplog):
    counted, strict, whole = loader(shards, max_damaged=0.2), loader(shards), shards / "00003.tar"
    whole.write_bytes(whole.read_bytes()[: 6 * 2048 + 700])  # each image takes 1,024 bytes, and so does its label
    assert {*range(40)} - {*flat(ids(counted, 8))} == {28, 29, 30, 31} - {28}
    assert "sample 6 of" in caplog.text
    assert caplog.text.count("and what follows it (unexpected end of data) is damaged") == 1
    with pytest.raises(UserError, match="images are damaged, among them .*00003.tar"):
        ids(strict, 8)


def refused(root, *, num_classes=None, world_size=1, **options):
    def use():
        found = stream(root, **options)
        found.prepared(1, (8, 8), num_classes=num_classes, val_fraction=0, seed=0).check(world_size)
        list(found.batches("train", 8))

    with pytest.raises(UserError) as raised:
        use()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_will_not_do_is_said_in_a_sentence(shards, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "empty holds no shards: give a folder of *.tar files" in refused(tmp_path / "empty")
    assert "there is no shard nowhere.tar; give the path" in refused("nowhere.tar")
    assert "hides a command: let it start with pipe:" in refused("{p,}ipe:cat shards.tar")
    assert "sizes is not given, and http://none/0.tar would have to be read" in refused("http://none/0.tar")
    assert "image_key=jpg: the shard" in (said := refused(shards, image_key="jpg"))
    assert "holds no such sample, but cls, png; give the ending" in said
    assert "wants labels, and data.dataset.label_key is null" in refused(shards, label_key=None, num_classes=3)
    assert "label_key=txt: 00000 of" in (said := refused(shards, label_key="txt", num_classes=3))
    assert "has no such file, but png, cls; give another ending" in said
    assert "data.num_classes=2, but 00002 of" in (said := refused(shards, num_classes=2))
    assert "has the label 2: give more" in said
    assert "is no whole number" in refused(shards, num_classes=2, label_key="png")
    assert "workers=30, in 2 process(es), are more than the 40 training images" in refused(
        shards, workers=30, world_size=2
    )
    assert "val_shards=1 holds out 10 images for 16 processes" in refused(shards, world_size=16)
    assert "val_shards=6 leaves none of the 6 shards" in refused(shards, val_shards=6)
    assert "workers=-1 will not do" in refused(shards, workers=-1)
    assert "buffer=0 will not do" in refused(shards, buffer=0)
    assert "max_damaged=2 is no share" in refused(shards, max_damaged=2)
    (tmp_path / "sizes.json").write_text('{"00000.tar": 7}')
    assert "sizes.json does not give the number of samples in 00001.tar" in refused(
        shards, sizes=str(tmp_path / "sizes.json")
    )
    assert "sizes=none.json will not do" in refused(shards, sizes="none.json")
    (shards / "00001.tar").write_bytes(b"no tar")
    assert "00001.tar cannot be read (" in refused(shards)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    assert "needs the package webdataset: pip install 'ddpm_lightning[webdataset]'" in refused(shards)


def test_a_checkpoint_may_not_run_commands(monkeypatch):
    node = {"_target_": "ddpm_lightning.data.datamodule.ImageDataModule", "root": ["pipe:cat a.tar"]}
    with pytest.raises(UserError, match="DDPM_ALLOW_PIPE=1"):
        check_targets(node, "data")
    monkeypatch.setenv("DDPM_ALLOW_PIPE", "1")
    check_targets(node, "data")


SHORT = ["data=webdataset", "data.channels=1", "data.image_size=[8,8]", "data.batch_size=5", "data.dataset.buffer=4"]


@pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")
@pytest.mark.parametrize("labels", ["null", "3"])
def test_it_trains_and_goes_on_as_if_it_had_not_stopped(shards, tmp_path, labels, caplog):
    options = [*SHORT, f"data.root={shards}", f"data.num_classes={labels}", "data.dataset.workers=1"]
    with caplog.at_level(logging.WARNING):
        runs.train(train_config(tmp_path / "whole", *options, "trainer.max_steps=6"))
    if labels == "3":
        return
    runs.train(train_config(tmp_path / "part", *options, "trainer.max_steps=4"))
    config = train_config(tmp_path / "unused", *options, f"resume={tmp_path / 'part'}")
    held = torch.load(tmp_path / "part" / "checkpoints" / "last.ckpt", weights_only=True)
    assert held["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["images"] == 20
    held["config"]["trainer"]["max_steps"] = 6
    torch.save(held, tmp_path / "part" / "checkpoints" / "last.ckpt")
    for other in (tmp_path / "part" / "checkpoints").glob("step*"):
        other.unlink()
    runs.train(config)
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "part")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 6
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key


@pytest.mark.slow
def test_two_processes_train_on_a_stream(shards, tmp_path):
    run = ["hydra.run.dir=run", "trainer=ddp_cpu", "trainer.devices=2", "logger=none", f"data.root={shards}"]
    result = script("train.py", *TINY, *SHORT, *run, "trainer.max_steps=10", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_run_and_not_before_it(shards, tmp_path, number):
    run = ["hydra.run.dir=run", "logger=none", f"data.root={shards}", "trainer.max_steps=100000"]
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *TINY,
        *SHORT,
        *run,
        "callbacks.checkpoint.every_n_train_steps=50",
    ]
    command += [f"callbacks.{name}.every_n_steps=1000" for name in ("sample_grid", "trajectory")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "HYDRA"))}
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean, start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        metrics = tmp_path / "run" / "metrics.csv"
        waited(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
        # as SLURM does, to all at once; the run's last step wants a batch of its workers
        os.killpg(process.pid, number) if number == signal.SIGTERM else process.kill()
        assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
        waited(lambda: not others(process.pid))
    if number == signal.SIGTERM:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def others(group):
    """The processes of a group that are alive."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if line.split()[0] == str(group) and "Z" not in line.split()[1]]


def waited(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def sparse_header(name, size):
    """A member of a tar file that holds one byte, and declares as many as are given."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    head[124:136], head[386:398], head[398:410] = b"00000000001\0", b"00000000000\0", b"00000000001\0"
    head[483:495] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + b"x".ljust(512, b"\0")


@pytest.mark.parametrize("kind", ["sparse", "large", "long name"])
def test_a_file_that_declares_more_than_a_picture_has_is_not_read(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        file = io.BytesIO()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, format="png")
        for name in ("0.png", "1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            tar.addfile(info, io.BytesIO(file.getvalue()))
    end = 2 * (512 + -(-info.size // 512) * 512)
    info = tarfile.TarInfo("2.png")
    info.size, info.type = 2**40, tarfile.REGTYPE if kind == "large" else tarfile.GNUTYPE_LONGNAME
    head = sparse_header("2.png", 2**40) if kind == "sparse" else info.tobuf(tarfile.GNU_FORMAT)[:512]
    held = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(held[:end] + head + held[end:])
    samples = [*read_records(stretch([Shard(str(tmp_path / "0.tar"), 0, 3)], 0, 3))]
    assert samples[0].damage is None  # and the next is not yet known to be complete
    assert "1,099,511,627,776 bytes" in samples[1].damage
