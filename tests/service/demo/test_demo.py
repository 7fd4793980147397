"""The demo's arithmetic, pictures and sources; the walk itself against a service of this file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from fake_worker import FakeWorker, working
from PIL import Image

from service.app import create_app
from service.client import ServiceError
from service.demo.figures import (
    SCALE,
    STRIP_HEIGHT,
    Walk,
    contact_sheet,
    fitted,
    mean_psnr,
    psnr,
    revisit_psnr,
    revisits,
    sharpness,
    stage_ms,
    truth_psnr,
    video_frames,
)
from service.demo.source import SAMPLES, from_image, from_sample, out_and_back
from service.demo.walks import DemoOptions, format_report, walk_and_write
from service.errors import InvalidRequest
from service.local.embedded import EmbeddedValkey
from service.poses import flat
from service.settings import load_settings
from service.video import decode_frame

WIDTH, HEIGHT = 48, 32


def noise(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    assert psnr(grey, grey + 1) == pytest.approx(10 * np.log10(255**2), abs=1e-6)
    assert psnr(grey, grey) == 99.0
    assert psnr(grey, np.full_like(grey, 90)) == psnr(np.full_like(grey, 90), grey)
    assert mean_psnr(grey[None][:0], grey[None][:0]) is None


def test_a_path_out_and_back_visits_each_place_but_the_last_twice() -> None:
    poses = out_and_back(5)
    assert poses.shape == (11, 4, 4)
    np.testing.assert_array_equal(poses[0], np.eye(4))
    assert revisits(poses) == [(4, 6), (3, 7), (2, 8), (1, 9), (0, 10)]
    assert np.linalg.norm(poses[5, :3, 3]) > 0.5


def test_standing_still_is_no_return() -> None:
    assert revisits(np.stack([np.eye(4)] * 2)) == []


def test_revisit_and_truth_figures() -> None:
    there = noise(3)
    walk = Walk("with memory", np.concatenate([there, there[-2::-1]]))
    pairs = [(1, 3), (0, 4)]
    assert revisit_psnr(walk, pairs) == 99.0
    changed = Walk("without", np.concatenate([there, noise(2, seed=1)]))
    assert (revisit_psnr(changed, pairs) or 99.0) < 15
    # frame 0 was given: a difference there does not count
    truth = Walk("truth", walk.images.copy(), recorded=True)
    truth.images[0] = 0
    assert truth_psnr(walk, truth) == 99.0


def test_sharpness_tells_detail_from_mush() -> None:
    images = noise(3)
    assert sharpness(images, images) == pytest.approx(1.0)
    assert sharpness(np.full_like(images, 90), images) == 0.0
    assert sharpness(images // 2, images) == pytest.approx(0.25, abs=0.01)


def test_stage_times_are_shared_by_the_frames_of_a_chunk() -> None:
    first, second = {"read": 1.0, "decode": 4.0}, {"read": 3.0}
    walk = Walk("x", noise(4), [{"encode": 9.0}, first, first, dict(first), second])
    assert stage_ms(walk) == {"read": 1.0, "decode": 1.0}
    assert stage_ms(Walk("x", noise(1), [{"encode": 9.0}])) == {}


def test_the_sheet_has_two_rows_per_walk_and_one_for_a_recording() -> None:
    walks = [Walk("a", noise(5)), Walk("b", noise(5)), Walk("t", noise(5), recorded=True)]
    sheet = contact_sheet(walks, [(1, 3), (0, 4)])
    assert sheet.height == 5 * (HEIGHT * SCALE + STRIP_HEIGHT)
    assert sheet.width // (WIDTH * SCALE) == 2


def test_video_frames_have_even_sides_and_stand_side_by_side() -> None:
    frames = list(video_frames([Walk("a", noise(2)), Walk("b", noise(2))]))
    assert len(frames) == 2
    height, width = frames[0].shape[:2]
    assert height % 2 == 0 and width % 2 == 0 and width > 2 * WIDTH * SCALE


def test_a_walk_is_fitted_to_the_size_of_the_others() -> None:
    walk = Walk("truth", noise(2), recorded=True)
    assert fitted(walk, HEIGHT, WIDTH) is walk
    assert fitted(walk, 16, 24).images.shape == (2, 16, 24, 3)


def write_sample(folder: Path, name: str, count: int, truth: bool = True) -> None:
    start = np.eye(4)
    start[:3, 3] = (4.0, 0.0, 2.0)
    poses = start @ out_and_back(count)
    card = {"title": name.title(), "fov_deg": 60, "path": [flat(pose) for pose in poses]}
    (folder / f"{name}.json").write_text(json.dumps(card))
    if truth:
        frames = [Image.fromarray(image) for image in noise(len(poses))]
        save = {"save_all": True, "append_images": frames[1:], "lossless": True}
        frames[0].save(folder / f"{name}.truth.webp", **save)


def test_a_sample_brings_its_path_and_truth(tmp_path: Path) -> None:
    write_sample(tmp_path, "attic", 3, truth=False)
    write_sample(tmp_path, "hall", 3)
    source = from_sample("hall", tmp_path)
    assert (source.title, source.form) == ("Hall", {"sample": "hall"})
    np.testing.assert_allclose(source.poses, out_and_back(3), atol=1e-9)
    assert source.truth is not None
    np.testing.assert_array_equal(source.truth.images, noise(7))
    assert from_sample("attic", tmp_path).truth is None


@pytest.mark.parametrize("name", sorted(path.stem for path in SAMPLES.glob("*.json")))
def test_shipped_samples_come_back_and_know_the_truth(name: str) -> None:
    source = from_sample(name)
    assert revisits(source.poses)[-1] == (0, len(source.poses) - 1)
    assert source.truth is not None and len(source.truth.images) == len(source.poses)
    given = decode_frame((SAMPLES / f"{name}.png").read_bytes())
    assert psnr(source.truth.images[0], given) > 30


def test_sources_that_can_not_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="one of none"):
        from_sample(folder=tmp_path)
    write_sample(tmp_path, "hall", 3)
    with pytest.raises(InvalidRequest, match="one of hall"):
        from_sample("hell", tmp_path)
    card = json.loads((tmp_path / "hall.json").read_text())
    (tmp_path / "hall.json").write_text(json.dumps({**card, "path": card["path"][:4]}))
    with pytest.raises(InvalidRequest, match="never returns"):
        from_sample("hall", tmp_path)
    (tmp_path / "hall.json").write_text(json.dumps({**card, "path": card["path"] * 2}))
    with pytest.raises(InvalidRequest, match="7 frames; give 14"):
        from_sample("hall", tmp_path)
    with pytest.raises(InvalidRequest, match=r"missing\.png"):
        from_image(tmp_path / "missing.png")


def test_an_own_image_is_uploaded_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(noise(1)[0]).save(path)
    source = from_image(path, fov_deg=70)
    assert source.form == {"fov_deg": "70"}
    np.testing.assert_array_equal(decode_frame(source.files["image"][1]), noise(1)[0])


def test_the_table_names_both_walks_and_every_stage() -> None:
    walk = {
        "revisit_psnr_db": 31.5,
        "truth_psnr_db": None,
        "sharpness": 0.75,
        "s_per_frame": 0.25,
        "stage_ms_per_frame": {"read": 3.0, "denoise": 120.0},
        "memory": {"num_points": 1234, "num_bytes": 56789},
    }
    walks = {"latent": walk, "null": {**walk, "revisit_psnr_db": None}}
    table = format_report({"walks": walks})
    for text in (
        "with memory",
        "without memory",
        "31.50 dB",
        "0.120 s",
        "0.250 s",
        "0.75",
        "56,789 bytes",
    ):
        assert text in table
    assert "truth" not in table


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The real gateway in this process, a real Valkey and a worker without a model."""
    async with EmbeddedValkey(tmp_path / "valkey") as url:
        settings = load_settings({}, redis_url=url, data_dir=tmp_path / "data")
        app = create_app(settings)
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), working(FakeWorker(settings)):
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                yield client


