import numpy as np
import pytest
from hypothesis import given
from mask_drawing import AWKWARD, drawn_masks
from oracles import polygons as oracle
from PIL import Image, ImageDraw

from wsss_blocks.data._export.contours import part_polygons
from wsss_blocks.data._export.regions import find_regions
from wsss_blocks.data._export.simplify import simplify_ring


def check_outlines(ids):
    parts, _ = find_regions(ids, instances="components")
    numbers = set(np.unique(parts).tolist()) - {0}
    for inset in (0.0, 0.25, 0.49):
        outlines = part_polygons(parts, inset=inset)
        assert set(outlines) == numbers
        for number, outline in outlines.items():
            wanted = {tuple(at) for at in np.argwhere(parts == number).tolist()}
            corners = outline.tolist()
            assert oracle.pixels_inside(corners, *ids.shape) == wanted
            if not inset:
                assert oracle.area(corners) == len(wanted)
                assert np.array_equal(outline, outline.round())
            else:
                assert painted(corners, ids.shape) == wanted
            turns = np.diff(np.concatenate([corners, corners[:1]]), axis=0) != 0
            assert (turns.sum(1) == 1).all(), "an edge is neither level nor upright, or has no end"
            assert (turns != np.roll(turns, 1, 0)).all(), "a corner on a straight line"


def painted(corners, shape):
    """What pillow paints, with the outline, as labelme does."""
    image = Image.new("1", shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], outline=1, fill=1)
    return {tuple(at) for at in np.argwhere(np.array(image)).tolist()}


@given(drawn_masks())
def test_polygons_enclose_exactly_their_part(ids):
    check_outlines(ids)


@pytest.mark.parametrize("name", AWKWARD)
def test_polygons_of_awkward_masks(name):
    check_outlines(AWKWARD[name])


@given(drawn_masks())
def test_regions_are_those_of_a_loop(ids):
    for instances in ("components", "classes"):
        parts, regions = find_regions(ids, instances=instances)
        assert sorted(n for region in regions for n in region.parts) == list(
            range(1, int(parts.max()) + 1)
        )
        pixels = {
            n: frozenset(tuple(at) for at in np.argwhere(parts == n).tolist())
            for region in regions
            for n in region.parts
        }
        value_of = {n: region.value for region in regions for n in region.parts}
        assert {(value_of[n], found) for n, found in pixels.items()} == set(
            oracle.components(ids.tolist(), corners=False)
        )
        found = [
            (region.value, frozenset().union(*(pixels[n] for n in region.parts)))
            for region in regions
        ]
        if instances == "components":
            assert sorted(map(str_of, found)) == sorted(
                map(str_of, oracle.components(ids.tolist(), corners=True))
            )
        else:
            classes = [value for value in np.unique(ids).tolist() if value not in (0, 255)]
            assert [value for value, _ in found] == classes


def str_of(region):
    return str((region[0], sorted(region[1])))


def test_a_hole_is_reached_by_a_cut_straight_up():
    parts = np.ones((3, 3), np.int64)
    parts[1, 1] = 0
    assert part_polygons(parts)[1].tolist() == [
        *([0, 0], [1, 0], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0]),
        *([3, 0], [3, 3], [0, 3]),
    ]


def test_simplified_rings_keep_their_distance():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    wobble = 50 + 0.4 * np.sin(23 * angle)
    ring = np.stack([wobble * np.cos(angle), wobble * np.sin(angle)], 1)
    assert simplify_ring(ring, 0.0) is ring
    last = len(ring)
    for tolerance in (0.5, 2.0, 8.0):
        found = simplify_ring(ring, tolerance)
        assert 3 <= len(found) < last
        last = len(found)
        kept = {tuple(corner) for corner in found.tolist()}
        assert kept <= {tuple(corner) for corner in ring.tolist()}
        for point in ring:
            assert min(distances(point, found)) <= tolerance + 1e-9
    assert simplify_ring(ring, 1000.0) is ring, "what would vanish stays"


def distances(point, ring):
    for start, end in zip(ring, np.roll(ring, -1, 0), strict=True):
        along = end - start
        t = min(max((point - start) @ along / (along @ along), 0.0), 1.0)
        yield float(np.hypot(*(point - start - t * along)))
