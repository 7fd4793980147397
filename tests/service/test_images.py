"""Uploads: crop, intrinsics and depth stay together; and everything that is wrong with a file."""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from uploads_made import encoded, jpeg_of_scans, npy, png, png_with

from service.errors import InvalidUpload, problem_document
from service.store.bounds import LensBounds
from service.uploads.depth_maps import decode_depth
from service.uploads.images import Files, centre_crop, decode_image, observation_from
from service.uploads.masks import decode_mask
from service.uploads.pictures import UploadLimits

LIMITS = UploadLimits(max_bytes=20 << 20, max_pixels=50_000_000)
FRAME = (64, 32)


def plain(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (10, 200, 30))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind: str) -> None:
    observation = observation_from(Files(encoded(plain(128, 64), kind)), FRAME, LIMITS)
    assert observation.image.shape == (32, 64, 3)
    np.testing.assert_allclose(observation.image[10, 10], (10, 200, 30), atol=4)
    assert observation.depth_m is None


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    upload = decode_image(encoded(plain(64, 64).convert(mode), kind), LIMITS)
    assert (upload.image.mode, upload.image.size) == ("RGB", (64, 64))


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.full((40, 40), 0x8000, np.uint16))
    assert decode_image(encoded(grey, "PNG"), LIMITS).image.getpixel((0, 0)) == (128, 128, 128)


def test_the_crop_is_centred_and_intrinsics_follow() -> None:
    assert vars(centre_crop(100, 100, 64, 32)) == {"x": 0, "y": 25, "width": 100, "height": 50}
    assert vars(centre_crop(400, 100, 64, 32)) == {"x": 100, "y": 0, "width": 200, "height": 100}
    lens = (80.0, 90.0, 190.0, 55.0)
    observation = observation_from(
        Files(encoded(plain(400, 100), "PNG")), FRAME, LIMITS, intrinsics=lens
    )
    scale = 64 / 200
    assert observation.intrinsics == pytest.approx((80 * scale, 90 * scale, 90 * scale, 55 * scale))
    assert observation.lens_source == "intrinsics"


def test_a_point_of_the_upload_stays_under_its_ray() -> None:
    """A bright dot lands where the new intrinsics project its direction."""
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[58:62, 198:202] = 255
    observation = observation_from(
        Files(encoded(Image.fromarray(pixels), "PNG")),
        FRAME,
        LIMITS,
        intrinsics=(150, 150, 140, 90),
    )
    fx, fy, cx, cy = observation.intrinsics
    x, y = (200 - 140) / 150 * fx + cx, (60 - 90) / 150 * fy + cy
    weights = observation.image[..., 0].astype(float)
    rows, columns = np.mgrid[0:32, 0:64] + 0.5
    seen = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
    assert seen == pytest.approx((x, y), abs=0.15)


@pytest.mark.parametrize(
    ("options", "fov_deg", "source"),
    [({}, 60, "default"), ({"fov_deg": 90.0}, 90, "fov_deg")],
)
def test_field_of_view(options: dict[str, float], fov_deg: float, source: str) -> None:
    observation = observation_from(Files(encoded(plain(128, 64), "PNG")), FRAME, LIMITS, **options)
    fx, fy, cx, cy = observation.intrinsics
    assert math.degrees(2 * math.atan(32 / fx)) == pytest.approx(fov_deg)
    assert (fx, cx, cy) == pytest.approx((fy, 32, 16))
    assert observation.lens_source == source


def test_a_later_picture_of_unknown_lens_was_taken_by_the_worlds_camera() -> None:
    frame_lens = (70.0, 72.0, 30.0, 17.0)
    files = Files(encoded(plain(400, 100), "PNG"))
    seen = observation_from(files, FRAME, LIMITS, frame_lens=frame_lens)
    assert seen.intrinsics == pytest.approx(frame_lens)
    assert (seen.lens_source, seen.crop.width, seen.crop.height) == ("session", 200, 100)
    said = observation_from(files, FRAME, LIMITS, fov_deg=100, frame_lens=frame_lens)
    assert said.lens_source == "fov_deg" and said.crop.width < 200


