"""Every Redis key, time to live and limit of the control plane.

Keys of one session share the hash tag {id}, so that one script may touch all of them, also in Redis
Cluster. Keys without a session cross slots: they are written in a second, idempotent step that the
sweeper repairs.
"""

from __future__ import annotations

PREFIX = "mirage"

# what crosses sessions
WAKE = f"{PREFIX}:wake"  # stream of session ids that need an owner
WAKE_GROUP = "workers"
WOKEN = f"{{{WAKE}}}:sessions"  # hash: session -> its entry in that stream, whose slot it shares
BUSY = f"{PREFIX}:busy"  # zset: session -> when the sweeper looks at it again
EXPIRY = f"{PREFIX}:expiry"  # zset: every session -> when it expires
COLLECT = f"{PREFIX}:collect"  # zset: session -> when its objects are looked through
GRAVES = f"{PREFIX}:graves"  # zset: deleted session -> when what lies in the store is looked for
WORKERS = f"{PREFIX}:workers"  # zset: worker -> last heartbeat
MARKER = f"{PREFIX}:marker"  # the same as in the store; gone when Redis has lost its data
REBUILDING = f"{PREFIX}:rebuilding"  # held by the process that rebuilds
KEPT = f"{PREFIX}:kept"  # zset: records in the store that expire -> when
API_KEYS = f"{PREFIX}:keys"  # zset: API key -> when it was made
WEBHOOKS = f"{PREFIX}:webhooks"  # zset: errand -> when to look again whether it is due

TOUCH_S = 60.0  # how often who watches says so, or four times in a shorter idle lifetime
REQUESTS_KEPT = 256  # progress records per session, and of guests; above any cap of the backlog
CREATION_S = 60  # a session that nobody says is still being made is given up after this
TOMBSTONE_S = 3600  # how long a deleted session answers 410 instead of 404
MAX_SNAPSHOTS = 256  # names per session
HEAD_EVERY = 64  # segments, at least, between two head objects
HEADS_KEPT = 2  # per session
COLLECT_EVERY_S = 3600.0  # how often a session's objects are looked through
COLLECT_BATCH = 10  # of them in one sweep
COLLECT_SOON_S = 60.0  # how soon after something was dropped from a World
INBOX_LENGTH = 10_000
INBOX_S = 3600  # how long an inbox, and a place in the wake queue, outlast their worker
WAKE_LENGTH = 100_000
PACE_S = 0.005  # between round trips that append requests, of a process that has many to append
SWEEP_PERIOD_S = 0.5
SWEEP_BATCH = 100
MAX_WAIT_S = 20.0  # the longest blocking read; below SOCKET_TIMEOUT_S
SOCKET_TIMEOUT_S = 30.0
SENTINEL_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 1024  # of one process; long polls hold one each
MAX_LONG_POLLS = 512  # of them: the others are for those that don't wait
OWNERS_LONG_POLLS = 192  # of those, and as many of his guests: one owner leaves some to others


def record(session: str) -> str:
    return f"{PREFIX}:{{{session}}}:record"


def reservation(session: str) -> str:
    """There as long as a session is being made; what it lacks at the end was given up."""
    return f"{PREFIX}:{{{session}}}:reservation"


def lease(session: str) -> str:
    return f"{PREFIX}:{{{session}}}:lease"


def log(session: str) -> str:
    return f"{PREFIX}:{{{session}}}:log"


def manifest(session: str) -> str:
    return f"{PREFIX}:{{{session}}}:manifest"


def frames(session: str) -> str:
    return f"{PREFIX}:{{{session}}}:frames"


def requests(session: str) -> str:
    """Hash: request id -> progress."""
    return f"{PREFIX}:{{{session}}}:requests"


def order(session: str) -> str:
    """List of request ids, oldest first: which progress record goes when there are too many."""
    return f"{PREFIX}:{{{session}}}:order"


def guests_order(session: str) -> str:
    """The same of requests by guests, who push out none of the owner's."""
    return f"{PREFIX}:{{{session}}}:guests-order"


def cancels(session: str) -> str:
    """Set of request ids that a client wants to end."""
    return f"{PREFIX}:{{{session}}}:cancels"


def names(session: str) -> str:
    """Hash: name of a snapshot -> what it names."""
    return f"{PREFIX}:{{{session}}}:names"


def forks(session: str) -> str:
    """Zset: sessions forked from this one -> when. Outlives the session: they use its segments."""
    return f"{PREFIX}:{{{session}}}:forks"


def garbage(session: str) -> str:
    """Zset: objects that nothing refers to -> when that was first seen."""
    return f"{PREFIX}:{{{session}}}:garbage"


def collecting(session: str) -> str:
    """Held while a sweeper looks through the objects of a session."""
    return f"{PREFIX}:{{{session}}}:collecting"


def index(owner: str) -> str:
    """Zset of an owner's session ids, all of score 0: ids sort by time of creation."""
    return f"{PREFIX}:index:{owner}"


def worker(worker_id: str) -> str:
    return f"{PREFIX}:worker:{worker_id}"


def inbox(worker_id: str) -> str:
    """Stream of session ids that their owner should look at; requests are pushed on a channel of
    that name.
    """
    return f"{PREFIX}:inbox:{worker_id}"


def idempotency(owner: str, key: str) -> str:
    """The stored answer of an owner's POST that may be sent again."""
    return f"{PREFIX}:idempotency:{owner}:{key}"


def api_key(name: str) -> str:
    """One API key, its secret hashed."""
    return f"{PREFIX}:key:{name}"


def bucket(key: str, unit: str) -> str:
    """How much of a rate or quota a key, or a share link, has used."""
    return f"{PREFIX}:key:{key}:{unit}"


def grant(name: str) -> str:
    """A share link or ticket; goes when it expires."""
    return f"{PREFIX}:grant:{name}"


def shares(session: str) -> str:
    """Zset of a session's share links -> when they expire."""
    return f"{PREFIX}:{{{session}}}:shares"


def video(session: str) -> str:
    """What /v1/videos keeps of a session that it opened."""
    return f"{PREFIX}:{{{session}}}:video"
