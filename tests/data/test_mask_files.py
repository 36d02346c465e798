"""Masks read in numpy alone, against pillow and against files written byte by byte."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsss_blocks.data import _mask_files
from wsss_blocks.data._mask_files import look_up_ids, read_mask_ids


def ids(height=23, width=31, *, top=21, seed=0):
    coarse = np.random.default_rng(seed).integers(0, top, (height // 4 + 1, width // 4 + 1))
    found = np.kron(coarse, np.ones((4, 4), int))[:height, :width].astype(np.uint8)
    found[height // 2] = np.arange(width) % top
    return found


def indexed(mask):
    image = Image.fromarray(mask)
    image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    return image


def by_pillow(path):
    with Image.open(path) as image:
        found = np.array(image)
    return found.astype(np.uint8) if found.dtype == bool else found


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def filtered(rows, kinds):
    """Filter rows of bytes as the PNG specification has it (one byte a pixel)."""
    out, above = b"", [0] * rows.shape[1]
    for row, kind in zip(rows.tolist(), kinds, strict=True):
        line = []
        for x, value in enumerate(row):
            a, b, c = (row[x - 1] if x else 0), above[x], (above[x - 1] if x else 0)
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        out += bytes([kind, *line])
        above = row
    return out


def png(mask, *, kinds=None, parts=1, colour=3, extra=b"", end=True, data=None):
    height, width = mask.shape
    stream = zlib.compress(filtered(mask, kinds or [0] * height)) if data is None else data
    cut = [len(stream) * i // parts for i in range(parts + 1)]
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    )
    if colour == 3:
        content += chunk(b"PLTE", bytes(range(256)) * 3)
    content += extra
    for start, stop in itertools.pairwise(cut):
        content += chunk(b"IDAT", stream[start:stop])
    return content + (chunk(b"IEND", b"") if end else b"")


@pytest.fixture
def no_pillow(monkeypatch):
    """Files that need no pillow: the test would not notice if the fast way were never taken."""

    def refuse(*args, **kwargs):
        raise AssertionError("pillow was asked")

    monkeypatch.setattr("PIL.Image.open", refuse)


MODES = {
    "indexed": lambda m, p: indexed(m).save(p),
    "indexed, optimised": lambda m, p: indexed(m).save(p, optimize=True),
    "grey": lambda m, p: Image.fromarray(m).save(p),
    "grey, optimised": lambda m, p: Image.fromarray(m).save(p, optimize=True),
    "one bit": lambda m, p: Image.fromarray(m % 2 == 1).save(p),
    "16 bits": lambda m, p: Image.fromarray(m.astype(np.uint16) * 300).save(p),
    "1 bit a pixel": lambda m, p: indexed(m % 2).save(p, bits=1),
    "2 bits a pixel": lambda m, p: indexed(m % 4).save(p, bits=2),
    "4 bits a pixel": lambda m, p: indexed(m % 16).save(p, bits=4),
    "8 bits a pixel": lambda m, p: indexed(m).save(p, bits=8),
    "transparent": lambda m, p: indexed(m).save(p, transparency=0),
    "transparent grey": lambda m, p: Image.fromarray(m).save(p, transparency=3),
    "uncompressed": lambda m, p: indexed(m).save(p, compress_level=0),
    "text and size": lambda m, p: indexed(m).save(p, dpi=(72, 72)),
    "JPEG": lambda m, p: Image.fromarray(m).save(p, format="JPEG"),
    "TIFF of 32 bits": lambda m, p: Image.fromarray(m.astype(np.int32)).save(p, format="TIFF"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(23, 31), (1, 1), (1, 17), (17, 1)])
def test_equals_pillow(mode, size, tmp_path):
    path = tmp_path / "Maske ü 1.png"
    MODES[mode](ids(*size), path)
    found, expected = read_mask_ids(path), by_pillow(path)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == size
    assert found.dtype == expected.dtype
    if mode not in ("16 bits", "JPEG") and "bit" not in mode:
        np.testing.assert_array_equal(found, ids(*size))


def test_usual_masks_need_no_pillow(tmp_path, no_pillow):
    mask = ids()
    for name, content in {
        "plain": png(mask),
        "grey": png(mask, colour=0),
        "in parts": png(mask, parts=5),
        "an empty part": png(mask, extra=chunk(b"IDAT", b"")),
        "transparent": png(mask, extra=chunk(b"tRNS", b"\0\1\2")),
        "text": png(mask, extra=chunk(b"tEXt", b"a\0b")),
    }.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        found = read_mask_ids(path)
        np.testing.assert_array_equal(found, mask, err_msg=name)
        assert found.flags.c_contiguous
        assert found.flags.owndata or found.base.dtype == np.uint8


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_filtered_rows(kind, tmp_path):
    mask, path = ids(), tmp_path / "a.png"
    for kinds in (
        [kind] * 23,
        [0] * 22 + [kind],
        [kind] + [0] * 22,
        [0, 1, 2, 3, 4] * 4 + [kind] * 3,
    ):
        path.write_bytes(png(mask, kinds=kinds, parts=2))
        np.testing.assert_array_equal(read_mask_ids(path), mask)


def test_interlaced(tmp_path):
    # Adam7 of a single pixel is one pass of one row; of 8 x 8, seven passes.
    mask = ids(8, 8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1)]  # fmt: skip
    stream = b"".join(
        b"\0" + row.tobytes() for y, x, dy, dx in passes for row in mask[y::dy, x::dx]
    )
    content = bytearray(png(mask, data=zlib.compress(stream)))
    content[28] = 1
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_mask_ids(path), mask)
    np.testing.assert_array_equal(by_pillow(path), mask)


@pytest.mark.parametrize("kinds", [[0] * 60, [0, 1, 2, 3, 4] * 12])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_truncated_file_never_gives_wrong_pixels(kinds, parts, tmp_path):
    mask = np.random.default_rng(0).integers(0, 21, (60, 50), dtype=np.uint8)
    content, path = png(mask, kinds=kinds, parts=parts), tmp_path / "Bild ß.png"
    # The end of the last block, Adler's sum, a checksum and the IEND chunk are behind all pixels.
    needed, refused = len(content) - 22, []
    for length in (*range(0, len(content), 37), needed - 1):
        path.write_bytes(content[:length])
        try:
            found = read_mask_ids(path)
        except OSError as error:
            refused.append(str(error))
        else:
            assert length >= needed, f"{length} of {len(content)} bytes were accepted"
            np.testing.assert_array_equal(found, mask)
    assert len(refused) >= needed // 37
    assert all("Bild ß.png cannot be read as an image" in message for message in refused)


def test_flipped_bits_are_no_worse_than_pillow(tmp_path):
    mask = ids(20, 24)
    content, path = png(mask), tmp_path / "a.png"
    wrong = []
    for position in range(len(content)):
        bit = position % 8
        spoilt = bytearray(content)
        spoilt[position] ^= 1 << bit
        path.write_bytes(spoilt)
        try:
            found = read_mask_ids(path)
        except (OSError, ValueError):
            continue
        if np.array_equal(found, mask):
            continue
        assert np.array_equal(found, by_pillow(path))
        wrong.append(position)
    # What pillow itself takes: the end of a stream that has lost its checksum.
    assert len(wrong) < 0.02 * len(content)


@pytest.mark.parametrize("header", [(2**31 - 1, 2**31 - 1), (2**30, 9), (9, 2**30), (0, 5), (5, 0)])
def test_an_absurd_size_is_an_error_and_not_all_memory(header, tmp_path):
    content = bytearray(png(ids()))
    content[16:24] = struct.pack(">II", *header)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png cannot be read as an image"):
        read_mask_ids(path)


def test_wrong_streams(tmp_path):
    mask, path = ids(6, 5), tmp_path / "a.png"
    rows = filtered(mask, [0] * 6)
    broken = bytearray(zlib.compress(rows))
    broken[len(broken) // 2] ^= 255
    for content in (
        png(mask, data=bytes(broken)),
        png(mask, data=b""),
        png(mask)[:33],
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"not an image",
    ):
        path.write_bytes(content)
        with pytest.raises(OSError, match="cannot be read as an image"):
            read_mask_ids(path)
    path.write_bytes(png(mask, data=zlib.compress(rows + b"\0more")))
    np.testing.assert_array_equal(read_mask_ids(path), mask)
    path.write_bytes(png(mask, end=False) + b"rubbish")
    np.testing.assert_array_equal(read_mask_ids(path), mask)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        read_mask_ids(tmp_path / "gone.png")
    with pytest.raises(OSError, match="cannot be read as an image"):
        read_mask_ids(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_colour_pictures_are_refused(mode, tmp_path):
    path = tmp_path / "a.png"
    Image.new(mode, (4, 3)).save(path, format="TIFF" if mode in ("CMYK", "F") else "PNG")
    message = f"a.png must be an indexed or grey mask of class ids, got mode '{mode}'"
    with pytest.raises(ValueError, match=message):
        read_mask_ids(path)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    kinds=st.lists(st.integers(0, 4), min_size=9, max_size=9),
    parts=st.integers(1, 4),
)
def test_any_file_that_pillow_reads(tmp_path_factory, height, width, seed, kinds, parts):
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(png(mask, kinds=kinds[:height], parts=parts, colour=seed % 2 * 3))
    np.testing.assert_array_equal(read_mask_ids(path), mask)
    np.testing.assert_array_equal(by_pillow(path), mask)


def test_bytes_in_memory_are_pillows(tmp_path):
    """The fast way and pillow's agree on the same bytes, so which one is taken does not matter."""
    buffer = io.BytesIO()
    indexed(ids(40, 60)).save(buffer, "PNG", compress_level=6)
    found = _mask_files._plain_png(png(ids(40, 60)))
    buffer.seek(0)
    np.testing.assert_array_equal(found, np.array(Image.open(buffer)))


def test_look_up_ids(tmp_path):
    table = np.full(256, 255, np.uint8)
    table[[7, 200]] = 1, 2
    mask = np.array([[7, 200, 0]], np.uint8)
    assert look_up_ids(mask, table, tmp_path).tolist() == [[1, 2, 255]]
    assert look_up_ids(mask.astype(np.uint16), table, tmp_path).tolist() == [[1, 2, 255]]
    assert look_up_ids(mask, None, tmp_path) is mask
    for odd in (256, -1):
        with pytest.raises(ValueError, match=rf"b\.png must hold ids in \[0, 256\), got {odd}"):
            look_up_ids(np.array([[7, odd]], np.int32), table, tmp_path / "b.png")


@pytest.mark.real_data
def test_real_masks(shared_data):
    files = sorted((shared_data / "VOCdevkit" / "VOC2012" / "SegmentationClass").glob("*.png"))
    files = files[:15] + sorted((shared_data / "coco_small" / "masks").rglob("*.png"))[:15]
    assert len(files) == 30
    for file in files:
        np.testing.assert_array_equal(read_mask_ids(file), by_pillow(file), err_msg=str(file))
