"""Shards written here, in which every pixel of an image is its number: what is read, in which order, and what is said."""

import io
import json
import sys
import tarfile
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.shards import Shard, read_samples, slice_shards
from ddpm_lightning.data.source import Form, Share
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.trust import check_targets
from tests.helpers.shards import endless, loader, picture, stream, write


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
    # forty images: each of the four readers has ten to a pass, two batches
    parts = [ids(loader(shards, rank=rank, world_size=2, workers=2), 12) for rank in range(2)]
    for first in (0, 4, 8):
        seen = [i for part in parts for batch in part[first : first + 4] for i in batch]
        assert sorted(seen) == list(range(40))


def row(shards, processes, steps, *, images, batches=1, **options):
    """The numbers of the images in their order, whoever has them, and the images."""
    share = [Share(images // processes // batches, rank, processes, batches) for rank in range(processes)]
    found = [stream(shards, **options).prepared(Form(1, (8, 8), seed=3, flip=True)) for _ in share]
    loaders = [endless(one.train_loader(each, torch.device("cpu"))) for one, each in zip(found, share, strict=True)]
    parts = [next(one) for _ in range(steps * batches) for one in loaders]
    return torch.cat([part.ids for part in parts]).tolist(), torch.cat([part.x0 for part in parts])


@pytest.mark.parametrize("images", [7, 9, 14, 16])
def test_every_pass_is_complete(shards, images):
    segments = max(n for n in (1, 2, 3, 4, 5) if images % n == 0)
    order, _ = row(shards, 1, 200, images=images)
    steps = np.array(order).reshape(200, segments, images // segments)
    per_segment = [steps[:, segment].flatten().tolist() for segment in range(segments)]
    # a segment's stretches have 40/segments images, give or take one, and none runs ahead
    for epoch in range(5):
        seen = []
        for segment, given in enumerate(per_segment):
            cuts = [((segment + e) % segments) for e in range(epoch + 1)]
            sizes = [(part + 1) * 40 // segments - part * 40 // segments for part in cuts]
            seen += given[sum(sizes[:-1]) : sum(sizes)]
        assert sorted(seen) == list(range(40))
    counted = Counter(order[: images * (200 * 40 // images)])
    assert max(counted.values()) - min(counted.values()) <= segments + 1


@pytest.mark.parametrize(
    ("processes", "batches", "workers", "damaged"),
    [(2, 1, 0, ()), (1, 2, 0, ()), (4, 1, 0, (3, 17, 18)), (2, 2, 0, (3, 17, 18)), (2, 1, 2, (3, 17, 18))],
)
def test_the_order_is_the_same_whoever_reads(shards, processes, batches, workers, damaged):
    """One, two or four processes, accumulated batches, and workers: the same images in the same order, mirrored or not."""
    for i, first in enumerate((0, 7, 15, 23, 32)):
        write(shards / f"{i:05d}.tar", range(first, first + (7, 8, 8, 9, 8)[i]), broken=damaged)
    order, x0 = row(shards, 1, 12, images=8, buffer=16, max_damaged=0.5)
    assert len({*order[:40]}) > 30
    found, images = row(shards, processes, 12, images=8, batches=batches, workers=workers, buffer=16, max_damaged=0.5)
    assert found == order
    assert torch.equal(images, x0)
    assert not {*order} & {*damaged}


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


def test_other_processes_go_on_where_these_stopped(shards, caplog):
    order, _ = row(shards, 1, 12, images=8)
    half = stream(shards).prepared(Form(1, (8, 8), seed=3, flip=True)).train_loader(Share(4, 0, 2), torch.device("cpu"))
    for _ in islice(endless(half), 5):
        pass
    for share in (Share(8), Share(2, 0, 1, 4)):
        found = stream(shards).prepared(Form(1, (8, 8), seed=3, flip=True)).train_loader(share, torch.device("cpu"))
        found.load_state_dict(half.state_dict())
        assert flat(batch.ids.tolist() for batch in islice(endless(found), 7 * share.accumulate)) == order[40:]
    assert caplog.text == ""
    other = stream(shards).prepared(Form(1, (8, 8), seed=3)).train_loader(Share(5), torch.device("cpu"))
    other.load_state_dict(half.state_dict())
    assert "resumes with its next pass, number 2" in caplog.text


def test_workers_without_shards_of_their_own_are_told(shards, caplog):
    loader(shards, workers=2, batch_size=10, world_size=2)  # four workers, five segments
    assert caplog.text == ""
    loader(shards, workers=2, batch_size=7, world_size=2)  # two segments, since 14 images are no multiple of five
    assert caplog.text == ""
    loader(shards, workers=3, batch_size=7, world_size=1)
    assert "3 workers share 1 segments, so each shard is read 3 times" in caplog.text


def test_seeds_and_passes_differ_and_a_run_is_repeatable(shards):
    order = ids(loader(shards), 16)
    assert order == ids(loader(shards), 16)
    assert order != ids(loader(shards, seed=1), 16)
    assert order[:8] != order[8:]
    assert flat(order[:8]) != sorted(flat(order[:8]))


def test_a_block_is_shuffled_and_the_next_one_is_read_meanwhile(shards, monkeypatch):
    from ddpm_lightning.data import workers

    opened, read = [], workers.read_samples
    monkeypatch.setattr(workers, "read_samples", lambda slices: read(opened.append(s) or s for s in slices))
    for _ in islice(endless(loader(shards, batch_size=1, buffer=4)), 4):
        pass
    assert len(opened) <= 2  # of five


def test_a_state_far_on_opens_no_shard_before_its_place(shards, monkeypatch):
    from ddpm_lightning.data import workers

    opened, read = [], workers.read_samples
    monkeypatch.setattr(workers, "read_samples", lambda slices: read(opened.append(s) or s for s in slices))
    far = loader(shards, batch_size=1, buffer=4)
    far.load_state_dict({**far.state_dict(), "images": 40_000 + 38})
    next(iter(far))
    assert len(opened) == 1


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
        part = source.loader("validation", Share(batch_size, rank, world_size))
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
    assert list(stream(shards, val_shards=0).loader("validation", Share(4))) == []


@pytest.mark.parametrize(
    "pattern",
    ["{}", "{}/*.tar", "{}/{{00000..00005}}.tar", "file:{}/{{00000..00005}}.tar", "pipe:cat {}/{{00000..00005}}.tar"],
)
def test_ways_to_name_shards(shards, pattern, tmp_path):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({f"{i:05d}.tar": n for i, n in enumerate([7, 8, 8, 9, 8, 10])}))
    found = stream(pattern.format(shards), sizes=str(sizes) if ":" in pattern else None)
    seen = [i for name in ("train", "validation") for batch in found.loader(name, Share(7)) for i in batch.ids.tolist()]
    assert seen == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_counted_and_left_out(shards, workers, caplog):
    write(shards / "00002.tar", range(15, 23), broken=[17])
    order = flat(ids(loader(shards, workers=workers, max_damaged=0.1), 8))
    assert len(order) == 40  # the next takes its place
    assert set(range(40)) - {*order} == {17}
    assert f"00017 of {shards / '00002.tar'} (" in caplog.text
    assert caplog.text.count("is damaged and skipped") == 1
    half = loader(shards, max_damaged=0.1)
    half.load_state_dict({**half.state_dict(), "images": 4 * 5})
    assert flat(ids(half, 4)) == flat(ids(loader(shards, max_damaged=0.1), 8))[20:]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_images_end_it(shards, workers):
    write(shards / "00002.tar", range(15, 23), broken=[16, 17])
    with pytest.raises(
        UserError, match=r"2 of 40 images are damaged, such as .*: fix or remove .*max_damaged=0.04 allows 1"
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
    assert caplog.text.count("and everything after it (unexpected end of data) is damaged") == 1
    with pytest.raises(UserError, match="1 of 40 images is damaged, such as .*00003.tar"):
        ids(strict, 8)


def refused(root, *, num_classes=None, world_size=1, **options):
    def use():
        found = stream(root, **options)
        found.prepared(Form(1, (8, 8), num_classes)).check(world_size)
        list(found.loader("train", Share(8)))

    with pytest.raises(UserError) as raised:
        use()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_will_not_do_is_said_in_a_sentence(shards, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "data.root must be a folder of *.tar files" in refused(tmp_path / "empty")
    assert "got nowhere.tar" in refused("nowhere.tar")
    assert "a command that starts with pipe:, got {p,}ipe:cat" in refused("{p,}ipe:cat shards.tar")
    assert "a plain URL, or" in refused("http://none/$(date).tar")
    assert "must be an integer from 1 to 1000000, got 1000001" in refused("{0..1000000}.tar")
    assert "sizes=null: the number of samples in 0.tar must be" in (said := refused("http://none/0.tar"))
    assert "got null: samples behind URLs are not counted; give" in said
    said = refused(shards, image_key="jpg")
    assert "00000.tar must hold images that end in one of jpg, got cls, png: set data.dataset.image_key" in said
    assert "label_key=null: the label of 00000 of" in refused(shards, label_key=None, num_classes=3)
    assert "label_key=txt: the label of 00000 of" in (said := refused(shards, label_key="txt", num_classes=3))
    assert "must be an integer from 0 to 2, got null: the sample has the files png, cls" in said
    assert "the label of 00002 of" in (said := refused(shards, num_classes=2))
    assert "must be an integer from 0 to 1, got 2: " in said
    assert "data.num_classes=null, now 2, trains without labels" in said
    assert "must be an integer from 0 to 1, got b'" in refused(shards, num_classes=2, label_key="png")
    assert "segments must be an integer from 1 to 65536, got 0" in refused(shards, segments=0)
    assert "the number of processes must be an integer from 1 to 10, got 16" in refused(shards, world_size=16)
    assert "val_shards must be an integer from 0 to 5, got 6: at least one of the 6 shards" in refused(
        shards, val_shards=6
    )
    assert "workers must be an integer from 0 to 1024, got -1" in refused(shards, workers=-1)
    assert "buffer must be an integer from 1 to 100000000, got 0" in refused(shards, buffer=0)
    assert "max_damaged must be a number in [0, 1], got 2" in refused(shards, max_damaged=2)
    (tmp_path / "sizes.json").write_text('{"00000.tar": 7}')
    said = refused(shards, sizes=str(tmp_path / "sizes.json"))
    assert "sizes.json: the number of samples in 00001.tar must be an integer" in said
    assert "sizes must be a JSON file such as" in refused(shards, sizes="none.json")
    (shards / "00001.tar").write_bytes(b"no tar")
    assert "got nothing and cannot be read (" in refused(shards)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    assert "requires the package webdataset: pip install 'ddpm_lightning[webdataset]'" in refused(shards)


def test_a_checkpoint_may_not_run_commands(monkeypatch):
    node = {"_target_": "ddpm_lightning.data.datamodule.ImageDataModule", "root": ["pipe:cat a.tar"]}
    with pytest.raises(UserError, match="DDPM_ALLOW_PIPE=1"):
        check_targets(node, "data")
    monkeypatch.setenv("DDPM_ALLOW_PIPE", "1")
    check_targets(node, "data")


def dotted(path, numbers, *, name="cat.v1.{:02d}", label_key="cls"):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for ending, data in (("PNG", picture(number)), (label_key, str(number % 3).encode()), ("info", b"{}")):
                member = tarfile.TarInfo(f"./a.b/{name.format(number)}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                tar.addfile(tarfile.TarInfo("a.b/._hidden.01.png"))


@pytest.mark.parametrize("scheme", ["", "file:"])
def test_names_with_dots_of_their_own(tmp_path, scheme):
    """Where nothing ends in an image's ending behind the first dot, names are cut before the endings that are known."""
    for i in range(2):
        dotted(tmp_path / f"part.{i}.tar", range(3 * i, 3 * i + 3))
    (tmp_path / "sizes.json").write_text('{"part.0.tar": 3, "part.1.tar": 3}')
    found = stream(
        f"{scheme}{tmp_path}/part.{{0..1}}.tar", sizes=str(tmp_path / "sizes.json") if scheme else None
    ).prepared(Form(1, (8, 8), num_classes=3))
    batches = [batch for name in ("train", "validation") for batch in found.loader(name, Share(8))]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(6))
    assert torch.cat([batch.x0[:, 0, -1, -1] for batch in batches]).tolist() == list(range(6))
    assert torch.cat([batch.y for batch in batches]).tolist() == [0, 1, 2] * 2


def test_what_is_passed_over_is_not_read(shards, monkeypatch):
    read, extract = [], tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda tar, member: read.append(member.name) or extract(tar, member)
    )
    samples = [*read_samples(slice_shards([Shard(str(shards / "00001.tar"), 7, 8)], 5, 7))]
    assert [sample.id for sample in samples] == [12, 13]
    assert read == ["00012.png", "00012.cls", "00013.png", "00013.cls"]


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
    samples = [*read_samples(slice_shards([Shard(str(tmp_path / "0.tar"), 0, 3)], 0, 3))]
    assert samples[0].damage is None  # and the next is not yet known to be complete
    assert "1,099,511,627,776 bytes" in samples[1].damage
