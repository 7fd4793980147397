"""A small convolutional critic that tells decoded true latents from decoded generated ones.

It judges patches of about 70 pixels (texture) and of about 200 (shapes and layout) and is trained
with the hinge loss. It exists in training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.layers import channels_last, conv


class Critic(nn.Module):
    """(n, 3, H, W) pictures in [-1, 1] -> (n, k) scores of patches, higher is more real."""

    def __init__(self, width: int = 64, learning_rate: float = 5e-4) -> None:
        super().__init__()
        slope = nn.LeakyReLU(0.2)
        wide = 2 * width
        self.body = channels_last(
            nn.Sequential(
                *(nn.PixelUnshuffle(4), conv(48, width), slope),
                *(nn.PixelUnshuffle(2), conv(4 * width, wide), slope),
                *(conv(wide, wide), slope),
            )
        )
        self.texture = channels_last(nn.Sequential(conv(wide, wide), slope, conv(wide, 1)))
        self.layout = channels_last(
            nn.Sequential(
                *(nn.PixelUnshuffle(2), conv(4 * wide, wide), slope),
                *(nn.PixelUnshuffle(2), conv(4 * wide, wide), slope, conv(wide, 1)),
            )
        )
        self.optimiser = torch.optim.AdamW(
            self.parameters(), lr=learning_rate, betas=(0.5, 0.9), weight_decay=0.0
        )

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            seen = self.body(images.contiguous(memory_format=torch.channels_last))
            fine = self.texture(seen).flatten(1)
            padded = F.pad(seen, (0, -seen.shape[-1] % 4, 0, -seen.shape[-2] % 4), mode="replicate")
            coarse = self.layout(padded).flatten(1)
        # as many votes for the layout as for the texture, however few its patches are
        again = coarse.repeat(1, fine.shape[1] // coarse.shape[1])
        return torch.cat([fine, again], 1).float()

    def learn(self, real: Tensor, fake: Tensor) -> float:
        """One step on detached pictures; the hinge loss (2: cannot tell, 0: always can)."""
        scores = self(torch.cat([real, fake]))
        loss = F.relu(1 - scores[: len(real)]).mean() + F.relu(1 + scores[len(real) :]).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())
