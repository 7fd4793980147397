"""What the server says on a stream, built from the control plane's records."""

from __future__ import annotations

import time
from typing import Any

from structlog.contextvars import get_contextvars

from service.control.frames import Frame
from service.control.requests import Progress
from service.control.sessions import Session
from service.convert import filled, plain
from service.errors import DEFECT, INTERNAL, MirageError, problem_document
from service.rest.answers import generation_out
from service.stream.messages import PROTOCOL
from service.stream.player import Player, whole_id
from service.wire import world_pb2 as pb


def hello(session: Session, after: int) -> pb.ServerMessage:
    lens = session.intrinsics
    values = {
        "protocol": PROTOCOL,
        "session": session.id,
        "state": session.state.value,
        "after": after,
        "num_frames": session.next_frame,
        "width": lens.width,
        "height": lens.height,
        "branch": session.branch,
    }
    return pb.ServerMessage(hello=filled(pb.Hello, values))


def status(session: Session, player: Player) -> pb.Status:
    values = {
        "state": session.state.value,
        "error": session.error,
        "num_points": session.num_points,
        "num_bytes": session.num_bytes,
        "num_frames": session.next_frame,
        "branch": session.branch,
        "paused": player.paused,
        "speed": player.speed,
    }
    return filled(pb.Status, values)


def frame_message(frame: Frame) -> pb.ServerMessage:
    """What is said of a frame, by hand and in place (a message put into another is copied): this is
    the hot path. Its picture is added later.
    """
    message = pb.ServerMessage()
    told = message.frame
    told.frame, told.branch, told.camera = frame.frame, frame.branch, frame.camera
    told.num_points, told.num_bytes = frame.num_points, frame.num_bytes
    told.matrix.extend(frame.pose)
    told.coverage = frame.coverage
    told.timings_ms.update(frame.timings_ms)
    told.request_id, told.kind = whole_id(frame.request_id), frame.kind
    if frame.sequence is not None:
        told.sequence = frame.sequence
    if frame.client_time_ms is not None:
        told.client_time_ms = frame.client_time_ms
    seconds = int(frame.created_s)
    told.created_at.seconds = seconds
    told.created_at.nanos = int(1e9 * (frame.created_s - seconds))
    return message


def generation(progress: Progress) -> pb.Generation:
    return filled(pb.Generation, generation_out(progress).model_dump())


def pong(client_time_ms: float | None) -> pb.Pong:
    return pb.Pong(client_time_ms=client_time_ms, server_time_ms=1000 * time.time())


def problem(error: MirageError, request_id: str = "") -> pb.Problem:
    return filled(pb.Problem, problem_document(error) | {"request_id": request_id})


def defect() -> pb.Problem:
    """What nobody foresaw; the log has it under the stream's request id."""
    request_id = get_contextvars().get("request_id", "")
    return filled(pb.Problem, INTERNAL.document(DEFECT) | {"request_id": request_id})


def as_text(message: pb.ServerMessage, session_id: str) -> dict[str, Any]:
    """The JSON form; `type` names the message, pictures follow as binary messages of their own."""
    kind = message.WhichOneof("message") or "nothing"
    values = plain(getattr(message, kind))
    if kind == "error":
        values = {**_short(values), "problem": values["type"]}
    elif kind == "frame":
        values["image"] = f"/v1/sessions/{session_id}/frames/{values['frame']}"
    envelope = {"server_sequence": message.sequence, "reply_to": message.reply_to}
    return {**values, "type": kind, **envelope}


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is not there."""
    return {name: value for name, value in values.items() if value not in (None, "", [])}
