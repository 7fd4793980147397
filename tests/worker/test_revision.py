"""Later pictures place what earlier ones showed, with a backbone whose depth is off by a third."""

from __future__ import annotations

from dataclasses import replace

import torch
from boxes import camera, room_depth, surface
from torch import Tensor
from torch.nn import functional as F

from bench.noop import NoopBackbone
from worker.engine import Engine, EngineConfig
from worker.geometry import Cameras, pool_depth
from worker.world import WINDOW, World, in_use

HEIGHT, WIDTH = 96, 160
STEP_M = 0.45


class Astray(NoopBackbone):
    """Keeps pictures as they are and takes all depth for a third more than it is."""

    channels = 192

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.stride)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.stride)

    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        h, w = latents.shape[-2:]
        truth = pool_depth(room_depth(cameras), (h, w))
        return 1.33 * truth, torch.full_like(truth, 0.5)


def view(number: float) -> Cameras:
    x = STEP_M * number
    return camera((x - 0.5, 0.0, 0.0), (x - 0.5, 0.0, 2.0), HEIGHT, WIDTH)


def picture(cameras: Cameras) -> Tensor:
    place = surface(cameras, room_depth(cameras))[0]
    waves = torch.tensor([[17.0, 5, 9], [6, 19, 4], [9, 7, 21]], dtype=torch.float64)
    return (127 + 100 * (place @ waves).sin()).byte()


def create() -> Engine:
    return Engine(Astray(), EngineConfig(height=HEIGHT, width=WIDTH))


def observed(num: int, memory: str = "latent") -> tuple[Engine, World]:
    engine = create()
    world = engine.open(1, memory)
    for i in range(num):
        engine.observe(world, picture(view(i)), view(i))
    return engine, world


def error(world: World, number: int) -> float:
    shown = world.memory.read(view(number), "nearest")
    truth = pool_depth(room_depth(view(number)), tuple(shown.depth.shape[1:]))
    covered = shown.coverage > 0
    assert covered.float().mean() > 0.5
    return float((shown.depth / truth)[covered].log().abs().median())


def points_of(world: World, source: int) -> dict[int, float]:
    """Depth of each point that this picture added and that is left, by its id."""
    state = world.memory.state()
    own = state["source"] == source
    return dict(zip(state["ids"][own].tolist(), state["depth"][own].tolist(), strict=True))


def test_the_second_picture_places_the_first_one_anew() -> None:
    assert error(observed(1)[1], 0) > 0.25
    assert error(observed(2)[1], 0) < 0.05


def test_the_head_is_told_what_three_pictures_agree_on() -> None:
    hints: list[Tensor] = []

    class Told(Astray):
        def depth(
            self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            if len(latents) > 1:  # a second guess: all newest pictures at once
                hints.append(torch.where(hint > 0, hint / self.truth(cameras, hint), 0.0))
                assert pictures is not None and len(pictures) == len(hint)
            return super().depth(latents, cameras, hint, pictures)

        @staticmethod
        def truth(cameras: Cameras, hint: Tensor) -> Tensor:
            return pool_depth(room_depth(cameras), (hint.shape[1], hint.shape[2]))

    engine = Engine(Told(), EngineConfig(height=HEIGHT, width=WIDTH))
    world = engine.open(1)
    for i in range(3):
        engine.observe(world, picture(view(i)), view(i))
    (ratio,) = hints  # two pictures agree on nothing that a third bears out
    assert len(ratio) == 3 and (ratio > 0).float().mean() > 0.3
    assert (ratio[ratio > 0] - 1).abs().median() < 0.05


def test_what_is_known_from_all_sides_stays() -> None:
    """Placed anew with each one as long as it is in use, and never again."""
    worlds = {count: observed(count)[1] for count in (3, 4, WINDOW, WINDOW + 1)}
    first = {count: points_of(world, 0) for count, world in worlds.items()}
    assert first[WINDOW + 1].items() <= first[WINDOW].items() and first[WINDOW + 1]
    assert not first[4].keys() & first[3].keys()


def test_no_more_sights_are_kept_than_are_compared() -> None:
    _, world = observed(WINDOW + 2)
    assert [sight.source for sight in world.sights] == list(range(2, WINDOW + 2))


def test_what_was_measured_makes_room_for_what_was_guessed() -> None:
    """Of the older ones: for depth they are compared with none, for motion they are too old."""
    _, world = observed(WINDOW)
    mixed = [
        replace(sight, guess=None) if number % 2 else sight
        for number, sight in enumerate(world.sights)
    ]
    kept = [sight.source for sight in in_use([*mixed, *world.sights[-1:]])]
    assert kept == [*range(0, WINDOW - 3, 2), *range(WINDOW - 3, WINDOW), WINDOW - 1]


def test_pictures_from_nearly_the_same_place_are_placed_but_not_kept() -> None:
    """Of a fast stream the latest few would show no depth: what tells it must stay."""
    engine = create()
    world = engine.open(1)
    for i in range(2 * WINDOW):
        near = view(0.01 * i)
        engine.observe(world, picture(near), near)
        assert len(world.sights) == 1 and points_of(world, 0)
    far = view(1)
    engine.observe(world, picture(far), far)
    assert [sight.source for sight in world.sights] == [0, 2 * WINDOW]
    assert error(world, 0) < 0.1
    aside = camera((-0.5, 0.0, 0.0), (1.5, 0.0, 0.0), HEIGHT, WIDTH)  # turned to another wall
    engine.observe(world, picture(aside), aside)
    assert len(world.sights) == 3


def test_pictures_with_depth_are_never_revised() -> None:
    engine, world = observed(1)
    measured = view(1)
    engine.observe(world, picture(measured), measured, room_depth(measured)[0])
    before = points_of(world, 1)
    for i in (2, 3):
        engine.observe(world, picture(view(i)), view(i))
    after = points_of(world, 1)
    assert len(world.sights) == 3 and after and after.items() <= before.items()


def test_what_a_client_hides_stays_hidden_when_it_is_placed_anew() -> None:
    engine = create()
    world = engine.open(1)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, : WIDTH // 2] = True
    for i in range(3):
        engine.observe(world, picture(view(i)), view(i), mask=mask)
    h, w = engine.grid
    cells = world.memory.state()["ids"] % (h * w) % w
    assert len(cells) and int(cells.min()) >= w // 2


def test_pixels_are_placed_anew_as_well() -> None:
    _, world = observed(2, "rgb")
    assert error(world, 0) < 0.05
