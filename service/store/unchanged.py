"""A store that is only looked at: what would be written or removed is passed over.

For a rebuild whose outcome nobody keeps, as that of a backup which is checked, or out of which one
world is exported; the folder may be mounted read-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.errors import StoreDown
from service.store.objects import ObjectStore


class UnchangedStore(ObjectStore):
    MAKES_FOLDER = False

    async def put(self, path: str, data: bytes) -> None:
        """Store nothing."""

    async def put_all(self, items: Sequence[tuple[str, bytes]]) -> list[StoreDown | None]:
        return [None] * len(items)

    async def replace(self, path: str, data: bytes) -> None:
        """Replace nothing."""

    async def delete(self, paths: Iterable[str]) -> None:
        """Remove nothing."""