def photo(width: int, height: int, orientation: int, focal_35mm: int | None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if focal_35mm is not None:
        exif.get_ifd(0x8769)[0xA405] = focal_35mm
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    return encoded(Image.fromarray(pixels), "JPEG", exif=exif.tobytes())


def test_exif_gives_orientation_and_focal_length() -> None:
    observation = observation_from(Files(photo(120, 80, 1, 36)), FRAME, LIMITS)
    assert observation.lens_source == "exif"
    assert observation.intrinsics[0] == pytest.approx(36 / 36 * 120 * 64 / 120)
    upright = decode_image(photo(120, 80, 6, 18), LIMITS)  # stored lying on its side
    assert (upright.width, upright.height) == (80, 120)
    grey = upright.image.convert("L")
    assert grey.getpixel((40, 5)) > 200 > 50 > grey.getpixel((40, 115))
    assert upright.exif_focal_px == pytest.approx(18 / 36 * 120)


def bomb() -> bytes:
    """A PNG whose header promises 400 megapixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + encoded(plain(64, 64), "PNG")[33:]


EXIF_64K = b"\xff\xe1\xff\xff" + b"Exif\0\0".ljust(0xFFFF - 2, b"\0")


def commented(segments: bytes) -> bytes:
    """A JPEG that begins with them."""
    data = encoded(plain(64, 64), "JPEG")
    return data[:2] + segments + data[2:]


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"", "0 bytes"),
        (b"hello, this is no picture", ": no PNG or JPEG or WEBP"),
        (encoded(plain(64, 64), "GIF"), ": no PNG or JPEG or WEBP"),
        (png()[:200], "truncated"),
        (encoded(plain(64, 64), "JPEG")[:-40], "truncated"),
        (bomb(), "more than 178,956,970 pixels"),
        (encoded(plain(8, 100), "PNG"), "8 x 100 pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 21_000_000, "21,000,008 bytes"),
        (jpeg_of_scans(101), "more than 100 scans"),
        (commented(b"\xff\xfe\0\2" * 1001), "more than 1,000 segments"),
        (commented(b"\xff\xd9" * 1001), "more than 1,000 segments"),
        (commented(EXIF_64K * 17), "more than 1,048,576 bytes of EXIF"),
        (png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20)), 1001), "1,000 segments"),
        (png_with(b"eXIf", b"II*\0" + bytes(1 << 20)), "more than 1,048,576 bytes of EXIF"),
        (encoded(plain(64, 64), "WEBP", exif=bytes(1 << 21)), "more than 1,048,576 bytes of EXIF"),
    ],
    ids=[
        "empty", "text", "gif", "half a png", "half a jpeg", "bomb", "tiny", "21 MB", "scans",
        "comments", "ends", "exif", "profiles", "exif in a png", "exif in a webp",
    ],
)  # fmt: skip
def test_a_bad_picture_is_refused_with_what_was_seen(data: bytes, seen: str) -> None:
    with pytest.raises(InvalidUpload) as caught:
        decode_image(data, LIMITS)
    assert caught.value.fields[0].field == "image"
    assert seen in caught.value.fields[0].seen


def test_a_large_picture_has_fewer_scans() -> None:
    """A decoder goes over all pixels for each: of the largest picture, 20 take it a second."""
    largest = UploadLimits(max_bytes=20 << 20, max_pixels=64 * 64)
    decode_image(jpeg_of_scans(20), largest)
    with pytest.raises(InvalidUpload) as caught:
        decode_image(jpeg_of_scans(21), largest)
    (problem,) = caught.value.fields
    assert problem.seen == "64 x 64 pixels in 21 scans"
    assert "at most 81,920 pixels times scans" in problem.allowed


def test_a_mask_and_a_depth_have_no_more_parts_either() -> None:
    bomb = png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20)), 1001)
    with pytest.raises(InvalidUpload, match="mask can't be used: a file of more than 1,000"):
        decode_mask(bomb, LIMITS, 64, 64)
    with pytest.raises(InvalidUpload, match=r"JFIF.*: no PNG or WEBP"):
        decode_mask(encoded(plain(64, 64), "JPEG"), LIMITS, 64, 64)
    with pytest.raises(InvalidUpload, match="depth can't be used: a file of more than 1,000"):
        decode_depth(bomb, LIMITS, 64, 64)


FRAMES = [Image.new("RGB", (32, 32), (i % 256, i // 256, 0)) for i in range(600)]
MANY_PARTS = {
    "scans": jpeg_of_scans(100),
    "a film appended": encoded(plain(64, 64), "JPEG") + b"\xff\xda\xff\xfe" * 2000,
    "pictures within": commented((b"\xff\xe1\x10\x02" + b"\xff\xda" * 0x800) * 900),
    "restarts": encoded(plain(640, 640), "JPEG", restart_marker_blocks=1),
    "pixels": png_with(b"IDAT", b"", 5000),
    "an animation": encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "what follows a png": png() + b"\0\0\0\0tEXt\0\0\0\0" * 2000,
}


@pytest.mark.parametrize("name", MANY_PARTS)
def test_what_only_seems_to_be_of_too_many_parts_is_read(name: str) -> None:
    decode_image(MANY_PARTS[name], LIMITS)


def test_a_strip_of_which_a_frame_shows_nothing_is_refused() -> None:
    strip = Files(encoded(plain(20_000, 32), "PNG"))
    with pytest.raises(InvalidUpload, match=r"20000 x 32 pixels, of which a frame shows 0\.\d+"):
        observation_from(strip, FRAME, LIMITS)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 32), {"fov_deg": 5}),
        ((64, 32), {"fov_deg": 170}),
        ((600, 34), {"fov_deg": 170}),
        ((400, 100), {"intrinsics": (80, 160, 0, 100)}),
        ((400, 100), {"intrinsics": (80, 40, 400, 0)}),
        ((32, 9000), {"intrinsics": (80, 40, 0, 9000)}),
    ],
)
def test_what_becomes_of_an_upload_may_be_imported(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    files = Files(encoded(plain(*size), "PNG"))
    fx, fy, cx, cy = observation_from(files, FRAME, LIMITS, **options).intrinsics
    LensBounds(fx=fx, fy=fy, cx=cx, cy=cy, width=FRAME[0], height=FRAME[1])


@pytest.mark.parametrize(
    "lens",
    [(math.inf, 80, 64, 32), (80, 80, math.nan, 32), (1e-300, 1e-300, 64, 32), (8, 80, 1, 1)],
)
@pytest.mark.parametrize("frame_lens", [None, (60.0, 60.0, 32.0, 16.0)])
def test_intrinsics_that_do_not_fit_are_refused_first(
    lens: tuple[float, float, float, float], frame_lens: tuple[float, float, float, float] | None
) -> None:
    files = Files(encoded(plain(128, 64), "PNG"))
    with pytest.raises(InvalidUpload, match="intrinsics don't fit") as caught:
        observation_from(files, FRAME, LIMITS, intrinsics=lens, frame_lens=frame_lens)
    assert len(caught.value.fields[0].seen) < 100


def test_pixels_are_counted_before_decoding() -> None:
    with pytest.raises(InvalidUpload, match="64 x 64 pixels"):
        decode_image(encoded(plain(64, 64), "PNG"), UploadLimits(10_000, 4000))


def ramp(width: int, height: int) -> np.ndarray:
    """Depth that names its place: row + column / 1000."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (1 + rows + columns / 1000).astype(np.float32)


def test_depth_is_sampled_at_the_frames_centres() -> None:
    observation = observation_from(
        Files(encoded(plain(128, 128), "PNG"), npy(ramp(128, 128))), FRAME, LIMITS
    )
    assert observation.depth_m is not None
    # the crop is 128 x 64 at y = 32; every second pixel, at its centre's right neighbour
    assert observation.depth_m.dtype == np.float32
    np.testing.assert_array_equal(observation.depth_m, ramp(128, 128)[33:97:2, 1::2])


def test_depth_at_half_the_images_size() -> None:
    depth = decode_depth(npy(ramp(64, 32)), LIMITS, 128, 64)
    assert depth.depth_m.shape == (32, 64)
    small = observation_from(
        Files(encoded(plain(128, 64), "PNG"), npy(ramp(64, 32))), FRAME, LIMITS
    )
    np.testing.assert_array_equal(small.depth_m, ramp(64, 32))


@pytest.mark.parametrize(
    ("image", "depth"),
    [((1241, 376), (620, 188)), ((1241, 376), (621, 188)), ((1280, 853), (321, 214))],
)
def test_a_lower_resolution_is_the_images_aspect_up_to_rounding(
    image: tuple[int, int], depth: tuple[int, int]
) -> None:
    files = Files(encoded(plain(*image), "PNG"), npy(ramp(*depth)))
    found = observation_from(files, FRAME, LIMITS)
    assert found.depth_m is not None
    centre = np.float32(found.depth_m[15:17, 31:33]).mean()
    assert centre == pytest.approx(1 + depth[1] / 2, abs=3)


@pytest.mark.parametrize(
    ("image", "depth", "allowed"),
    [
        ((640, 480), (5, 5), "640 x 480"),
        ((640, 480), (40, 31), "640 x 480"),
        ((640, 480), (480, 640), "640 x 480"),
        ((640, 640), (5, 5), "8 x 8 pixels: one for each 8 x 8 of the frame, 64 x 32"),
        ((640, 480), (7, 5), "8 x 6 pixels"),
    ],
)
def test_maps_of_another_aspect_or_too_few_pixels_are_refused_with_both_sizes(
    image: tuple[int, int], depth: tuple[int, int], allowed: str
) -> None:
    picture = encoded(plain(*image), "PNG")
    maps = {
        "depth": Files(picture, depth=npy(np.full(depth[::-1], 2, np.float32))),
        "mask": Files(picture, mask=encoded(plain(*depth), "PNG")),
    }
    for field, files in maps.items():
        with pytest.raises(InvalidUpload) as caught:
            observation_from(files, FRAME, LIMITS)
        (problem,) = caught.value.fields
        assert problem.field == field and allowed in problem.allowed
        assert f"{depth[0]} x {depth[1]} pixels" in problem.seen
        told = problem_document(caught.value)["detail"]
        assert f"{image[0]} x {image[1]}" in told


def test_depth_of_one_pixel_for_each_patch_of_the_frame_is_enough() -> None:
    files = Files(encoded(plain(640, 480), "PNG"), npy(ramp(8, 6)))
    found = observation_from(files, FRAME, LIMITS)
    assert found.depth_m is not None
    np.testing.assert_array_equal(found.depth_m[4::8, 4::8], ramp(8, 6)[1:5])


def test_edges_are_not_averaged() -> None:
    depth = np.where(np.arange(200) < 101, 1.0, 9.0) * np.ones((100, 1))
    observation = observation_from(
        Files(encoded(plain(200, 100), "PNG"), npy(depth.astype(np.float32))), FRAME, LIMITS
    )
    assert set(np.unique(observation.depth_m)) == {1.0, 9.0}


def test_png_millimetres_and_unknown_depths() -> None:
    millimetres = np.full((64, 96), 2500, np.uint16)
    millimetres[:10] = 0
    depth = decode_depth(encoded(Image.fromarray(millimetres), "PNG"), LIMITS, 96, 64).depth_m
    assert depth[20, 5] == pytest.approx(2.5)
    assert not depth[:10].any()
    metres = np.full((64, 96), 2.5, np.float32)
    metres[0], metres[1], metres[2] = np.nan, np.inf, -1
    assert not decode_depth(npy(metres), LIMITS, 96, 64).depth_m[:3].any()


@pytest.mark.parametrize("kind", ["<f2", "<f8", ">f4"])
def test_other_floats_and_orders(kind: str) -> None:
    values = np.asfortranarray(ramp(96, 64).astype(kind))
    depth = decode_depth(npy(values), LIMITS, 96, 64).depth_m
    np.testing.assert_allclose(depth, ramp(96, 64), rtol=1e-3)


def lying_npy() -> bytes:
    """A header that promises a terabyte."""
    return npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), }        ", b"(99999, 99999), }")


