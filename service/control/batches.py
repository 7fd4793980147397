"""Work of many tasks done together: what arrives while a batch is on its way goes in the next one.

A busy process makes few round trips to Redis and an idle one waits for nothing. Each caller gets
its own answer or its own error. Work of different callers has no order among it, that of one caller
does, as it awaits each. Trade-off: a caller may wait for one round trip of others, and with a
`pace_s` for so long at most.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

import hiredis
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from service.control.replies import arrived

T = TypeVar("T")
Argument = str | bytes | int | float
Command = tuple[Any, ...]  # of arguments


class Batches(Generic[T]):
    """`work` gets a batch and returns as many answers; an exception among them is raised there.

    Batches begin `pace_s` apart or more: what arrives steadily goes in fewer, larger ones.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[Sequence[Any]]], pace_s: float = 0.0
    ) -> None:
        self._work, self._pace_s = work, pace_s
        self._began_s = 0.0
        self._waiting: list[tuple[T, asyncio.Future[Any]]] = []
        self._busy: asyncio.Task[None] | None = None

    async def do(self, item: T) -> Any:
        """The answer for one item; raises what its batch as a whole did."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._busy is None:
            self._busy = asyncio.create_task(self._until_empty(), context=Context())
        return await answer

    async def _until_empty(self) -> None:
        try:
            while self._waiting:
                await self._pace()
                batch, self._waiting = self._waiting, []
                try:
                    await self._one(batch)
                finally:  # however it ended, nobody waits for ever
                    for _, future in batch:
                        future.cancel()
        finally:
            self._busy = None

    async def _pace(self) -> None:
        early_s = self._pace_s - (time.monotonic() - self._began_s)
        if early_s > 0:
            await asyncio.sleep(early_s)
        self._began_s = time.monotonic()

    async def _one(self, batch: list[tuple[T, asyncio.Future[Any]]]) -> None:
        answers: Sequence[Any]
        try:
            answers = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 theirs, whose batch it was; others go on
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class Pipelined:
    """A Redis client's `execute_command`, batched into pipelines.

    Over the client's own connections, but packed in C and with one time limit for a batch: its
    pipeline packs in Python and its commands have a limit and a task each, which took a third of a
    busy worker's event loop. One connection is kept from batch to batch, as taking it from the
    pool and giving it back costs as much as a batch. A cluster, where commands go to several
    nodes, is left to the client.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py's types mix its sync and async answers
        self.in_cluster = isinstance(redis, RedisCluster)
        self._batches: Batches[Command] = Batches(self.execute)
        self._kept: Any = None  # a connection, between batches

    async def execute_command(self, *command: Argument) -> Any:
        """The answer to one command; raises what it raises alone."""
        return await self._batches.do(command)

    async def execute(self, commands: Sequence[Command]) -> Sequence[Any]:
        """The answers to several, in one round trip of their own; errors are among them."""
        return await (self._spread if self.in_cluster else self._send)(commands)

    async def _spread(self, commands: Sequence[Command]) -> Sequence[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    async def _send(self, commands: Sequence[Command]) -> Sequence[Any]:
        pool = self._redis.connection_pool
        connection, self._kept = self._kept, None
        connection = connection or await pool.get_connection()
        try:
            answers: list[Any] = await connection.retry.call_with_retry(
                lambda: self._talk(connection, commands),
                lambda error: connection.disconnect(error=error),
            )
            if self._kept is None and not connection.should_reconnect():
                self._kept = connection
            return answers
        finally:
            if self._kept is not connection:
                await pool.release(connection)

    async def _talk(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        limit_s, connection.socket_timeout = connection.socket_timeout, None
        try:
            async with asyncio.timeout(limit_s):
                if not connection.is_connected:  # to a master, which Sentinels know
                    await connection.connect()
                await connection.send_packed_command(packed)
                return await self._answers(connection, commands)
        except TimeoutError as error:
            raise RedisTimeout(f"Redis took longer than {limit_s} s") from error
        finally:
            connection.socket_timeout = limit_s

    async def _answers(self, connection: Any, commands: Sequence[Command]) -> list[Any]:
        """Of each its answer or ResponseError; raises what else goes wrong."""
        answers: list[Any] = []
        while len(answers) < len(commands):
            try:
                answers.append(await connection.read_response(timeout=math.inf))
            except ResponseError as error:
                answers.append(error)
            for reply in arrived(connection):
                if isinstance(reply, hiredis.PushNotification):
                    await connection._parser.handle_push_response(reply)
                elif isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                    raise reply
                else:
                    answers.append(reply)
        callbacks = [self._redis.response_callbacks.get(name) for name, *_ in commands]
        return [
            answer if call is None or isinstance(answer, ResponseError) else call(answer)
            for call, answer in zip(callbacks, answers, strict=True)
        ]
