"""Files of every kind, decoded to what a person sees, or refused with a reason."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from picture_files import encoded, photograph
from PIL import Image

from convatlas.data.decoding import BadImageError, decode, encode
from convatlas.data.squares import centre_square, fit, read_crop, size_in_shards, window_in

PIXELS = photograph(0)
PLANES = PIXELS.transpose(2, 0, 1)


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        (encoded(PIXELS), ()),
        (encoded(PIXELS, "BMP"), ()),
        (encoded(PIXELS, "TIFF"), ()),
        (encoded(PIXELS, "WEBP", lossless=True), ()),
        (encoded(Image.fromarray(PIXELS).convert("RGBA")), ("mode RGBA",)),
        (encoded(Image.fromarray(PIXELS).quantize(256, dither=Image.Dither.NONE)), ("mode P",)),
        (encoded(Image.fromarray(PIXELS).convert("CMYK"), "TIFF"), ("mode CMYK",)),
        (encoded(np.rot90(PIXELS), "TIFF", exif=exif(6)), ("turned as its EXIF data say",)),
        (encoded(np.rot90(PIXELS), "PNG", exif=exif(6)), ("turned as its EXIF data say",)),
    ],
    ids=["png", "bmp", "tiff", "webp", "rgba", "palette", "cmyk", "exif tiff", "exif png"],
)
def test_colours_come_out_as_they_are_seen(data: bytes, changed: tuple[str, ...]) -> None:
    found = decode(data, 3)
    tolerance = 40 if changed == ("mode P",) else 0  # 256 colours are not all
    assert np.abs(found.pixels.astype(int) - PLANES).max() <= tolerance
    assert found.changed == changed


def test_sixteen_bits_become_eight_by_the_same_factor_for_all() -> None:
    deep = np.array([[0, 257, 65535], [128, 129, 32896]], dtype=np.uint16)
    found = decode(encoded(Image.fromarray(deep)), 1)
    assert found.pixels.tolist() == [[[0, 1, 255], [0, 1, 128]]]
    assert found.changed == ("16 bits a channel",)
    assert not found.plain
    pgm = b"P5 3 2 65535\n" + deep.astype(">u2").tobytes()
    assert (decode(pgm, 1).pixels == found.pixels).all()


def test_sixteen_bits_of_colour_are_noticed() -> None:
    rows = b"".join(b"\0" + np.array([[65535, 0, 257]] * 2, dtype=">u2").tobytes() for _ in range(2))
    found = decode(png(2, 2, depth=16, colour=2, rows=rows), 3)
    assert found.changed == ("16 bits a channel",)
    assert not found.plain
    assert found.pixels[:, 0, 0].tolist() == [255, 0, 1]


def test_grey_and_colour_are_turned_into_each_other() -> None:
    gray = encoded(photograph(1, channels=1))
    assert (decode(gray, 3).pixels == decode(gray, 1).pixels).all()
    assert decode(gray, 3).plain
    seen = decode(encoded(PIXELS), 1)
    assert np.abs(seen.pixels[0] - PIXELS @ [0.299, 0.587, 0.114]).max() <= 1
    assert not seen.plain


def png(width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    """Write a PNG by hand, also one that claims more than it holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SEQUENCE = encoded(
    Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.fromarray(photograph(s)) for s in (1, 2)]
)
GOOD_JPEG, GOOD_PNG = encoded(PIXELS, "JPEG"), encoded(PIXELS)

REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"these are no pixels", "not an image of a known format"),
    "head alone": (GOOD_PNG[:20], "cannot be decoded|not an image"),
    "truncated jpeg": (GOOD_JPEG[:-30], "cannot be decoded: image file is truncated"),
    "truncated png": (GOOD_PNG[:-300], "cannot be decoded"),
    "png with a wrong checksum": (GOOD_PNG[:45] + bytes([GOOD_PNG[45] ^ 1]) + GOOD_PNG[46:], "cannot be decoded"),
    "sequence": (SEQUENCE, "a sequence of 3 images"),
    "32 bits": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.int32)), "TIFF"), "32 bits a pixel"),
    "floats": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"), "32 bits a pixel"),
    "huge": (png(12000, 12000), "more than 100,000,000"),
    "beyond all bounds": (png(60000, 60000), "more than 100,000,000 pixels"),
    "no pixels": (png(0, 5), "cannot be decoded|not an image"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(data, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("gray", [False, True])
def test_both_decoders_give_the_same_pixels_of_plain_files(form: str, gray: bool) -> None:
    data = encoded(photograph(3, 40, 56, 1 if gray else 3), form)
    found = decode(data, 3)
    assert found.plain
    top, left, height, width = 5, 8, 32, 32
    part = read_crop(data, 3, (top, left, height, width), 32)
    np.testing.assert_array_equal(part.numpy(), found.pixels[:, top : top + height, left : left + width])


def test_fitting_cuts_the_centre_or_stretches() -> None:
    pixels = np.zeros((3, 10, 20), dtype=np.uint8)
    pixels[:, :, 5:15] = 200
    assert (fit(pixels, 5, "centre") == 200).all()
    stretched = fit(pixels, 20, "stretch")
    assert stretched.shape == (3, 20, 20)
    assert stretched[0, 10, 0] == 0
    assert stretched[0, 10, 10] == 200


def test_a_crop_is_smoothed_where_it_shrinks() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    data = encoded(checks.astype(np.uint8))
    small = read_crop(data, 1, (0, 0, 64, 64), 8).numpy()
    assert np.abs(small[:, 1:-1, 1:-1].astype(int) - 127).max() <= 3


def test_sizes_in_shards_shrink_and_never_grow() -> None:
    assert size_in_shards(375, 500, 256) == (256, 341)
    assert size_in_shards(500, 375, 256) == (341, 256)
    assert size_in_shards(200, 500, 256) == (200, 500)
    assert size_in_shards(200, 500, None) == (200, 500)


def test_the_centre_square_lies_in_the_middle() -> None:
    assert centre_square(10, 21) == (0, 5, 10, 10)
    assert centre_square(21, 10) == (5, 0, 10, 10)


@pytest.mark.parametrize("size", [(100, 100), (100, 300), (300, 100), (1, 7)])
def test_windows_keep_their_area_shape_and_place_in_images_that_are_no_squares(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        wide, high = rng.uniform(0.3, 0.8, 2)
        left, top = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
        at_top, at_left, height, width = window_in((left, top, wide, high), *size)
        assert 0 <= at_top <= size[0] - height
        assert 0 <= at_left <= size[1] - width
        if min(size) == 100 == max(size):
            drawn = [100 * share for share in (top, left, high, wide)]
            np.testing.assert_allclose([at_top, at_left, height, width], drawn, atol=1)
        scale = (size[0] * size[1]) ** 0.5
        if high * scale < size[0] and wide * scale < size[1] and min(size) > 1:
            assert height * width / (size[0] * size[1]) == pytest.approx(wide * high, rel=0.05)


def test_encoding_without_loss_comes_back() -> None:
    assert (decode(encode(PLANES, lossy=False), 3).pixels == PLANES).all()
    assert np.abs(decode(encode(PLANES, lossy=True), 3).pixels.astype(int) - PLANES).mean() < 3
