"""Sample worlds: pictures with true depth that ship with the viewer, opened by name.

A sample is three files in one folder: `<name>.png`, `<name>.depth.npy` (float32 metres, optional)
and `<name>.json` with {"title", "description", "fov_deg"}. Names come from the folder's listing,
never from a client, so a name can't be a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from service.errors import FieldProblem, InvalidRequest, NotFound
from service.limits import MAX_FOV_DEG, MIN_FOV_DEG

SAMPLES = Path(__file__).parent / "viewer" / "samples"


class Card(BaseModel):
    """What `<name>.json` says; the renderer may add what it likes (seed, family, ...)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    description: str = ""
    fov_deg: float = Field(ge=MIN_FOV_DEG, le=MAX_FOV_DEG)


@dataclass(frozen=True)
class Sample:
    name: str
    card: Card
    picture: Path
    depth: Path | None


class Samples:
    """The samples of a folder, by name; read once."""

    def __init__(self, folder: Path = SAMPLES) -> None:
        self._by_name = {path.stem: _sample(path) for path in sorted(folder.glob("*.json"))}

    def all(self) -> list[Sample]:
        return list(self._by_name.values())

    def find(self, name: str) -> Sample:
        """Raises NotFound: for a name in a path."""
        if name not in self._by_name:
            raise NotFound(f"there is no sample {name[:60]!r}; there are {self._names()}")
        return self._by_name[name]

    def chosen(self, name: str) -> Sample:
        """Raises InvalidRequest: for a name in a form."""
        if name not in self._by_name:
            problem = FieldProblem("sample", name[:60], self._names())
            raise InvalidRequest(f"There is no sample {name[:60]!r}.", fields=(problem,))
        return self._by_name[name]

    def _names(self) -> str:
        return ", ".join(self._by_name) or "none installed"


def _sample(card: Path) -> Sample:
    depth = card.with_suffix(".depth.npy")
    return Sample(
        name=card.stem,
        card=Card.model_validate_json(card.read_text()),
        picture=card.with_suffix(".png"),
        depth=depth if depth.exists() else None,
    )
