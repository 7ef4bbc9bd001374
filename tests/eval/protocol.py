"""The published segmentation protocol, slowly: one pixel, one window after another, in float64.

Written from the protocol's description, sharing no code with the package; the towers' outputs are
given.
"""

import math

import numpy as np


def interpolate(grid, height, width):
    """Bilinear, half-pixel centres, edges clamped."""
    rows, columns, channels = grid.shape
    result = np.zeros((height, width, channels))
    for y in range(height):
        sy = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        y0 = math.floor(sy)
        y1, fy = min(y0 + 1, rows - 1), sy - y0
        for x in range(width):
            sx = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            x0 = math.floor(sx)
            x1, fx = min(x0 + 1, columns - 1), sx - x0
            top = grid[y0, x0] * (1 - fx) + grid[y0, x1] * fx
            bottom = grid[y1, x0] * (1 - fx) + grid[y1, x1] * fx
            result[y, x] = top * (1 - fy) + bottom * fy
    return result


def softmax(values):
    weights = [math.exp(v - max(values)) if v > -math.inf else 0.0 for v in values]
    return [w / sum(weights) for w in weights]


def unit(vector):
    return vector / math.sqrt(sum(v * v for v in vector))


def fitting_size(image, long, short):
    """Height and width of the image made to fit, in its ratio."""
    height, width = image.shape[:2]
    scale = min(long / max(height, width), short / min(height, width))
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


def tokens(side, patch, drop):
    """Rows or columns of tokens; what fills no patch is dropped, unless there is nothing else."""
    return max(side // patch, 1) if drop else math.ceil(side / patch)


def window(outputs, text, height, width, patch, threshold, kept=5, drop=True):
    """Scores [height, width, classes]; `outputs` are float64 arrays of one window."""
    groups, image, assignments, logit_scale = outputs
    scale = min(math.exp(logit_scale), 100)
    num_classes = len(text)
    liking = [float(np.dot(unit(image), t)) for t in text]
    best = sorted(range(num_classes), key=lambda c: -liking[c])[: min(kept, num_classes)]
    quality = []
    for group in groups:
        affinity = [scale * float(np.dot(unit(group), t)) for t in text]
        p = softmax(affinity)
        q = softmax([affinity[c] if c in best else -math.inf for c in range(num_classes)])
        quality.append([a * b for a, b in zip(p, q, strict=True)])
    of_patch = assignments[0]  # [groups, patches]
    for later in assignments[1:]:
        of_patch = np.array(
            [[sum(later[h, g] * of_patch[g, p] for g in range(len(of_patch)))
              for p in range(of_patch.shape[1])] for h in range(len(later))]
        )  # fmt: skip
    rows, columns = (tokens(side, patch, drop) for side in (height, width))
    reach = max(rows * patch, height), max(columns * patch, width)
    maps = interpolate(of_patch.T.reshape(rows, columns, -1), *reach)
    highest = max(max(q) for q in quality)
    result = np.zeros((height, width, num_classes + (threshold is not None)))
    for y in range(height):
        for x in range(width):
            scores = quality[int(np.argmax(maps[y, x]))]
            if threshold is not None:
                background = 1.0 if max(scores) < min(threshold, highest) else 0.0
                scores = [background, *scores]
            result[y, x] = scores
    return result


def starts(length, size, stride):
    found = [0]
    while found[-1] + size < length:
        found.append(min(found[-1] + stride, length - size))
    return found


def image(
    encode,
    height,
    width,
    text,
    *,
    size,
    stride,
    patch,
    threshold,
    original,
    kept=5,
    constant=False,
    drop=True,
):
    """Scores [*original, classes]; `encode(y, x, h, w)` gives the outputs of a window."""
    h, w = min(size, height), min(size, width)
    constant_background = threshold if constant else None
    threshold = None if constant else threshold
    channels = len(text) + (threshold is not None)
    total, count = np.zeros((height, width, channels)), np.zeros((height, width, 1))
    for y in starts(height, h, stride):
        for x in starts(width, w, stride):
            part = window(encode(y, x, h, w), text, h, w, patch, threshold, kept, drop)
            total[y : y + h, x : x + w] += part
            count[y : y + h, x : x + w] += 1
    scores = total / count
    if constant_background is not None:
        background = np.full((height, width, 1), constant_background)
        scores = np.concatenate([background, scores], axis=-1)
    return interpolate(scores, *original)
