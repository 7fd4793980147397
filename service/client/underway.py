"""The paths that a stream was asked for and has not finished: what becomes of them when its
connection breaks.

A path at a rate is given to the worker by the gateway that plays it, and what it had not given by
then is never made. Nor can it be asked for again behind the user's back: how much was given nobody
tells, and the lost gateway may be giving still, so poses could be rendered twice. So the user hears
of it, instead of waiting for ever.
"""

from __future__ import annotations

from typing import Any

from service.client.frames import Frame

Message = dict[str, Any]


class Underway:
    """`is_paced`: whether the stream plays paths at a rate."""

    def __init__(self, is_paced: bool) -> None:
        self._is_paced = is_paced
        self._sent: dict[int, int] = {}  # not accepted yet: sequence, and number of the connection
        self._paths: dict[str, Message] = {}  # accepted: progress by id

    def sent(self, sequence: int, connection: int) -> None:
        """A path was asked for."""
        self._sent[sequence] = connection

    def saw(self, message: Frame | Message, connection: int) -> list[Message]:
        """What the user should hear after this message of the server."""
        if isinstance(message, Frame):
            self._count(message)
            return []
        if message["type"] == "hello":
            return self._lost(connection)
        is_path = self._sent.pop(message["reply_to"], None) is not None
        if message["type"] == "accepted" and is_path and self._is_paced:
            self._paths[message["id"]] = message | {"sequence": message["reply_to"]}
        elif message["type"] == "progress":
            self._paths.pop(message["id"], None)
        return []

    def _count(self, frame: Frame) -> None:
        path = self._paths.get(frame.info["request_id"])
        if path is not None:
            first = path["first_frame"]
            path["first_frame"] = frame.number if first is None else first
            path["last_frame"] = frame.number
            path["done"] += 1

    def _lost(self, connection: int) -> list[Message]:
        """The end of all that was asked for on an older connection."""
        lost = [sequence for sequence, on in self._sent.items() if on < connection]
        for sequence in lost:
            del self._sent[sequence]
        said = [_ended(path) for path in self._paths.values()]
        self._paths.clear()
        return [*said, *map(_unanswered, lost)]


def _ended(path: Message) -> Message:
    sequence = path.pop("sequence")
    if path["done"] >= path["total"]:
        return path | {"type": "progress", "state": "done", "reply_to": 0}
    return _error(
        sequence,
        f"the connection broke, and path {path['id']} ended with it: {path['done']} of "
        f"{path['total']} frames have come, those that a worker had been given still come, the "
        "others are never made. Ask for the poses that are left once no more frames come.",
    )


def _unanswered(sequence: int) -> Message:
    return _error(
        sequence,
        f"the connection broke before path {sequence} was accepted, so it may not have arrived. "
        "Ask for it again if no frames of it come.",
    )


def _error(sequence: int, detail: str) -> Message:
    return {"type": "error", "problem": "", "status": 503, "detail": detail, "reply_to": sequence}
