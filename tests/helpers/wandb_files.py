"""What W&B has kept of an offline run, read from its own files."""

import json
import struct
import time

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2


def wandb_records(folder, part="offline-run-*"):
    """What an offline W&B run holds, once it has its end: W&B's own process may still write when the run has finished."""
    (path,) = folder.glob(f"wandb/{part}/run-*.wandb")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            records = _read(path.read_bytes())
        except DecodeError:  # half a record
            records = []
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.1)
    return _read(path.read_bytes())


def _read(data):
    """LevelDB's log format behind a header of seven bytes."""
    assert data[:4] == b":W&B"
    position, parts, records = 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no header fits: the block is padded
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def wandb_contents(folder, part="offline-run-*"):
    history, config, media, exits = [], {}, [], []
    for record in wandb_records(folder, part):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {}
            for item in record.history.item:
                row[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            history.append(row)
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.config.update}
        elif kind == "exit":
            exits.append(record.exit.exit_code)
    media = sorted(p.name for p in folder.glob(f"wandb/{part}/files/media/images/samples/*.png"))
    return history, config, media, exits
