"""Movement in words, as people type it: `forward 1.5, yaw 30`."""

from __future__ import annotations

from service.errors import FieldProblem, InvalidRequest

DIRECTIONS = {
    "forward": ("forward_m", 1.0),
    "back": ("forward_m", -1.0),
    "right": ("right_m", 1.0),
    "left": ("right_m", -1.0),
    "up": ("up_m", 1.0),
    "down": ("up_m", -1.0),
    "yaw": ("yaw_deg", 1.0),
    "pitch": ("pitch_deg", 1.0),
}


def parse_actions(text: str) -> list[dict[str, float]]:
    """'forward 1.5, yaw 30' -> [{"forward_m": 1.5}, {"yaw_deg": 30.0}]; raises InvalidRequest."""
    actions = []
    for part in text.split(","):
        name, _, amount = part.strip().partition(" ")
        try:
            field, sign = DIRECTIONS[name]
            actions.append({field: sign * float(amount)})
        except (KeyError, ValueError) as error:
            seen = part.strip()[:60]
            allowed = f"'<{' | '.join(DIRECTIONS)}> <metres or degrees>', separated by commas"
            raise InvalidRequest(
                f"actions can't be read at {seen!r}; allowed: {allowed}",
                fields=(FieldProblem("actions", seen, allowed),),
            ) from error
    return actions
