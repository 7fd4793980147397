"""Backbones by name, imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from worker.backbones.base import Backbone
from worker.weights import SHIPPED

BACKBONES = {"mini": "worker.backbones.mini"}


def create_backbone(name: str, device: str = "cpu", folder: Path | None = None) -> Backbone:
    """Load a backbone with the weights in `folder` (default: those shipped with the package)."""
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown: choose one of {sorted(BACKBONES)}")
    backbone: Backbone = import_module(BACKBONES[name]).create(device, folder or SHIPPED)
    return backbone
