import torch

from worker.train.critic import KNOWN_WEIGHT, Critic, apart


def test_votes_are_per_patch_and_each_size_counts_as_much():
    critic = Critic(width=8)
    votes, weights = critic.votes(critic.look(torch.zeros(2, 3, 64, 64)), torch.ones(2, 64, 64))
    sizes = [16 * 16, 16 * 16, 8 * 8, 4 * 4]
    assert votes.shape == weights.shape == (2, sum(sizes))
    for part in weights.split(sizes, 1):
        torch.testing.assert_close(part.sum(), torch.tensor(0.25))


def test_what_is_invented_counts_more():
    invented = torch.zeros(1, 64, 64)
    invented[..., 32:] = 1
    critic = Critic(width=8)
    _, weights = critic.votes(critic.look(torch.zeros(1, 3, 64, 64)), invented)
    rows = weights[:, :256].view(16, 16)
    torch.testing.assert_close(rows[:, :8].sum() / rows[:, 8:].sum(), torch.tensor(KNOWN_WEIGHT))


def test_it_learns_to_tell_two_kinds_of_picture_apart():
    torch.manual_seed(0)
    critic = Critic(width=8, learning_rate=5e-3)
    flat, noisy = torch.zeros(4, 3, 32, 32), torch.randn(4, 3, 32, 32).clamp(-1, 1)
    everywhere = torch.ones(4, 32, 32)
    images = torch.cat([noisy, flat])
    losses = [critic.learn(images, critic.look(images), everywhere) for _ in range(30)]
    assert losses[0] > 1.5 and losses[-1] < 0.5
    real, fake = (critic.praise(critic.look(images), everywhere) for images in (noisy, flat))
    assert real > fake


def test_what_it_sees_through_stays_as_it_is():
    critic = Critic(width=8)
    before = [parameter.clone() for parameter in critic.features.parameters()]
    images = torch.stack([torch.rand(3, 32, 32), torch.zeros(3, 32, 32)])
    critic.learn(images, critic.look(images), torch.ones(1, 32, 32))
    assert all(map(torch.equal, before, critic.features.parameters()))
    assert not critic.features.network.training


def test_features_of_equals_are_not_apart_and_only_what_counts_counts():
    critic, images = Critic(width=8), torch.rand(1, 3, 64, 64, generator=torch.manual_seed(1))
    other = images.clone()
    other[..., 32:] = -1
    left = torch.zeros(1, 64, 64)
    left[..., :16] = 1
    with torch.no_grad():
        seen, changed = critic.look(images), critic.look(other)
    assert apart(seen, seen, torch.ones(1, 64, 64)) == 0
    assert 0 <= apart(changed, seen, left) < 0.1 * apart(changed, seen, torch.ones(1, 64, 64))
