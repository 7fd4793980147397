"""What of a message is not a file is measured before it is parsed."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from service.rpc.reading import is_longer
from service.wire import world_pb2 as pb

FILE, TEXT, MOST = bytes(5000), "a" * 1000, 1000
INTRINSICS = pb.Intrinsics(fx=1, fy=1, cx=1, cy=1)


@pytest.mark.parametrize(
    "message",
    [
        pb.GetSessionRequest(session="s1"),
        pb.CreateSessionRequest(image=FILE, depth=FILE, mask=FILE, seed=3, fov_deg=2.0),
        pb.CreateSessionRequest(image=FILE, sample="a" * 900),
        pb.CreateVideoRequest(input_reference=FILE, poses=[pb.Pose()] * 10, seconds=1.5),
        pb.CreateObservationRequest(observation=pb.Observation(image=FILE, intrinsics=INTRINSICS)),
        pb.ClientMessage(sequence=2**60, observe=pb.Observation(image=FILE, mask=FILE)),
        pb.Chunk(data=FILE),
    ],
)
def test_files_do_not_count(message: Message) -> None:
    assert not is_longer(message.SerializeToString(), type(message), MOST)


@pytest.mark.parametrize(
    "message",
    [
        pb.GetSessionRequest(session=TEXT),
        pb.CreateSessionRequest(image=FILE, sample=TEXT),
        pb.CreateVideoRequest(input_reference=FILE, poses=[pb.Pose()] * 500),
        pb.CreateObservationRequest(
            session="s1", observation=pb.Observation(pose=pb.Pose(matrix=[1.0] * 200), image=FILE)
        ),
        pb.ClientMessage(path=pb.Path(poses=[pb.Pose()] * 600)),
    ],
)
def test_all_else_does(message: Message) -> None:
    assert is_longer(message.SerializeToString(), type(message), MOST)


def test_small_fields_count_for_what_they_take_in_memory() -> None:
    image = pb.CreateVideoRequest(input_reference=FILE).SerializeToString()
    assert is_longer(
        image + pb.CreateVideoRequest(poses=[pb.Pose()] * 16).SerializeToString(),
        pb.CreateVideoRequest,
        MOST,
    )
    for unknown in (b"\xf8\x07\x01", b"\xf9\x07" + bytes(8), b"\xfd\x07" + bytes(4)):
        assert is_longer(image + 16 * unknown, pb.CreateVideoRequest, MOST)
        assert not is_longer(image + 3 * unknown, pb.CreateVideoRequest, MOST)


@pytest.mark.parametrize("end", [b"\xff" * 10_000, b"\x0b", b"\x0f", b"\x0a", b"\x08\x80"])
def test_what_can_not_be_told_apart_is_too_long(end: bytes) -> None:
    image = pb.CreateSessionRequest(image=FILE).SerializeToString()
    assert is_longer(image + end, pb.CreateSessionRequest, MOST)
