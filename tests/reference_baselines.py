"""Oracles of the common benchmark's losses: literal loops in float64."""

import numpy as np
from reference import unit


def _rows(signal):
    return np.float64(signal).reshape(len(signal), -1)


def similarity_preserving(y_true, y_pred):
    """|n(T T^T) - n(S S^T)|_F^2 / B^2, rows of unit length."""
    batch = len(y_true)
    grams = []
    for x in (_rows(y_true), _rows(y_pred)):
        gram = np.array([[np.sum(p * q) for q in x] for p in x])
        grams.append(np.array([unit(row) for row in gram]))
    return np.sum((grams[0] - grams[1]) ** 2) / batch**2


def probabilistic_transfer(y_true, y_pred):
    """Mean over B^2 of P log((P + 1e-7) / (Q + 1e-7))."""
    batch = len(y_true)
    probabilities = []
    for x in (_rows(y_true), _rows(y_pred)):
        kernel = np.array(
            [[(np.sum(unit(p) * unit(q)) + 1) / 2 for q in x] for p in x]
        )
        probabilities.append(np.array([row / sum(row) for row in kernel]))
    p, q = probabilities
    return sum(
        p[i, j] * np.log((p[i, j] + 1e-7) / (q[i, j] + 1e-7))
        for i in range(batch)
        for j in range(batch)
    ) / (batch**2)


def huber(d):
    """d^2 / 2 up to 1, then |d| - 1/2."""
    return 0.5 * d * d if abs(d) <= 1 else abs(d) - 0.5


def relational_distance(y_true, y_pred):
    """Mean over B^2 of Huber(D_T / mean - D_S / mean), positive means."""
    batch = len(y_true)
    relative = []
    for x in (_rows(y_true), _rows(y_pred)):
        distances = np.array(
            [[np.sqrt(np.sum((p - q) ** 2)) for q in x] for p in x]
        )
        relative.append(distances / np.mean(distances[distances > 0]))
    return sum(
        huber(relative[0][i, j] - relative[1][i, j])
        for i in range(batch)
        for j in range(batch)
    ) / (batch**2)


def relational_angle(y_true, y_pred):
    """Mean over B^3 of Huber of the difference of cosines at j."""
    batch = len(y_true)
    t, s = _rows(y_true), _rows(y_pred)
    total = 0.0
    for i in range(batch):
        for j in range(batch):
            for k in range(batch):
                cosines = [
                    np.sum(unit(x[i] - x[j]) * unit(x[k] - x[j]))
                    for x in (t, s)
                ]
                total += huber(cosines[0] - cosines[1])
    return total / batch**3


def correlation_congruence(y_true, y_pred):
    """1 / (B - 1) sum_i sum_k d_ik d_(i+1)k with d = |T - S|."""
    d = np.abs(_rows(y_true) - _rows(y_pred))
    return sum(
        d[i, k] * d[i + 1, k]
        for i in range(len(d) - 1)
        for k in range(d.shape[1])
    ) / (len(d) - 1)


def softmax(logits):
    """exp(v) / sum exp(v) of one vector."""
    exponentials = np.exp(np.float64(logits) - np.max(logits))
    return exponentials / np.sum(exponentials)


def pearson(x, y):
    """Covariance over the product of the deviations; 0 where one is 0."""
    return np.sum(unit(x - np.mean(x)) * unit(y - np.mean(y)))


def correlation_targets(y_true, y_pred, temperature):
    """T^2 (2 - mean correlation of rows - mean correlation of columns)."""
    classes = y_true.shape[-1]
    p, q = (
        np.array([softmax(v / temperature) for v in y.reshape(-1, classes)])
        for y in (np.float64(y_true), np.float64(y_pred))
    )
    rows = np.mean([pearson(a, b) for a, b in zip(p, q, strict=True)])
    columns = np.mean([pearson(p[:, c], q[:, c]) for c in range(classes)])
    return temperature**2 * (2 - rows - columns)


def standardized_targets(y_true, y_pred, temperature):
    """T^2 KL of the probabilities of (z - mean) / std."""
    values = []
    for t, s in zip(np.float64(y_true), np.float64(y_pred), strict=True):
        p, q = (
            softmax((z - np.mean(z)) / np.std(z) / temperature) for z in (t, s)
        )
        values.append(temperature**2 * np.sum(p * np.log(p / q)))
    return np.array(values)


def decoupled_targets(y_true, y_pred, labels, temperature, weights):
    """T^2 (w_0 KL of true class or not + w_1 KL among the others)."""
    values = []
    for t, s, label in zip(
        np.float64(y_true), np.float64(y_pred), labels, strict=True
    ):
        p, q = softmax(t / temperature), softmax(s / temperature)
        others = [c for c in range(len(t)) if c != label]
        binary = [(p[label], q[label]), (sum(p[others]), sum(q[others]))]
        target = sum(a * np.log(a / b) for a, b in binary)
        r_p, r_q = p[others] / sum(p[others]), q[others] / sum(q[others])
        rest = sum(a * np.log(a / b) for a, b in zip(r_p, r_q, strict=True))
        values.append(weights[0] * target + weights[1] * rest)
    return temperature**2 * np.array(values)


def pool(feature, height, width):
    """Windows averaged down to a size that divides, `[h, w, c]`."""
    feature = np.float64(feature)
    tall, wide = feature.shape[0] // height, feature.shape[1] // width
    pooled = np.zeros((height, width, feature.shape[2]))
    for i in range(height):
        for j in range(width):
            window = feature[
                i * tall : (i + 1) * tall, j * wide : (j + 1) * wide
            ]
            pooled[i, j] = window.mean(axis=(0, 1))
    return pooled


def _to_the_smaller(x, y):
    size = [min(a, b) for a, b in zip(x.shape[:2], y.shape[:2], strict=True)]
    return pool(x, *size), pool(y, *size)


def neuron_selectivity(y_true, y_pred):
    """<(t't)^2> + <(s's)^2> - 2 <(s't)^2> of unit channels, `[batch]`."""
    values = []
    for t, s in zip(y_true, y_pred, strict=True):
        t, s = _to_the_smaller(t, s)
        t, s = (
            [unit(x[..., c].ravel()) for c in range(x.shape[-1])]
            for x in (t, s)
        )

        def kernel(xs, ys):
            return np.mean([[np.sum(x * y) ** 2 for y in ys] for x in xs])

        values.append(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))
    return np.array(values)


def activation_boundary(y_true, y_pred):
    """Sum of (S + 1)^2 where T <= 0, S > -1 and (S - 1)^2 where T > 0, ..."""
    values = []
    for t, s in zip(_rows(y_true), _rows(y_pred), strict=True):
        total = 0.0
        for a, b in zip(t, s, strict=True):
            if a <= 0 and b > -1:
                total += (b + 1) ** 2
            if a > 0 and b <= 1:
                total += (b - 1) ** 2
        values.append(total)
    return np.array(values)


def solution_flow(y_true, y_pred):
    """Sum over adjacent maps of the mean squared difference, `[batch]`."""
    values = np.zeros(len(y_true[0]))
    for example in range(len(values)):
        for layer in range(len(y_true) - 1):
            grams = []
            for maps in (y_true, y_pred):
                x, y = _to_the_smaller(
                    maps[layer][example], maps[layer + 1][example]
                )
                gram = np.zeros((x.shape[-1], y.shape[-1]))
                for i, j in np.ndindex(*x.shape[:2]):
                    gram += np.outer(x[i, j], y[i, j])
                grams.append(gram / (x.shape[0] * x.shape[1]))
            values[example] += np.mean((grams[0] - grams[1]) ** 2)
    return values
