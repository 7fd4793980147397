"""A convolutional critic that tells decoded true latents from decoded generated ones.

It judges patches of four sizes: texture by layers of its own on pixels, shapes and layout through
the features of a network trained on photographs, which stay as they are (projected critics, Sauer
et al., arXiv 2111.01007): such a critic sees what is wrong from its first steps. It is told which
pixels are invented and its votes count there the most, since where the memory shows what was seen
the two kinds of picture are nearly the same. Hinge loss. It exists in training only, and its
network is not the one that the evaluation measures distance with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import channels_last, conv
from worker.photographic import pretrained
from worker.precision import autocast

KNOWN_WEIGHT = 0.3  # of a vote about what was really seen
WIDTHS = (24, 40, 112)  # channels of EfficientNet-Lite1 at strides 4, 8 and 16
LAST_BLOCKS = (3, 6, 14)


class Critic(nn.Module):
    """Pictures and which of their pixels are invented -> votes, higher is more real."""

    def __init__(self, width: int = 64, learning_rate: float = 5e-4) -> None:
        super().__init__()
        slope = nn.LeakyReLU(0.2)
        self.texture = channels_last(
            nn.Sequential(nn.PixelUnshuffle(4), conv(48, width), slope, conv(width, width), slope)
        )
        self.heads = channels_last(
            nn.ModuleList(
                nn.Sequential(
                    *(conv(channels + 1, width, 1), slope),
                    *(conv(width, width), slope, conv(width, 1)),
                )
                for channels in (width, *WIDTHS)
            )
        )
        # after the parameters: the features are no part of what is trained or saved
        self.optimiser = torch.optim.AdamW(
            self.parameters(), lr=learning_rate, betas=(0.5, 0.9), weight_decay=0.0
        )
        self.features = pretrained("lite1", LAST_BLOCKS)

    def look(self, images: Tensor) -> list[Tensor]:
        """What the votes are made from: (n, c, H / s, W / s) of its own, then of photographs at
        strides 4, 8 and 16.
        """
        with autocast(images.device.type):
            pixels = images.contiguous(memory_format=torch.channels_last)
            return [self.texture(pixels), *self.features(pixels)]

    def votes(self, seen: list[Tensor], invented: Tensor) -> tuple[Tensor, Tensor]:
        """Of what it looked at and (n, H, W) in [0, 1]: votes (n, k) and what they count (n, k),
        each size of patch as much as the others, 1 in all.
        """
        votes, weights = [], []
        with autocast(invented.device.type):
            for head, features in zip(self.heads, seen, strict=True):
                there = pooled(invented.float(), features)
                votes.append(head(torch.cat([features, there.to(features.dtype)], 1)).flatten(1))
                counts = KNOWN_WEIGHT + (1 - KNOWN_WEIGHT) * there.flatten(1)
                weights.append(counts / counts.sum() / len(seen))
        return torch.cat(votes, 1).float(), torch.cat(weights, 1)

    def praise(self, seen: list[Tensor], invented: Tensor) -> Tensor:
        """How real the pictures look, a scalar."""
        votes, weights = self.votes(seen, invented)
        opinion: Tensor = (votes * weights).sum()
        return opinion

    def learn(self, images: Tensor, looks: list[Tensor], invented: Tensor) -> float:
        """One step on n true pictures and then n generated ones; the hinge loss (2: cannot tell, 0:
        always can). What was seen in them counts but for its first part, which is learnt as well.
        """
        with autocast(images.device.type):
            texture = self.texture(images.contiguous(memory_format=torch.channels_last))
        fixed = [look.detach() for look in looks[1:]]
        votes, weights = self.votes([texture, *fixed], torch.cat([invented, invented]))
        sign = torch.ones(len(votes), 1, device=votes.device)
        sign[len(votes) // 2 :] = -1
        loss = 2 * (F.relu(1 - sign * votes) * weights).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def apart(seen: list[Tensor], wanted: list[Tensor], weight: Tensor) -> Tensor:
    """Mean squared distance, a scalar, of what pictures show to the network of photographs; it
    counts as much as `weight` (n, H, W) says.
    """
    means = []
    for one, other in zip(seen, wanted, strict=True):
        unlike = (one.float() - other.float()).square().sum(1, keepdim=True)
        means.append((unlike * pooled(weight, one)).mean())
    return torch.stack(means).mean()


def pooled(plane: Tensor, features: Tensor) -> Tensor:
    """(n, H, W) as a mean per place of features (n, c, h, w): (n, 1, h, w)."""
    h, w = features.shape[-2:]
    return F.adaptive_avg_pool2d(plane[:, None], (h, w))
