"""Reads TensorBoard's event files."""

import struct

from irp_jax.training.logs import numbers


def points(folder):
    """Returns [(epoch, name, float32 value)] of all event files in a folder, sorted."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.iterdir():
        content, start = path.read_bytes(), 0
        while start < len(content):  # length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += length + 16
    return sorted(found)


def points_of(rows):
    """Returns what `points` finds if each row was written once."""
    return sorted(
        (row["epoch"], name, struct.unpack("f", struct.pack("f", value))[0])
        for row in rows
        for name, value in numbers(row).items()
    )
