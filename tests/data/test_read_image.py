"""Whatever lies in a folder of photographs is read right or refused by name."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsss_blocks.data import read_image, read_mask
from wsss_blocks.data.images import check_image, upright_rgb

RAMP = np.array([[0, 90, 255], [30, 60, 120]], np.uint8)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def rgb_of(path):
    """Pixels as ``(H, W, 3)`` whole numbers."""
    image = read_image(path)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    check_image(path)
    pixels = (image * 255).round()
    assert torch.equal(pixels / 255, image)
    return pixels.permute(1, 2, 0).int().numpy()


def encoded(array, kind, **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def png16(array):
    """Encode ``(H, W, C)`` 16-bit values by hand: PIL does not write them in colour."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width, channels = array.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# --- right pixels -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_colour_and_grey_without_loss(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    PIL.Image.fromarray(COLOUR).save(path, **options)
    assert np.array_equal(rgb_of(path), COLOUR)
    PIL.Image.fromarray(RAMP).save(path, **options)
    assert np.array_equal(rgb_of(path), RAMP[..., None].repeat(3, 2))


def test_transparency_is_dropped(tmp_path):
    path = tmp_path / "a.png"
    alpha = np.full_like(RAMP, 77)
    PIL.Image.fromarray(np.dstack([RAMP, alpha])).save(path)
    with PIL.Image.open(path) as file:
        assert file.mode == "LA"
    assert np.array_equal(rgb_of(path), RAMP[..., None].repeat(3, 2))
    PIL.Image.fromarray(np.dstack([COLOUR, alpha])).save(path)
    assert np.array_equal(rgb_of(path), COLOUR)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes(tmp_path, transparency):
    path = tmp_path / "a.png"
    indexed = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    indexed.putpalette([9, 8, 7, 1, 2, 3, 200, 0, 10])
    indexed.save(path, **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rgb_of(path).tolist() == [[[9, 8, 7], [1, 2, 3], [200, 0, 10]]]


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, :16, 0] = 255  # cyan beside black
    ink[:, 16:, 3] = 255
    PIL.Image.fromarray(ink, "CMYK").save(path, quality=100, subsampling=0)
    with PIL.Image.open(path) as file:
        assert file.mode == "CMYK"
        assert "adobe" in file.info  # ink is counted downwards in such a file, as Photoshop does
    found = rgb_of(path)
    assert np.abs(found[:, :15] - [0, 255, 255]).max() <= 8
    assert np.abs(found[:, 17:] - [0, 0, 0]).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_every_orientation_a_camera_notes(tmp_path, orientation, suffix):
    # What the file must hold so that it is COLOUR when turned as the EXIF standard says.
    upright = COLOUR.repeat(16, 0).repeat(16, 1)  # whole blocks, for JPEG
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],  # row 0 is the right side
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],  # row 0 is the left side
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    options = {} if suffix == ".png" else {"quality": 100, "subsampling": 0}
    PIL.Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    found = rgb_of(path)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (0 if suffix == ".png" else 4)


def test_an_opened_image_stays_as_it_was():
    image = PIL.Image.fromarray(COLOUR)
    image.getexif()[0x0112] = 6
    before = image.copy()
    assert np.array_equal(upright_rgb(image), COLOUR.transpose(1, 0, 2)[:, ::-1])
    assert image.size == before.size
    assert image.getexif()[0x0112] == 6
    assert np.array_equal(np.asarray(image), COLOUR)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (6, 9)])
def test_planes_lie_one_after_the_other_and_may_be_written_to(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "a.png")
    assert image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    image.zero_()


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0"])
def test_broken_exif_does_not_matter(tmp_path, exif):
    path = tmp_path / "a.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's
        path.write_bytes(encoded(COLOUR, "JPEG", exif=exif))
        assert rgb_of(path).shape == COLOUR.shape


