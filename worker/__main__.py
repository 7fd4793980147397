"""`python -m worker`: load the backbone, then serve until SIGTERM or Ctrl-C, which drain."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import structlog
import torch

from service.control.plane import ControlPlane
from service.errors import ConfigurationError, MirageError
from service.runtime import run, settle_heap
from service.settings import Settings, load_settings
from service.telemetry import configure_logging
from service.tracing import configure_tracing
from worker.backbones import create_backbone
from worker.engine import Engine, EngineConfig
from worker.memory.latent import LatentMemoryConfig
from worker.serving.faults import Faults, parse_fault
from worker.serving.loop import Worker
from worker.serving.metrics import Metrics
from worker.serving.runner import Encoding, Runner
from worker.warm import warm_up
from worker.weights import WeightsError

LOG = structlog.get_logger()


def create_engine(settings: Settings) -> Engine:
    """The engine that the settings describe; raises WeightsError, ConfigurationError."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device != "cpu" and not torch.cuda.is_available():
        raise ConfigurationError(f"MIRAGE_DEVICE={device}: torch finds no GPU; set cpu or auto")
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    backbone = create_backbone(settings.backbone, device)
    cfg = EngineConfig(
        height=settings.frame_height,
        width=settings.frame_width,
        deterministic=settings.deterministic,
        device=device,
        memory=LatentMemoryConfig(
            max_points=settings.memory_points,
            max_bytes=settings.memory_bytes or None,
            token_format=settings.memory_tokens,
        ),
    )
    if device == "cpu":
        LOG.info("kernels ready", seconds=round(warm_up(), 2))
    return Engine(backbone, cfg)


async def serve(settings: Settings, engine: Engine, faults: Faults) -> None:
    """Run one worker until SIGTERM or SIGINT."""
    send_spans = configure_tracing(settings.otlp_endpoint, "mirage-worker")
    control = await ControlPlane.open(settings)
    encoding = Encoding(settings.image_format, settings.image_quality)
    metrics = Metrics()
    port = metrics.serve(settings.host, settings.worker_metrics_port)
    worker = Worker(control, settings, Runner(engine, encoding), faults, metrics, port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    LOG.info("worker ready", worker=worker.id, weights=engine.backbone.weights, metrics_port=port)
    try:
        await worker.run()
    finally:
        await control.close()
        send_spans()
    LOG.info("worker drained", worker=worker.id)


def main() -> int:
    try:
        settings = load_settings()
        faults = parse_fault(os.environ.get("MIRAGE_FAULT", ""))
        configure_logging(settings.log_level)
        LOG.info("settings", **settings.describe())
        engine = create_engine(settings)
        settle_heap()
        run(serve(settings, engine, faults))
    except (MirageError, WeightsError, ValueError) as error:
        print(f"worker can't run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
