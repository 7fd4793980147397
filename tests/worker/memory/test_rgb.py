"""The rgb memory: pixels kept, shown and encoded again."""

import pytest
import torch
from block_codec import BlockCodec
from boxes import camera, orbit, room_depth
from torch import Tensor

from worker.geometry import Cameras, enlarged, sharp_enlarged
from worker.memory import create_memory
from worker.memory.latent import LatentMemoryConfig
from worker.memory.rgb import RgbMemory, fill_holes
from worker.placed import FINER, NUM_PARTS
from worker.projection import MOST_ASIDE, quality_of

GRID, CHANNELS, SIZE = (8, 12), 6, (64, 96)


@pytest.fixture
def memory() -> RgbMemory:
    return RgbMemory(CHANNELS, GRID, "cpu", BlockCodec(CHANNELS))


def views(num: int) -> Cameras:
    return orbit(num, *SIZE)


def pictures(num: int, seed: int = 0) -> Tensor:
    """(num, H, W, 3) uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *SIZE, 3), generator=generator, dtype=torch.uint8)


def write(memory: RgbMemory, cameras: Cameras, images: Tensor | None, **options: object):
    tokens = torch.zeros(len(cameras), CHANNELS, *GRID)
    depth = options.pop("depth", room_depth(cameras))
    return memory.write(tokens, depth, cameras, range(len(cameras)), images=images, **options)


def test_a_view_is_shown_again_as_the_codec_encodes_it(memory):
    cameras, images = views(1), pictures(1)
    write(memory, cameras, images, observed=True)
    readout = memory.read(cameras)
    expected = BlockCodec(CHANNELS).encode(images.permute(0, 3, 1, 2) / 127.5 - 1)
    assert (readout.coverage == 1).all() and (readout.source == 0).all()
    torch.testing.assert_close(readout.tokens, expected, atol=2e-3, rtol=0)
    truth = room_depth(cameras.resized(*GRID)).float()
    torch.testing.assert_close(readout.depth, truth, rtol=0.05, atol=0)


def test_colours_survive_storage_to_the_level(memory):
    images = pictures(1)
    delta = write(memory, views(1), images, observed=True)
    kept = ((delta.tokens.float() + 1) * 127.5).round().byte()
    assert torch.equal(kept, images.reshape(-1, 3)) and len(delta.ids) == SIZE[0] * SIZE[1]


def test_without_pictures_the_tokens_are_decoded(memory):
    tokens = torch.rand(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    tokens[:, 3:] = tokens[:, :3]
    memory.write(tokens, room_depth(views(1)), views(1), [0], observed=True)
    torch.testing.assert_close(memory.read(views(1)).tokens, tokens, atol=4e-3, rtol=0)


def test_the_winner_is_on_the_surface_that_the_cell_shows(memory):
    cameras = views(3)
    write(memory, cameras, pictures(3), observed=True)
    state, seen = memory.state(), memory.read(views(4))
    covered = seen.winner >= 0
    assert torch.equal(covered, seen.coverage > 0) and covered.any()
    rows = seen.winner[covered]
    assert torch.equal(state["source"][rows].long(), seen.source[covered])
    lost = (state["quality"][rows] / seen.quality[covered]).log2()
    assert (lost >= 0).all() and (4 * lost <= MOST_ASIDE).all() and lost.any()  # seen from aside


def test_a_depth_map_of_cells_serves_all_pixels(memory):
    cameras = views(1)
    coarse = room_depth(cameras.resized(*GRID))
    delta = write(memory, cameras, pictures(1), depth=coarse)
    truth = room_depth(cameras).float()
    assert len(delta.ids) == SIZE[0] * SIZE[1]
    seen = memory._pixels.read(cameras, "nearest").depth
    assert float(((seen - truth).abs() / truth).median()) < 0.01


def test_masks_and_confidence_of_cells_hold_for_their_pixels(memory):
    mask = torch.zeros(1, *GRID, dtype=torch.bool)
    mask[:, :, :6] = True
    trust = torch.full((1, *GRID), 0.5)
    delta = write(memory, views(1), pictures(1), mask=mask, confidence=trust, observed=True)
    assert len(delta.ids) == SIZE[0] * SIZE[1] // 2
    seen = memory.read(views(1))
    assert (seen.coverage[:, :, :6] == 0).all() and (seen.coverage[:, :, 6:] == 1).all()
    plain = RgbMemory(CHANNELS, GRID, "cpu", BlockCodec(CHANNELS))
    full = write(plain, views(1), pictures(1), mask=mask, observed=True)
    assert torch.equal(2 * quality_of(delta.quality), quality_of(full.quality))


def test_the_budget_is_the_same_in_frames():
    cfg = LatentMemoryConfig(max_points=GRID[0] * GRID[1])
    memory = RgbMemory(CHANNELS, GRID, "cpu", BlockCodec(CHANNELS), cfg)
    write(memory, views(3), pictures(3), observed=True)
    assert memory.stats().num_points <= SIZE[0] * SIZE[1]
    cfg = LatentMemoryConfig(max_bytes=4000)
    memory = RgbMemory(CHANNELS, GRID, "cpu", BlockCodec(CHANNELS), cfg)
    write(memory, views(3), pictures(3), observed=True)
    assert 0.5 * 64 * 4000 < memory.stats().num_bytes <= 64 * 4000


def test_wrong_shapes_are_refused(memory):
    with pytest.raises(ValueError, match=r"tokens must be \(T, C, h, w\) = \(T, 6, 8, 12\)"):
        memory.write(torch.zeros(1, 3, *GRID), room_depth(views(1)), views(1), [0])
    with pytest.raises(ValueError, match=r"images must be .* = \(1, 64, 96, 3\)"):
        write(memory, views(1), pictures(1)[:, :32])
    with pytest.raises(ValueError, match="create it with a codec"):
        create_memory("rgb", CHANNELS, GRID)


def test_holes_are_filled_from_around_them_and_the_rest_is_kept():
    images = torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    known = torch.ones(2, 1, 20, 33)
    known[:, :, 4:9, 10:30] = 0
    filled = fill_holes(torch.where(known > 0, images, 1e3), known)
    assert torch.equal(filled[:, :, :4], images[:, :, :4])
    assert 0 <= float(filled.min()) and float(filled.max()) <= 1
    flat = torch.full((1, 3, 20, 33), 0.25)
    torch.testing.assert_close(fill_holes(flat * known[:1], known[:1]), flat)
    assert torch.equal(fill_holes(flat * 0, known[:1] * 0), flat * 0)


def test_enlarged_depth_is_exact_on_planes_and_sharp_at_edges():
    cameras = camera((0, 0, 0), (0.2, 0.1, 1.0), *SIZE)
    plane = room_depth(cameras.resized(*GRID), half=(90.0, 90.0, 3.0)).float()
    truth = room_depth(cameras, half=(90.0, 90.0, 3.0)).float()
    fine = sharp_enlarged(plane, SIZE)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(fine[inner], truth[inner], rtol=1e-4, atol=0)
    edge = torch.ones(1, 8, 12)
    edge[..., 6:] = 4.0
    edge[:, 0] = 0.0
    fine = sharp_enlarged(edge, SIZE)
    between = (fine != 0) & ((fine - 1).abs() > 1 / 16) & ((fine - 4).abs() > 4 / 16)
    assert not between.any() and (fine[:, :8] == 0).all() and (fine[:, 8:] > 0).all()
    large = torch.ones(1, 100, 100)
    assert sharp_enlarged(large, SIZE) is large
    assert enlarged(torch.ones(1, 100, 12, dtype=torch.bool), SIZE).shape == (1, 100, 96)


def test_a_finer_look_shows_parts_of_the_same_centred_tokens(memory):
    cameras = views(2)
    write(memory, cameras, pictures(2), observed=True)
    readout = memory.read(cameras, "fine")
    finer = readout.finer
    for number in range(NUM_PARTS):
        of_each = (..., slice(number // FINER, None, FINER), slice(number % FINER, None, FINER))
        assert torch.equal(finer.tokens[of_each], readout.tokens)
        part = finer.part[of_each][finer.coverage[of_each] > 0]
        assert (part == number).all() and len(part)
        assert torch.equal(finer.span[of_each], readout.span)
    assert not finer.offset.any()
    assert not finer.second.coverage.any()