def test_sixteen_bits(tmp_path):
    values = np.array([[0, 90, 255, 256], [30000, 65534, 65535, 1]], np.int64)
    expected = (values // 256)[..., None].repeat(3, 2)
    png = tmp_path / "a.png"
    png.write_bytes(png16(values[..., None]))
    assert np.array_equal(rgb_of(png), expected)
    tif = tmp_path / "a.tif"
    for dtype, modes in ((np.uint16, {"I;16"}), (">u2", {"I;16B"}), (np.int32, {"I"})):
        PIL.Image.fromarray(values.astype(dtype)).save(tif)
        with PIL.Image.open(tif) as file:
            assert file.mode in modes
        assert np.array_equal(rgb_of(tif), expected)
    for channels in (2, 3, 4):  # grey with alpha, colour, colour with alpha
        array = np.random.default_rng(channels).integers(0, 65536, (3, 5, channels))
        png.write_bytes(png16(array))
        shown = array[..., :3] if channels > 2 else array[..., :1].repeat(3, 2)
        assert np.array_equal(rgb_of(png), shown // 256)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (1, 400)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_tiny_and_thin(tmp_path, size, suffix):
    path = tmp_path / f"a{suffix}"
    PIL.Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(path)
    found = rgb_of(path)
    assert found.shape == (*size, 3)
    assert np.abs(found - 200).max() <= 2


def test_names_with_spaces_and_accents(tmp_path):
    path = tmp_path / "Ausflug März 東京" / "IMG 1 (2).JPG"
    path.parent.mkdir()
    PIL.Image.fromarray(COLOUR).save(path)
    assert rgb_of(path).shape == COLOUR.shape
    assert rgb_of(str(path)).shape == COLOUR.shape


# --- refused by name --------------------------------------------------------------------------


def refused(path, message="cannot be read as an image"):
    for read in (read_image, check_image):
        with pytest.raises(OSError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"a,b\n1,2\n", b"\x89PNG\r\n\x1a\n", b"<svg/>"]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_what_is_no_image(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        (".jpg", "JPEG", {}),
        (".jpg", "JPEG", {"progressive": True, "quality": 95}),
        (".png", "PNG", {}),
        (".webp", "WEBP", {}),
        (".bmp", "BMP", {}),
        (".tif", "TIFF", {}),
    ],
)
def test_truncation_is_found_wherever_the_file_ends(tmp_path, suffix, kind, options):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    raw = encoded(pixels, kind, **options)
    path = tmp_path / f"a{suffix}"
    # Check sums and trailer of a PNG come after the last pixel: without them the image is whole.
    last = len(raw) - (24 if kind == "PNG" else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about TIFF
        for length in [*range(0, last, 211), last]:
            path.write_bytes(raw[:length])
            refused(path)
    path.write_bytes(raw)
    assert rgb_of(path).shape == (48, 40, 3)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF"]), st.data())
def test_broken_bytes_are_an_oserror_or_nothing(tmp_path_factory, kind, data):
    raw = bytearray(encoded(COLOUR.repeat(8, 0), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / "a.img"
    path.write_bytes(bytes(raw))
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_image, check_image):
            try:
                read(path)
                outcomes.append("")
            except OSError as error:
                assert str(path) in str(error)  # noqa: PT017
                outcomes.append("refused")
    assert outcomes[0] == outcomes[1]


def test_decompression_bomb(tmp_path):
    path = tmp_path / "bomb.png"
    raw = bytearray(png16(np.zeros((1, 1, 1), np.int64)))
    raw[16:24] = struct.pack(">II", 20000, 20000)
    raw[29:33] = struct.pack(">I", zlib.crc32(bytes(raw[12:29])))
    path.write_bytes(bytes(raw))
    refused(path, "decompression bomb")
    with pytest.raises(OSError, match=r"bomb.png cannot be read as an image: .*400000000 pixels"):
        read_mask(path)


def test_floating_point_images_and_folders(tmp_path):
    path = tmp_path / "a.tif"
    PIL.Image.fromarray(np.array([[0.1, 0.9]], np.float32)).save(path)
    refused(path, "floating-point pixels have no fixed range")
    (tmp_path / "b.jpg").mkdir()
    refused(tmp_path / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image at .*c.jpg"):
        read_image(tmp_path / "c.jpg")