async def test_two_walks_over_http_become_three_files(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    path, output = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(noise(1)[0]).save(path)
    report = await walk_and_write(client, DemoOptions(from_image(path), output))
    assert report["num_frames"] == 33 and report["num_revisits"] == 16
    assert json.loads((output / "report.json").read_text()) == report
    # the fake worker's pictures differ by the frame's number alone: known, and the same for both
    latent, null = report["walks"]["latent"], report["walks"]["null"]
    assert latent["revisit_psnr_db"] == null["revisit_psnr_db"] < 40
    assert latent["memory"] == {"num_points": 3300, "num_bytes": 165000}
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.height == 4 * (192 * SCALE + STRIP_HEIGHT)
    with av.open(str(output / "walk.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 33
    assert (await client.get("/v1/sessions")).json()["sessions"] == []


async def test_a_refusal_is_shown_with_the_services_words(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_text("no picture")
    with pytest.raises(ServiceError, match="image"):
        await walk_and_write(client, DemoOptions(from_image(path), tmp_path))


async def test_a_walk_that_fails_ends_the_demo(client: httpx.AsyncClient, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(noise(1)[0]).save(path)
    far = replace(from_image(path), poses=out_and_back(2))
    far.poses[1:, 0, 3] += 6000.0
    with pytest.raises(ServiceError, match="too far away"):
        await walk_and_write(client, DemoOptions(far, tmp_path))
