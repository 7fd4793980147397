"""Stage 5: the mover alone, on what memories show at work.

The codec's own stage moves tokens out of two views; at work a memory fuses many. So per sample a
real memory is written from up to MAX_CONTEXT frames of a walk (every third, as observations come,
or any), with true depth of the parts of cells, the same at a wrong scale, what comparing their
pictures finds, or the depth head's own per cell; all observed or, after the first, as generated
ones that fill what is uncovered. The mover, which has looked at one token per cell so far, is shown
the finer readout as well. Encoder and decoder stay as they are. The loss is taken on decoded
pictures, wherever something is remembered and nothing moves: their distance from the true ones, and
for some that of what a network trained on photographs sees in them, as the mean of all that may be
right is a blur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worker.codec import Codec, psnr
from worker.conditioning import stacked
from worker.layers import channels_last
from worker.memory import create_memory
from worker.memory.base import Readout
from worker.photographic import Features, pretrained
from worker.placed import Placed
from worker.precision import autocast
from worker.train.critic import apart
from worker.train.denoiser import pixels_of
from worker.train.footage import EVERY, Footage, Source, drawn_source
from worker.train.latents import LatentWalks
from worker.train.loop import Progress, Run, RunConfig

NUM_TARGETS = 2  # views of each memory
MAX_CONTEXT = 8
FINE_WIDTH, FINE_BLOCKS = 64, 2  # of a mover that has not looked (so closely) at finer readouts
LAST_BLOCKS = (3, 6)  # of the network that looks at pictures: strides 4 and 8
NUM_LOOKED_AT = 2  # pictures of a batch, for speed
FLOOR = 2e-4  # squared error of pictures in [-1, 1] that are as good as they need be (43 dB)
LIKENESS = 1.0  # what they pull as a share of what pixels do
REGULAR_SHARE = 0.5  # of samples whose context is every EVERY-th frame, else at random
HEAD_SHARE = 0.1  # memories with the head's own depth
COMPARED_SHARE = 0.35  # memories with what comparing pictures makes of that
WRONG_SCALE_SHARE = 0.15  # of those with true depth: frames disagree about scale
GENERATED_SHARE = 0.15  # memories whose frames, but for the first, only fill
NOISY_SHARE = 0.15  # memories with noisy tokens


@dataclass(frozen=True)
class Plan:
    """Which frames of one walk play which part."""

    scene: int
    context: list[int]  # written to the memory, in this order
    targets: list[int]
    depth: Source
    scale_noise: float
    token_noise: float
    generated: bool


@dataclass(frozen=True)
class Batch:
    front: Placed  # (n, ...) as the memories show it to the targets
    finer: Placed
    images: Tensor  # (n, 3, H, W) what the targets are
    judged: Tensor  # (n, H, W) bool: remembered, and nothing moves


def plan(walks: LatentWalks, generator: torch.Generator) -> Plan:
    num_scenes, num_frames = walks.latents.shape[:2]

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    order = torch.randperm(num_frames, generator=generator).tolist()
    context = sorted(order[: 1 + below(min(MAX_CONTEXT, num_frames - NUM_TARGETS))])
    depth = drawn_source(HEAD_SHARE, COMPARED_SHARE, generator)
    is_wrong = depth == "true" and chance(WRONG_SCALE_SHARE)
    if depth == "compared" or chance(REGULAR_SHARE):
        context = list(range(below(EVERY), num_frames, EVERY))
    targets = [frame for frame in order if frame not in context][:NUM_TARGETS]
    amount = 0.2 * float(torch.rand((), generator=generator))
    return Plan(
        scene=below(num_scenes),
        context=context[::-1] if chance(0.5) else context,
        targets=targets,
        depth=depth,
        scale_noise=0.03 if is_wrong else 0.0,
        token_noise=amount if chance(NOISY_SHARE) else 0.0,
        generated=chance(GENERATED_SHARE),
    )


def shown(walks: LatentWalks, depths: Tensor, part: Plan, generator: torch.Generator) -> Readout:
    """What a memory of the plan's context, with depths (k, h', w'), shows to its targets."""
    channels, h, w = walks.latents.shape[2:]
    memory = create_memory("latent", channels, (h, w), "cpu")
    for i, frame in enumerate(part.context):
        scale = torch.exp(part.scale_noise * torch.randn((), generator=generator))
        tokens = walks.latents[part.scene, frame].float()
        tokens = tokens + part.token_noise * torch.randn(tokens.shape, generator=generator)
        camera = walks.cameras[part.scene, frame : frame + 1]
        memory.write(
            tokens[None],
            scale * depths[i, None],
            camera,
            [i],
            observed=i == 0 or not part.generated,
        )
    return memory.read(walks.cameras[part.scene, part.targets], "fine")


