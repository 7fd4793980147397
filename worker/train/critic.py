"""A small convolutional critic that tells decoded true latents from decoded generated ones.

It sees patches of about 70 pixels and is trained with the hinge loss. It exists in training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import channels_last, conv


class Critic(nn.Module):
    """(n, 3, H, W) pictures in [-1, 1] -> (n, 1, H / 8, W / 8) scores, higher is more real."""

    def __init__(self, width: int = 64, learning_rate: float = 5e-4) -> None:
        super().__init__()
        slope = nn.LeakyReLU(0.2)
        self.body = channels_last(
            nn.Sequential(
                *(nn.PixelUnshuffle(4), conv(48, width), slope),
                *(nn.PixelUnshuffle(2), conv(4 * width, 2 * width), slope),
                *(conv(2 * width, 2 * width), slope, conv(2 * width, 2 * width), slope),
                conv(2 * width, 1),
            )
        )
        self.optimiser = torch.optim.AdamW(
            self.parameters(), lr=learning_rate, betas=(0.5, 0.9), weight_decay=0.0
        )

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            scores: Tensor = self.body(images.contiguous(memory_format=torch.channels_last))
        return scores.float()

    def learn(self, real: Tensor, fake: Tensor) -> float:
        """One step on detached pictures; the hinge loss (2: cannot tell, 0: always can)."""
        scores = self(torch.cat([real, fake]))
        loss = F.relu(1 - scores[: len(real)]).mean() + F.relu(1 + scores[len(real) :]).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())
