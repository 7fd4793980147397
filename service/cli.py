"""`mirage up | demo | gateway | worker | walk | inspect | keys | fsck | export | import`.

Settings come from MIRAGE_* variables; flags override them. The command never imports torch: a
worker is always a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import structlog

from service.addresses import check_ports
from service.app import create_app
from service.auth.commands import add_keys_command
from service.auth.exposure import check_exposure
from service.client import Mirage, ServiceError
from service.control.plane import ControlPlane
from service.demo import source as demo_source
from service.demo import walks as demo
from service.errors import InvalidRequest, MirageError, Unavailable
from service.local.stack import environment, running_stack, tell
from service.operators import add_operators_commands
from service.outputs import make_room
from service.rpc.server import check_certificates
from service.runtime import settle_heap
from service.server import serve
from service.settings import Settings, load_settings
from service.telemetry import configure_logging
from service.tracing import configure_tracing
from service.words import parse_actions

LOG = structlog.get_logger("mirage.gateway")
DEFAULT_WALK = "forward 1.0, yaw 40, forward 0.5, yaw -40, back 1.0"
DEMO_TIMEOUT_S = 60.0  # of one call


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (MirageError, ServiceError, OSError, httpx.TransportError) as error:
        print(f"mirage: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("mirage", description=(__doc__ or "").partition("\n\n")[2])
    commands = top.add_subparsers(required=True, metavar="command")

    up = commands.add_parser("up", help="Valkey, gateway, worker and viewer until Ctrl-C")
    _add_place(up)
    up.set_defaults(run=run_up)

    show = commands.add_parser("demo", help="walk away and back, with and without memory")
    place = show.add_mutually_exclusive_group()
    place.add_argument("--image", type=Path, help="your own picture; without it a sample world")
    place.add_argument("--sample", help="a sample world's name")
    show.add_argument("--fov-deg", type=float, help="horizontal field of view of --image")
    show.add_argument("--output", type=Path, default=Path("out/demo"))
    show.add_argument("--seed", type=int, default=7)
    show.set_defaults(run=run_demo)

    gateway = commands.add_parser("gateway", help="only the process that clients talk to")
    _add_place(gateway)
    gateway.set_defaults(run=run_gateway)

    worker = commands.add_parser("worker", help="only a process that owns a model")
    worker.set_defaults(run=run_worker)

    look = commands.add_parser("inspect", help="pictures of what a stored world remembers")
    look.add_argument("session", help="its id")
    look.add_argument("--output", type=Path, help="folder; default: out/inspect/SESSION")
    look.add_argument("--data-dir", help="default: MIRAGE_DATA_DIR or .mirage")
    look.set_defaults(run=run_inspect)

    add_keys_command(commands)
    add_operators_commands(commands)

    walk = commands.add_parser("walk", help="walk through a world of a running server, as MP4")
    walk.add_argument("--server", default="http://127.0.0.1:8000")
    start = walk.add_mutually_exclusive_group(required=True)
    start.add_argument("--image", type=Path)
    start.add_argument("--sample")
    walk.add_argument("--fov-deg", type=float)
    walk.add_argument("--seed", type=int)
    walk.add_argument("--memory", choices=("latent", "null", "rgb"))
    walk.add_argument("--actions", default=DEFAULT_WALK, help=f"default: {DEFAULT_WALK!r}")
    walk.add_argument("--output", type=Path, default=Path("walk.mp4"))
    walk.add_argument("--keep", action="store_true", help="leave the world on the server")
    walk.set_defaults(run=run_walk)
    return top


def run_up(options: argparse.Namespace) -> int:
    return _until_signal(_up(_settings(options)))


async def _up(settings: Settings) -> int:
    check_exposure(settings)
    print("starting a worker and a gateway ...", flush=True)
    async with running_stack(settings) as stack:
        tell(
            f"ready: {stack.url} (API: {stack.url}/docs)\n"
            f"worlds and logs are in {settings.data_dir.absolute()}; Ctrl-C stops everything"
        )
        await stack.watch()
    return 0


def run_demo(options: argparse.Namespace) -> int:
    if options.image is not None:
        source = demo_source.from_image(options.image, options.fov_deg)
    elif options.fov_deg is not None:
        raise InvalidRequest("--fov-deg is of --image; a sample world has a lens of its own")
    else:
        source = demo_source.from_sample(options.sample)
    place = options.output / "data"
    settings = load_settings(port=0, data_dir=place, host="127.0.0.1", require_keys=False)
    demo_options = demo.DemoOptions(source, options.output, options.seed)
    return _until_signal(_demo(settings, demo_options))


async def _demo(settings: Settings, options: demo.DemoOptions) -> int:
    print("starting a worker and a gateway ...", flush=True)
    async with running_stack(settings) as stack:
        timeout = httpx.Timeout(DEMO_TIMEOUT_S)
        async with httpx.AsyncClient(base_url=stack.url, timeout=timeout) as client:
            report = await demo.walk_and_write(client, options)
    print(f"\n{demo.format_report(report)}\n")
    for name in demo.FILES:
        print(options.output / name)
    print(f"{settings.data_dir} (data and logs of the service that ran; you may remove it)")
    return 0


def run_gateway(options: argparse.Namespace) -> int:
    settings = _settings(options)
    configure_logging(settings.log_level)
    check_exposure(settings)
    asyncio.run(_check(settings))
    LOG.info("settings", **settings.describe())
    send_spans = configure_tracing(settings.otlp_endpoint, "mirage-gateway")
    app = create_app(settings)
    settle_heap()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it is done
    try:
        return 0 if serve(app, settings) else 1
    finally:
        send_spans()


async def _check(settings: Settings) -> None:
    """Say what is missing in one line rather than in a traceback of the server."""
    check_ports(settings)
    check_certificates(settings)
    control = await ControlPlane.open(settings)
    await control.close()


def run_worker(_: argparse.Namespace) -> int:
    """Become a worker; this process has imported no torch and hands over entirely."""
    command = [sys.executable, "-m", "worker"]
    os.execve(sys.executable, command, environment(load_settings()))


def run_inspect(options: argparse.Namespace) -> int:
    """Memories are the worker's business, so a process of its package draws them."""
    place = {} if options.data_dir is None else {"data_dir": options.data_dir}
    words = [] if options.output is None else ["--output", str(options.output)]
    command = [sys.executable, "-m", "worker.inspect", options.session, *words]
    return subprocess.run(command, env=environment(load_settings(**place)), check=False).returncode