def batches(footage: Footage, batch_size: int) -> Callable[[torch.Generator], Batch]:
    return partial(make_batch, footage, batch_size)


def make_batch(footage: Footage, batch_size: int, generator: torch.Generator) -> Batch:
    parts = [plan(footage.latents, generator) for _ in range(batch_size)]
    depths = [footage.depths(part.scene, part.context, part.depth) for part in parts]
    readouts = [shown(footage.latents, *one, generator) for one in zip(depths, parts, strict=True)]
    front, finer = stacked(readouts)
    assert finer is not None
    front, finer = front.flatten(), finer.flatten()
    scenes = torch.tensor([part.scene for part in parts])
    frames = torch.tensor([part.targets for part in parts])
    still = ~footage.walks.motion_masks(scenes, frames).flatten(0, 1)
    images = footage.walks.images(scenes, frames).flatten(0, 1)
    return Batch(front, finer, images, pixels_of(front.coverage > 0) & still)


def mover_loss(codec: Codec, look: Features, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Distance of decoded pictures per judged pixel, with the pull of their likeness."""
    with autocast(batch.images.device.type):
        moved = codec.move(batch.front, batch.finer).float()
        decoded = codec.decode(moved).float()
    weight = batch.judged / batch.judged.sum().clamp(min=1)
    some = slice(NUM_LOOKED_AT)
    pull, figures = pulled(decoded, batch.images, weight, look, some, LIKENESS, log_error)
    with torch.no_grad():
        figures["psnr_moved"] = float(psnr(decoded, batch.images, batch.judged).nanmean())
    return (decoded * pull).sum(), figures


def log_error(decoded: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Mean log of pictures' squared errors, which is what their PSNR measures: what is wrong at
    edges counts more than by its size, and a picture that can't be right no more than any other.
    """
    share = weight.sum((1, 2)).clamp(min=1e-12)
    squared = ((decoded - images).square().mean(1) * weight).sum((1, 2)) / share
    return ((squared + FLOOR).log() * share).sum()


def pulled(
    decoded: Tensor,  # (n, 3, H, W)
    images: Tensor,
    weight: Tensor,  # (n, H, W) of the distance, 1 in all
    look: Features,
    some: slice,  # of the pictures, whose features are compared as well
    likeness: float,  # what these pull as a share of what pixels do
    distance_of: Callable[[Tensor, Tensor, Tensor], Tensor],  # decoded, images, weight -> a scalar
) -> tuple[Tensor, dict[str, float]]:
    """The gradient that decoded pictures should follow, and what it comes from."""
    fake = decoded.detach().requires_grad_()
    distance = distance_of(fake, images, weight)
    (pull,) = torch.autograd.grad(distance, fake)
    with autocast(images.device.type):
        seen = look(fake[some].contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            wanted = look(images[some].contiguous(memory_format=torch.channels_last))
    unlike = apart(seen, wanted, weight[some] * weight.numel())
    (other,) = torch.autograd.grad(unlike, fake)
    pull = pull + likeness * pull[some].norm() / other.norm().clamp(min=1e-12) * other
    return pull, {"distance": float(distance.detach()), "unlike": float(unlike.detach())}


def looking_finer(codec: Codec) -> Codec:
    """The same codec with a mover that also looks (closely) at a finer readout, and ignores as yet
    what that tells.
    """
    fine, blocks = codec.cfg.mover_fine or FINE_WIDTH, codec.cfg.mover_fine_blocks or FINE_BLOCKS
    finer = Codec(replace(codec.cfg, mover_fine=fine, mover_fine_blocks=blocks))
    for block in (*finer.mover.fine_blocks, *finer.mover.finest_blocks):
        torch.nn.init.zeros_(block.second.weight)
    finer.load_state_dict(finer.state_dict() | codec.state_dict())
    return channels_last(finer)


def train_mover(
    cfg: RunConfig, codec: Codec, footage: Footage, folder: Path
) -> tuple[Codec, Progress]:
    """The codec with a mover that goes on from the one given."""
    torch.manual_seed(cfg.seed)
    codec = looking_finer(codec).requires_grad_(False).to(cfg.device)
    codec.mover.requires_grad_(True)
    run, look = Run(cfg, codec.mover, folder), pretrained("lite1", LAST_BLOCKS).to(cfg.device)
    progress = run.train(
        batches(footage, cfg.batch_size),
        lambda batch, _: mover_loss(codec, look, batch),
    )
    return codec, progress
