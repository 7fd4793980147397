"""Where a World ends, as the segments in the store tell.

A segment names its parent, and is stored only after its parent was committed. So a World goes on
from a head along the unique chain of segments that descends from it, and a segment of the same
branch whose parent is not in that chain says that one between them is missing. What lies there
lawfully: what a rewind left behind is of an earlier branch, and the parent of what a refused commit
left behind is in the chain. A segment that can't be read may be any of these, so it is in doubt
unless a later one says which was committed in its place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import structlog

from service.control.frames import ManifestEntry
from service.control.heads import Head
from service.errors import AmbiguousWorld, SegmentError
from service.store.segments import SegmentHeader, SegmentStore, parse_segment

LOG = structlog.get_logger()


@dataclass(frozen=True)
class Found:
    """A segment that may continue a World."""

    id: str
    header: SegmentHeader
    num_bytes: int

    def entry(self, before: Head) -> ManifestEntry:
        frames, header = self.header.frames, self.header
        last = frames[-1] if frames else None
        return ManifestEntry(
            id=self.id,
            kind=header.kind,
            branch=header.branch,
            first_frame=header.frame_indices[0] if header.frame_indices else before.next_frame,
            num_frames=len(header.frame_indices),
            num_bytes=self.num_bytes,
            num_points=last.num_points if last else before.num_points,
            world_bytes=last.num_bytes if last else before.world_bytes,
        )


@dataclass(frozen=True)
class Doubt:
    """Why it is not certain where a World ends."""

    tip: str  # the last segment that was committed for certain
    ways: list[Found]  # what could come next
    unreached: list[str]  # segments that nothing leads to, or that can't be read
    branch: int  # the last that is known of

    @property
    def tips(self) -> list[str]:
        """Where an operator may let it end."""
        ways = sorted(one.id for one in self.ways)
        return [self.tip, *ways] if self.tip and self.unreached else ways

    def problem(self) -> AmbiguousWorld:
        tips = ", ".join(self.tips) or "none"
        if not self.unreached:
            return AmbiguousWorld(
                f"the store holds {len(self.ways)} segments that could be the last of this world "
                f"and nothing says which was committed: {tips}"
            )
        return AmbiguousWorld(
            f"the store holds {len(self.unreached)} segments of this world that can't be read or "
            f"to which nothing leads, the first of them {self.unreached[0]}: put back from a "
            "backup what is missing or damaged and run `mirage fsck --repair`, or let the world "
            f"end earlier with `mirage fsck --choose`: {tips}"
        )


@dataclass
class Later:
    """What the store holds of a session behind a head."""

    found: defaultdict[int, list[Found]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[str] = field(default_factory=list)

    def ways(self, head: Head) -> list[Found]:
        """The segments that could come next, as far as parent and branch say."""
        return [
            one
            for one in self.found[len(head.manifest)]
            if one.header.parent == head.tip and one.header.branch == head.branch
        ]

    def committed(self, head: Head) -> Found | None:
        """The one that came next for certain."""
        ways, index = self.ways(head), len(head.manifest)
        later = self.found[index + 1]
        parents = {one.header.parent for one in later if one.header.branch == head.branch}
        if parents:  # a segment with a child was committed
            ways = [one for one in ways if parents == {one.id}]
        elif any(index_of(name) == index for name in self.unreadable):
            return None
        return ways[0] if len(ways) == 1 else None

    def unreached(self, head: Head) -> list[str]:
        """Those that don't fit a World that ends with this head or with the next segment."""
        index, ways = len(head.manifest), self.ways(head)
        astray = [
            one.id
            for at, segments in self.found.items()
            for one in segments
            if one.header.branch > head.branch  # its head is lost
            or (at >= index and one.header.branch == head.branch and one not in ways)
        ]
        return sorted(astray + [name for name in self.unreadable if index_of(name) >= index])


async def descend(store: SegmentStore, head: Head) -> tuple[Head, Doubt | None]:
    """The head moved along the chain of its descendants as far as that is certain, and what is in
    doubt there.
    """
    later = await _later(store, head)
    while following := later.committed(head):
        head = extended(head, following)
    ways, unreached = later.ways(head), later.unreached(head)
    if not ways and not unreached:
        return head, None
    branches = [one.header.branch for found in later.found.values() for one in found]
    return head, Doubt(head.tip, ways, unreached, max([head.branch, *branches]))


def extended(head: Head, found: Found) -> Head:
    """The head one segment further."""
    entry = found.entry(head)
    return head.model_copy(
        update={
            "manifest": [*head.manifest, entry],
            "num_points": entry.num_points,
            "world_bytes": entry.world_bytes,
            "weights": found.header.weights,
            "init": None,
        }
    )


def index_of(segment: str) -> int:
    return int(segment.partition("-")[0])


async def _later(store: SegmentStore, head: Head) -> Later:
    later = Later()
    for name in await store.ids(head.session):
        index = index_of(name)
        if index < len(head.manifest):
            continue
        try:
            data = await store.get(head.session, name)
            later.found[index].append(Found(name, parse_segment(data)[0], len(data)))
        except SegmentError as error:
            later.unreadable.append(name)
            LOG.error("segment can't be read", session=head.session, reason=error.detail)
    return later