def run_walk(options: argparse.Namespace) -> int:
    try:
        return _walk(options)
    except httpx.TransportError as error:
        raise Unavailable(
            f"{options.server} does not answer ({error}): start a server with `mirage up`, or name "
            "another with --server"
        ) from error


def _walk(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("fov_deg", "seed", "memory")}
    form = {name: value for name, value in given.items() if value is not None}
    actions = parse_actions(options.actions)
    make_room(options.output)
    with Mirage(options.server) as mirage:
        world = mirage.create(options.image, sample=options.sample, **form)
        walk = world.generate(actions=actions)
        for frame in walk.frames():
            done = frame.number - walk.info["first_frame"] + 1
            known = "" if frame.coverage is None else f", {frame.coverage:.0%} remembered"
            print(f"\rframe {done} of {walk.info['total']}{known}   ", end="", flush=True)
        options.output.write_bytes(walk.video())
        if not options.keep:
            world.delete()
    print(f"\n{options.output}")
    return 0


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="default: MIRAGE_HOST or 127.0.0.1")
    command.add_argument("--port", type=int, help="default: MIRAGE_PORT or 8000; 0 = a free one")
    command.add_argument("--data-dir", help="default: MIRAGE_DATA_DIR or .mirage")
    command.add_argument(
        "--insecure", action="store_true", default=None, help="a public address without keys"
    )


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: getattr(options, name) for name in ("host", "port", "data_dir", "insecure")}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; the first Ctrl-C, SIGTERM or SIGHUP ends it in order, more change nothing."""

    async def cancellable() -> int:
        task = asyncio.current_task()
        assert task is not None
        loop, stopped = asyncio.get_running_loop(), False

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                task.cancel()
                tell("\nstopping ...")

        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(name, stop)
        try:
            return await work
        except asyncio.CancelledError:
            if not stopped:
                raise
            return 0

    return asyncio.run(cancellable())


if __name__ == "__main__":
    sys.exit(main())
