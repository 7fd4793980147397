"""Immutable objects in a directory or a bucket, through obstore.

Every object is named by what it contains, so a put that was repeated, by a retry or by another
process, is harmless. What fails is tried again a few times, ever later, then it is StoreDown: the
caller waits it out, and nothing counts as stored. Local puts are atomic (written aside, then
moved) but not fsynced: they survive the loss of a process, not of the host's power.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlparse

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import from_url

from service.brief import Brief
from service.control.batches import Batches
from service.errors import ConfigurationError, SegmentCorrupt, SegmentMissing, StoreDown
from service.settings import masked

LOG = structlog.get_logger()
BACK_OFFS_S = (0.05, 0.2, 0.8)  # between tries; each is stretched by up to a half at random
REMOTE_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=15)}
# What leads nowhere else and needs no escapes
PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
NAMED = 10  # strays in a line of the log
BRIEF_S = 0.002  # for a few files: less than waking a thread and waiting for its end
ASIDE = itertools.count(random.getrandbits(62))  # no other process' names
T = TypeVar("T")


class Listed(NamedTuple):
    """One object as a listing shows it."""

    path: str
    num_bytes: int
    modified_s: float  # by the store's clock


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ObjectStore:
    """Put, get, list and delete by path; raises SegmentMissing, SegmentCorrupt, StoreDown."""

    MAKES_FOLDER = True

    def __init__(self, url: str) -> None:
        """`url`: file:///absolute/path (created if missing), s3://, gs://, az:// or memory:///.

        Raises ConfigurationError if it can't be used.
        """
        self.folder = Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
        # Own client options would hide those of the environment, as AWS_ALLOW_HTTP.
        options: dict[str, Any] = {"retry_config": REMOTE_RETRIES}
        if self.folder is not None:
            options = {"mkdir": self.MAKES_FOLDER, "automatic_cleanup": True}
        elif url.startswith("memory:"):
            options = {}
        self._files = Brief(BRIEF_S)
        self._reads: Batches[str] = Batches(self._read_files)
        try:
            self._store = from_url(url, **options)
        except (BaseError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]  # behind it obstore's own objects are dumped
            raise ConfigurationError(
                f"the segment store {masked(url)!r} can't be opened: {masked(reason)}; correct "
                "MIRAGE_STORE_URL (file:///folder, s3://, gs:// or az://), or MIRAGE_DATA_DIR if "
                "it lies there"
            ) from error

    async def put(self, path: str, data: bytes) -> None:
        """Store `data`, unless the object is there already."""

        async def once() -> None:
            if self.folder is None:  # it may not refuse what is there; the same bytes do no harm
                await obstore.put_async(self._store, path, data, mode="overwrite")
            elif error := (await self._put_files([(path, data)]))[0]:
                raise error

        await _persist(once, path, "stored")

    async def put_all(self, items: Sequence[tuple[str, bytes]]) -> list[StoreDown | None]:
        """`put` for each (path, data), in a folder all in one go; what it raises, or None."""

        async def once(item: tuple[str, bytes], error: Exception | None) -> StoreDown | None:
            try:
                if error is not None or self.folder is None:
                    await self.put(*item)
            except StoreDown as down:
                return down
            return None

        first = [None] * len(items) if self.folder is None else await self._put_files(items)
        return [await once(*pair) for pair in zip(items, first, strict=True)]

    async def _put_files(self, items: Sequence[tuple[str, bytes]]) -> Sequence[OSError | None]:
        """One after the other; a file costs less than a thread's turn, unless the disk is slow."""
        return await self._files.run(lambda: [self._put_file(*item) for item in items])

    def _put_file(self, path: str, data: bytes) -> OSError | None:
        """Written aside, under a name that no listing shows, then moved to its place: as obstore
        does, without a thread of its own. What may lie there is the same, by its name.
        """
        if not PLAIN.fullmatch(path):
            return OSError(f"{path!r} is no name of an object")
        place = f"{self.folder}/{path}"
        aside = f"{place}#{next(ASIDE)}"
        try:
            _write(aside, data)
            os.replace(aside, place)
        except OSError as error:
            with suppress(OSError):
                os.remove(aside)
            return error
        return None

    async def replace(self, path: str, data: bytes) -> None:
        """Store `data` in place of what is there: for the few objects that are no records."""

        async def once() -> None:
            await obstore.put_async(self._store, path, data, mode="overwrite")

        await _persist(once, path, "stored")

    async def read(self, path: str) -> bytes:
        """The bytes, unverified."""

        async def once() -> bytes:
            if self.folder is not None:
                return cast(bytes, await self._reads.do(path))
            answer = await obstore.get_async(self._store, path)
            return bytes(await answer.bytes_async())

        return await _persist(once, path, "read")

    async def _read_files(self, paths: Sequence[str]) -> list[bytes | Exception]:
        """Likewise: half the time of as many tasks."""
        return await asyncio.to_thread(lambda: [self._read_file(path) for path in paths])

    def _read_file(self, path: str) -> bytes | Exception:
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except (BaseError, OSError) as error:
            return error

    async def read_verified(self, path: str, checksum: str) -> bytes:
        data = await self.read(path)
        if sha256(data) != checksum:
            raise SegmentCorrupt(f"{path} has checksum {sha256(data)}, its name says {checksum}")
        return data

    async def below(self, prefix: str) -> list[Listed]:
        """Everything below a folder, in no order."""

        async def once() -> list[Listed]:
            batches = [batch async for batch in obstore.list(self._store, prefix=prefix)]
            return [
                Listed(item["path"], item["size"], item["last_modified"].timestamp())
                for batch in batches
                for item in batch
            ]

        return await _persist(once, prefix, "listed")

    async def names(self, folder: str, form: re.Pattern[str], suffix: str) -> list[str]:
        """Names without suffix of the objects in a folder that have this form, sorted; what else a
        file system or a copy left there is passed over.
        """
        found = [one.path.rpartition("/")[2] for one in await self.below(folder)]
        stems = {name: name.removesuffix(suffix) for name in found}
        ours = {name for name in found if name != stems[name] and form.fullmatch(stems[name])}
        if strays := sorted(set(found) - ours):
            LOG.warning("strays in the store", folder=folder, names=strays[:NAMED])
        return sorted(stems[name] for name in ours)

    async def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below a folder, sorted."""

        async def once() -> list[str]:
            found = await obstore.list_with_delimiter_async(self._store, prefix=prefix)
            return sorted(one.rstrip("/").rpartition("/")[2] for one in found["common_prefixes"])

        return await _persist(once, prefix, "listed")

    async def delete(self, paths: Iterable[str]) -> None:
        """Remove in this order; what is not there is fine."""
        for path in paths:

            async def once(path: str = path) -> None:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, path)

            await _persist(once, path, "removed")


def _write(path: str, data: bytes) -> None:
    """A new file, in folders that are made if they are missing."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
    finally:
        os.close(file)


def reason_of(error: Exception) -> str:
    """What went wrong, for whoever asks: not where, which the text of an error may say."""
    number = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ if number is None else os.strerror(number)


async def _persist(once: Callable[[], Awaitable[T]], path: str, deed: str) -> T:
    """Do it, again if it fails; raises SegmentMissing at once, StoreDown in the end."""
    what = f"{path} can't be {deed}"
    for back_off_s in (*BACK_OFFS_S, None):
        try:
            return await once()
        except FileNotFoundError as error:
            raise SegmentMissing(f"{what}: it is not in the store") from error
        except (BaseError, OSError) as error:
            if back_off_s is None:
                LOG.warning("store failed", what=what, error=str(error))
                told = f"An object of the store can't be {deed}: {reason_of(error)}"
                raise StoreDown(told, retry_after_s=1.0) from error
            await asyncio.sleep(back_off_s * random.uniform(1, 1.5))
    raise AssertionError("the last try returns or raises")
