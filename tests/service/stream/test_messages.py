"""Live poses take a short way from protobuf into the log; it agrees with the validator's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from service.control.requests import REQUEST, LivePose, View, live_body
from service.errors import InvalidRequest
from service.limits import MAX_ACTIONS
from service.poses import Action, expand, flat
from service.stream.messages import (
    Incoming,
    InvalidMessage,
    ObserveMessage,
    PoseMessage,
    SeekMessage,
    checked,
    from_proto,
    from_text,
)
from service.wire import world_pb2 as pb

MOST_POSES = 100
ANY_FLOAT = st.floats(width=64)
TIMES = st.none() | ANY_FLOAT
SEQUENCES = st.integers(0, 2**64 - 1)


def read(received: pb.ClientMessage) -> Incoming:
    return from_proto(received, MOST_POSES)


def rigid(yaw_deg: float, right_m: float) -> list[float]:
    return flat(expand(np.eye(4), [Action(right_m=right_m, yaw_deg=yaw_deg)], 1e9, 1e9, 1)[0])


RIGID = st.builds(rigid, st.floats(-180, 180), st.floats(-9999, 9999))
MATRICES = RIGID | st.lists(ANY_FLOAT, max_size=17) | st.builds(lambda one: [*one, 1.0], RIGID)
OTHERS: SearchStrategy[list[float]] = st.just([]) | st.lists(st.floats(-1, 1), max_size=4)


def message(values: dict[str, Any], sequence: int) -> pb.ClientMessage:
    shape = {name: values[name] for name in ("matrix", "position", "quaternion")}
    others = {name: values[name] for name in ("axes", "camera", "client_time_ms")}
    return pb.ClientMessage(sequence=sequence, pose=pb.LivePose(pose=pb.Pose(**shape), **others))


POSES = st.fixed_dictionaries(
    {
        "matrix": MATRICES,
        "position": OTHERS,
        "quaternion": OTHERS,
        "axes": st.integers(0, 7),
        "camera": st.integers(0, 20),
        "client_time_ms": TIMES,
    }
)
EXACT = {
    "matrix": rigid(30.0, 2.0), "position": [], "quaternion": [], "axes": 0, "camera": 0,
    "client_time_ms": None,
}  # fmt: skip


@given(POSES, SEQUENCES)
@example(EXACT, 7)
@example(EXACT | {"camera": 16}, 7)
@example(EXACT | {"client_time_ms": math.inf}, 7)
@example(EXACT, 2**63)
def test_what_is_exact_is_what_the_validator_makes_of_it(
    values: dict[str, Any], sequence: int
) -> None:
    received = message(values, sequence)
    short, whole = read(received), checked(received, MOST_POSES)
    if isinstance(short, View):
        assert isinstance(whole, PoseMessage)
        assert short == whole.view()
    elif isinstance(short, InvalidRequest):
        assert isinstance(short, InvalidMessage) and short.sequence == sequence
        assert isinstance(whole, InvalidRequest) and short.fields == whole.fields
    else:
        assert repr(short) == repr(whole)


def test_an_empty_message_is_answered_by_its_number() -> None:
    refused = read(pb.ClientMessage(sequence=7))
    assert isinstance(refused, InvalidMessage) and refused.sequence == 7


def test_an_exact_pose_takes_the_short_way() -> None:
    assert read(message(EXACT | {"client_time_ms": 5.0, "camera": 3}, 7)) == View(
        rigid(30.0, 2.0), 3, 7, 5.0
    )


def test_other_messages_do_not() -> None:
    assert not isinstance(read(pb.ClientMessage(ping=pb.Ping())), View | InvalidRequest)
    assert isinstance(read(pb.ClientMessage()), InvalidRequest)


def test_a_seek_to_the_first_frame_is_one() -> None:
    """Protobuf sends no 0, so there it looks like a seek to nowhere."""
    sought = read(pb.ClientMessage(seek=pb.Seek(frame=0), sequence=3))
    assert isinstance(sought, SeekMessage) and sought.frame == 0


def test_a_lens_whose_centre_is_at_0_is_whole() -> None:
    seen = pb.Observation(
        pose=pb.Pose(matrix=flat(np.eye(4))),
        image=b"png",
        intrinsics=pb.Intrinsics(fx=50, fy=50, cx=0, cy=32),
    )
    observed = read(pb.ClientMessage(observe=seen, sequence=3))
    assert isinstance(observed, ObserveMessage) and observed.intrinsics is not None
    assert observed.intrinsics.model_dump() == {"fx": 50, "fy": 50, "cx": 0, "cy": 32}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (pb.ClientMessage(path=pb.Path(axes=99, actions=[pb.Action(yaw_deg=1)])), "path.axes"),  # type: ignore[arg-type]
        (pb.ClientMessage(open=pb.Open(format=99)), "open.format"),  # type: ignore[arg-type]
        (pb.ClientMessage(open=pb.Open(planes=[99])), "open.planes[0]"),  # type: ignore[list-item]
    ],
)
def test_a_number_that_stands_for_no_word_is_refused_as_it_was_sent(
    sent: pb.ClientMessage, field: str
) -> None:
    refused = read(sent)
    assert isinstance(refused, InvalidRequest)
    assert [(one.field, one.seen) for one in refused.fields] == [(field, "99")]


def test_what_is_missing_is_said_without_names_that_nobody_sent() -> None:
    for empty in (pb.LivePose(), pb.LivePose(pose=pb.Pose())):
        refused = read(pb.ClientMessage(pose=empty, sequence=3))
        assert isinstance(refused, InvalidRequest)
        assert [(one.field, one.seen) for one in refused.fields] == [("pose", "nothing")]


def test_an_empty_path_is_called_a_path() -> None:
    for refused in (read(pb.ClientMessage(path=pb.Path())), from_text('{"type": "path"}')):
        assert isinstance(refused, InvalidRequest)
        (problem,) = refused.fields
        assert (problem.field, problem.allowed) == ("path", "give either `poses` or `actions`")
        assert "body" not in refused.detail
    refused = from_text('{"type": "path", "actions": [{"jump_m": 1}]}')
    assert isinstance(refused, InvalidRequest)
    assert refused.fields[0].field == "path.actions[0].jump_m"


@given(RIGID, st.integers(0, 15), st.integers(0, 2**63 - 1), TIMES, st.text(max_size=60))
def test_the_body_in_the_log_is_that_of_the_message(
    pose: list[float], camera: int, sequence: int, time_ms: float | None, trace: str
) -> None:
    whole = LivePose(
        trace=trace, pose=pose, camera=camera, sequence=sequence, client_time_ms=time_ms
    )
    body = live_body(View(pose, camera, sequence, time_ms), trace)
    assert REQUEST.validate_json(body) == REQUEST.validate_json(whole.model_dump_json())


def test_an_opening_asks_for_each_camera_and_plane_once() -> None:
    """Each plane is sent with every frame: what a few bytes asked for a thousand times over."""
    once = read(pb.ClientMessage(open=pb.Open(cameras=range(16), planes=[1, 2])))
    assert not isinstance(once, InvalidRequest)
    for lists in ({"cameras": [0] * 17}, {"planes": [1] * 3}):
        refused = read(pb.ClientMessage(open=pb.Open(**lists)))
        assert isinstance(refused, InvalidRequest)
        assert [problem.field.removeprefix("open.") for problem in refused.fields] == list(lists)


def test_a_path_that_is_too_long_is_counted_before_it_is_converted() -> None:
    for path, field in (
        (pb.Path(poses=[pb.Pose()] * (MOST_POSES + 1)), "poses"),
        (pb.Path(actions=[pb.Action()] * (MAX_ACTIONS + 1)), "actions"),
    ):
        refused = read(pb.ClientMessage(path=path, sequence=7))
        assert isinstance(refused, InvalidMessage) and refused.sequence == 7
        assert [one.field for one in refused.fields] == [field]


def test_a_long_name_that_is_unknown_is_not_repeated_whole() -> None:
    refused = from_text('{"type": "ping", "%s": 1}' % ("a" * 100_000))
    assert isinstance(refused, InvalidMessage)
    (problem,) = refused.fields
    assert problem.field.startswith("ping.aaa") and problem.allowed == "no such field"
    assert len(problem.field) < 200 and len(refused.detail) < 300
