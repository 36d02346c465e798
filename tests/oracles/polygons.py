"""Which pixels a polygon encloses, and which pixels are connected: loops over pixels."""


def inside(polygon, x, y):
    """Count the edges that a ray to the right crosses."""
    crossings = 0
    for i, (x0, y0) in enumerate(polygon):
        x1, y1 = polygon[(i + 1) % len(polygon)]
        if (y0 > y) != (y1 > y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x:
            crossings += 1
    return crossings % 2 == 1


def pixels_inside(polygon, height, width):
    """List the pixels ``(row, column)`` whose centre lies inside."""
    return {
        (row, column)
        for row in range(height)
        for column in range(width)
        if inside(polygon, column + 0.5, row + 0.5)
    }


def components(ids, *, corners):
    """List the connected pixels of one class as ``(class, pixels)``, without 0 and 255."""
    height, width = len(ids), len(ids[0])
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)] if corners else []
    left = {(y, x) for y in range(height) for x in range(width) if ids[y][x] not in (0, 255)}
    found = []
    while left:
        start = left.pop()
        value, pixels, waiting = ids[start[0]][start[1]], {start}, [start]
        while waiting:
            y, x = waiting.pop()
            for dy, dx in steps:
                other = (y + dy, x + dx)
                if other in left and ids[other[0]][other[1]] == value:
                    left.remove(other)
                    pixels.add(other)
                    waiting.append(other)
        found.append((value, frozenset(pixels)))
    return found


def area(polygon):
    """Return the signed area (shoelace formula); positive for clockwise, y pointing down."""
    total = 0.0
    for i, (x0, y0) in enumerate(polygon):
        x1, y1 = polygon[(i + 1) % len(polygon)]
        total += x0 * y1 - x1 * y0
    return total / 2
