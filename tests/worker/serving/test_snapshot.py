"""Segments: bit-equal there and back, readable without torch, and a World is their replay."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from bench.noop import HEIGHT, WIDTH, NoopBackbone, noop_engine
from service.control.frames import Frame
from service.errors import SegmentCorrupt
from service.store.segments import FrameMeta, SegmentHeader, parse_segment
from worker.geometry import Cameras
from worker.placed import CLOSER, FINER, NUM_PARTS
from worker.serving.snapshot import encode_image, pack_segment, unpack_segment
from worker.world import Increment


def views(*at_m: float) -> Cameras:
    poses = torch.eye(4, dtype=torch.float64).repeat(len(at_m), 1, 1)
    poses[:, 2, 3] = torch.tensor(at_m, dtype=torch.float64)
    intrinsics = torch.tensor([50.0, 50, 32, 16], dtype=torch.float64)
    return Cameras(intrinsics.expand(len(at_m), 4), poses, HEIGHT, WIDTH)


def header(increment: Increment, num_frames: int = 0) -> SegmentHeader:
    meta = FrameMeta(
        frame=0, branch=1, pose=[0.1] * 16, coverage=0.5, request_id="r", kind="generate",
        media_type="image/webp", created_s=1.5,
    )  # fmt: skip
    return SegmentHeader(
        session="s", index=0, parent="", kind="generate", weights="fake@0", branch=1,
        frame_indices=list(increment.frame_indices), created_s=time.time(),
        frames=[meta.model_copy(update={"frame": number}) for number in range(num_frames)],
        intrinsics={"fx": 50, "fy": 50, "cx": 32, "cy": 16, "width": WIDTH, "height": HEIGHT},
    )  # fmt: skip


class Seeing(NoopBackbone):
    sees_motion = True

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        return (depth[:, ::2, ::2] > 3).float()


def increments() -> list[Increment]:
    """Two observations, one with depth, and two chunks of one World."""
    engine = noop_engine(Seeing())
    world = engine.open(seed=3)
    image = torch.from_numpy(
        np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    )
    first = engine.observe(world, image, views(0.0))
    chunks = [engine.step([world], [views(0.1 / 3 * i, 0.2, 0.3)])[0] for i in (1, 2)]
    depth = torch.linspace(1, 4, HEIGHT * WIDTH).view(HEIGHT, WIDTH)
    return [first, *chunks, engine.observe(world, image, views(0.4), depth)]


def test_an_increment_comes_back_bit_for_bit() -> None:
    for increment in increments():
        given = header(increment, 2)
        found_header, found = unpack_segment(pack_segment(given, increment, [b"a", b"bc"]))
        assert found_header == given
        assert found.frame_indices == increment.frame_indices
        pairs = [
            (found.latents, increment.latents),
            (found.coverage, increment.coverage),
            (found.cameras.intrinsics, increment.cameras.intrinsics),
            (found.cameras.world_from_camera, increment.cameras.world_from_camera),
        ]
        pairs += [
            (getattr(found.delta, name), value) for name, value in vars(increment.delta).items()
        ]
        assert (found.guess is None) == (increment.guess is None)
        if found.guess is not None and increment.guess is not None:
            pairs += zip(vars(found.guess).values(), vars(increment.guess).values(), strict=True)
        assert (found.measured is None) == (increment.measured is None)
        if found.measured is not None and increment.measured is not None:
            pairs.append((found.measured, increment.measured))
        for one, other in pairs:
            assert one.dtype == other.dtype and torch.equal(one, other)


def test_a_measured_depth_beyond_half_precision_stays_finite() -> None:
    engine = noop_engine(Seeing())
    image = torch.zeros(HEIGHT, WIDTH, 3, dtype=torch.uint8)
    seen = engine.observe(engine.open(seed=3), image, views(0.0), torch.full((HEIGHT, WIDTH), 1e5))
    assert seen.measured is not None
    assert seen.measured.unique().tolist() == [65504.0]


def test_a_world_is_the_replay_of_its_segments() -> None:
    engine, parts = noop_engine(Seeing()), increments()
    assert parts[-1].measured is not None
    whole, restored = engine.open(seed=3), engine.open(seed=3)
    for part in parts:
        engine.replay(whole, part)
        engine.replay(restored, unpack_segment(pack_segment(header(part), part, []))[1])
    ahead = views(0.5, 0.6)
    one, other = engine.step([whole], [ahead])[0], engine.step([restored], [ahead])[0]
    assert torch.equal(one.latents, other.latents) and torch.equal(one.images, other.images)
    for name, tensor in whole.memory.state().items():
        assert torch.equal(tensor, restored.memory.state()[name]), name


@pytest.mark.parametrize("kept", [0, CLOSER])
def test_a_world_of_before_parts_of_cells_were_kept_goes_on(kept: int) -> None:
    """Or of when only the depths of their quarters were."""
    parts, engine = increments(), noop_engine(Seeing())
    world, restored = engine.open(seed=3), engine.open(seed=3)
    for part in parts:
        data = pack_segment(header(part), part, [])
        tensors = safetensors.torch.load(data)
        fine = tensors.pop("delta.relief")
        assert fine.any() or not len(part.delta.ids)
        if kept:
            quarters = fine.view(-1, FINER, FINER)[:, :: FINER // kept, :: FINER // kept]
            tensors["delta.relief"] = quarters.flatten(1).contiguous()
        told = {"header": header(part).model_dump_json()}
        engine.replay(restored, unpack_segment(safetensors.torch.save(tensors, told))[1])
        engine.replay(world, part)
    found, expected = restored.memory.state(), world.memory.state()
    relief, fine = found.pop("relief"), expected.pop("relief")
    assert relief.shape[1] == NUM_PARTS and relief.any() == (kept > 0)
    if kept:
        corner = (slice(None), slice(None, None, FINER // kept), slice(None, None, FINER // kept))
        square, known = relief.view(-1, FINER, FINER), fine.view(-1, FINER, FINER)[corner]
        assert torch.equal(square[corner], known) and torch.equal(square[:, 1::2, 1::2], known)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert torch.isfinite(engine.step([restored], [views(0.5)])[0].latents.float()).all()


def test_frames_are_read_without_torch() -> None:
    increment = increments()[1]
    images = [encode_image(image.numpy(), "webp", 80) for image in increment.images]
    found, frames = parse_segment(pack_segment(header(increment, 3), increment, images))
    assert frames == images and found.frame_indices == [1, 2, 3]


@pytest.mark.parametrize("images", [[], [b"a", b"bcd"]])
def test_a_segment_is_a_plain_safetensors_file(images: list[bytes]) -> None:
    """Read by the library, and the same as the library makes of what it read."""
    increment = increments()[0]
    given = header(increment, len(images))
    data = pack_segment(given, increment, images)
    tensors = safetensors.torch.load(data)
    assert tensors["delta.tokens"].dtype == torch.bfloat16
    assert tensors["frames"].numpy().tobytes() == b"".join(images)
    again = safetensors.torch.save(tensors, metadata={"header": given.model_dump_json()})
    assert parse_segment(again) == parse_segment(data)
    assert abs(len(again) - len(data)) < 64  # offsets of another order may have other digits


@pytest.mark.parametrize("cut", [10, 200, -1])
def test_a_truncated_segment_is_corrupt(cut: int) -> None:
    increment = increments()[0]
    data = pack_segment(header(increment, 1), increment, [b"image"])
    with pytest.raises(SegmentCorrupt):
        unpack_segment(data[:cut])


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_images_are_encoded_as_said_and_always_alike(form: str) -> None:
    ramp = np.tile(np.arange(WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, 1, 3))
    data = encode_image(ramp, form, 90)  # type: ignore[arg-type]
    assert data == encode_image(ramp.copy(), form, 90)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == form.upper() and picture.size == (WIDTH, HEIGHT)
        error = np.abs(np.asarray(picture).astype(int) - ramp)
    assert error.mean() < 4


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (33, 61), (192, 320)])
def test_jpeg_is_as_good_as_what_pillow_makes(size: tuple[int, int]) -> None:
    v, u = np.mgrid[: size[0], : size[1]] / 9
    waves = np.stack([np.sin(u), np.cos(v), np.sin(u + v)], axis=-1)
    noise = np.random.default_rng(1).normal(0, 0.1, (*size, 3))
    pixels = np.clip(128 + 80 * (waves + noise), 0, 255).astype(np.uint8)
    for quality in (1, 30, 85, 90):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "jpeg", quality=quality)
        data, plain = encode_image(pixels, "jpeg", quality), stream.getvalue()
        assert data[:600] == plain[:600]  # tables, sizes and sampling
        assert abs(len(data) - len(plain)) <= 0.02 * len(plain)
        ours, pillows = (_mean_error(one, pixels) for one in (data, plain))
        assert ours <= 1.01 * pillows


def _mean_error(data: bytes, pixels: np.ndarray) -> float:
    with Image.open(io.BytesIO(data)) as picture:
        return float(np.square(np.asarray(picture).astype(float) - pixels).mean())


def test_frames_that_are_json_already_are_those_of_the_header() -> None:
    increment = increments()[1]
    frames = [
        Frame(
            frame=number, branch=1, pose=[0.1] * 16, coverage=0.5, request_id='","frames":[]',
            kind="live", timings_ms={"read": 0.125}, media_type="image/jpeg", created_s=1.5,
            image=b"ab",
        )
        for number in increment.frame_indices
    ]  # fmt: skip
    without, images = header(increment), [frame.image for frame in frames]
    whole = without.model_copy(update={"frames": frames})
    metas = [frame.text for frame in frames]
    assert pack_segment(without, increment, images, metas) == pack_segment(whole, increment, images)
