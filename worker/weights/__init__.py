"""Weight files: safetensors in bfloat16, a JSON card of the same name beside each, checked before
use.

The card holds the module's config, the SHA-256 of the file and how the weights were made (recipe,
commit, seeds, steps, minutes, device, validation figures). A missing or altered file is refused by
name: a worker never starts with random weights. The codec's may say which earlier weights it
`continues`: those with the same encoder, whose Worlds it can go on with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn

SHIPPED = Path(__file__).parent

M = TypeVar("M", bound=nn.Module)


class WeightsError(RuntimeError):
    """A weight file or its card is missing, altered or does not fit the code."""


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_module(module: nn.Module, path: Path, card: dict[str, Any]) -> None:
    """Write `path` (bfloat16) and its card; module.cfg must be a dataclass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(tensors, path)
    config = dataclasses.asdict(cast(Any, module.cfg))
    card = {"file": path.name, "sha256": checksum(path), "config": config, **card}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def read_card(path: Path) -> dict[str, Any]:
    card_path = path.with_suffix(".json")
    if not path.exists() or not card_path.exists():
        missing = path if not path.exists() else card_path
        raise WeightsError(f"{missing} is missing: reinstall the package or run `make train`")
    card: dict[str, Any] = json.loads(card_path.read_text())
    actual = checksum(path)
    if actual != card["sha256"]:
        raise WeightsError(
            f"{path} has SHA-256 {actual} but its card says {card['sha256']}: "
            "the file is damaged or does not belong to the card; reinstall the package"
        )
    return card


def load_module(path: Path, kind: type[M], config: type) -> tuple[M, str]:
    """The module with its weights (float32, on the CPU) and the file's checksum."""
    card = read_card(path)
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in card["config"].items()
    }
    tensors = {name: value.float() for name, value in load_file(path).items()}
    try:
        module = kind(config(**fields))
        module.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise WeightsError(
            f"{path} does not fit the code ({error}): reinstall the package or run `make train`"
        ) from error
    return module, card["sha256"]