@pytest.mark.parametrize(
    ("data", "seen", "allowed"),
    [
        (b"whatever", "starting b'whatever'", "float32 NPY"),
        (npy(np.full((64, 94), 2.0, np.float32)), "94 x 64", "96 x 64"),
        (npy(np.full((64, 96), 2500.0, np.float32)), "2500 m", "probably millimetres"),
        (npy(np.full((64, 96), 0.002, np.float32)), "0.002 m", "metres"),
        (npy(np.zeros((64, 96), np.float32)), "0 of 6144", "at least 1%"),
        (npy(np.ones((64, 96), np.int32)), "<i4", "float32"),
        (npy(np.ones((64, 96, 1), np.float32)), "(64, 96, 1)", "two-dimensional"),
        (npy(np.ones((64, 96), np.float32))[:-9], "bytes of data", "24576 bytes"),
        (lying_npy(), "24 bytes of data", "39999200004 bytes"),
        (npy(np.array([{"a": 1}], dtype=object)), "|O", "float32"),
        (encoded(Image.new("RGB", (96, 64)), "PNG"), "mode RGB", "16-bit"),
        (encoded(Image.new("L", (96, 64)), "PNG"), "mode L", "16-bit"),
        (encoded(Image.new("I;16", (96, 64), 900), "PNG")[:70], "truncated", "PNG"),
    ],
)
def test_bad_depth_is_refused_with_what_was_seen(data: bytes, seen: str, allowed: str) -> None:
    with pytest.raises(InvalidUpload) as caught:
        decode_depth(data, LIMITS, 96, 64)
    field = caught.value.fields[0]
    assert field.field == "depth"
    assert seen in field.seen
    assert allowed in field.allowed


SEEDS = [
    png(40, 40),
    encoded(plain(40, 40), "JPEG"),
    encoded(plain(40, 40), "WEBP"),
    photo(60, 40, 6, 28),
    npy(np.ones((40, 40), np.float32)),
    encoded(Image.new("I;16", (40, 40), 900), "PNG"),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged metadata; that is no answer
@given(st.data())
def test_damaged_files_are_read_or_refused_never_worse(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(damaged) // 2, len(damaged)))
    for decode in (
        lambda file: decode_image(file, LIMITS),
        lambda file: decode_depth(file, LIMITS, 40, 40),
    ):
        try:
            decode(bytes(damaged[:cut]))
        except InvalidUpload as error:
            assert error.fields
