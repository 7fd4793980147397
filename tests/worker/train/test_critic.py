import torch

from worker.train.critic import Critic


def test_scores_are_per_patch():
    scores = Critic(width=8)(torch.zeros(2, 3, 48, 64))
    assert scores.shape == (2, 6 * 8 + 12 * 2 * 2)  # texture, and the layout as often


def test_it_learns_to_tell_two_kinds_of_picture_apart():
    torch.manual_seed(0)
    critic = Critic(width=8, learning_rate=5e-3)
    flat, noisy = torch.zeros(4, 3, 32, 32), torch.randn(4, 3, 32, 32).clamp(-1, 1)
    losses = [critic.learn(noisy, flat) for _ in range(30)]
    assert losses[0] > 1.5 and losses[-1] < 0.5
    assert critic(noisy).mean() > critic(flat).mean()
