"""Oracles in float64 NumPy, written from the formulas and slow on purpose."""

import itertools

import numpy as np


def _log_softmax(logits):
    shifted = logits - np.max(logits)
    return shifted - np.log(np.sum(np.exp(shifted)))


def soft_targets(y_true, y_pred, temperature):
    """T^2 KL(softmax(y_true / T) || softmax(y_pred / T)), `[batch, ...]`."""
    y_true, y_pred = np.float64(y_true), np.float64(y_pred)
    values = np.zeros(y_true.shape[:-1])
    for position in np.ndindex(*values.shape):
        log_p = _log_softmax(y_true[position] / temperature)
        log_q = _log_softmax(y_pred[position] / temperature)
        values[position] = temperature**2 * sum(
            np.exp(lp) * (lp - lq)
            for lp, lq in zip(log_p, log_q, strict=True)
            if lp > -np.inf
        )
    return values


def squared_error(y_true, y_pred):
    """Sums (y_true - y_pred)^2 over an example's entries, `[batch]`."""
    pairs = zip(np.float64(y_true), np.float64(y_pred), strict=True)
    return np.array([np.sum((t - s) ** 2) for t, s in pairs])


def unit(vector):
    """Direction v / |v|, and 0 where |v| < 1e-12."""
    vector = np.float64(vector)
    norm = np.sqrt(np.sum(vector**2))
    return np.zeros_like(vector) if norm < 1e-12 else vector / norm


def normalized_squared_error(y_true, y_pred):
    """|n(y_true) - n(y_pred)|^2 over an example's entries, `[batch]`."""
    pairs = zip(y_true, y_pred, strict=True)
    return np.array([np.sum((unit(t) - unit(s)) ** 2) for t, s in pairs])


def pairwise_cost(x, y, metric):
    """1 - n(x_i) . n(y_j), |x_i - y_j|^2 or its root; examples flattened."""
    x, y = (np.float64(z).reshape(len(z), -1) for z in (x, y))
    cost = {
        "cosine": lambda p, q: 1.0 - np.sum(unit(p) * unit(q)),
        "squared_euclidean": lambda p, q: np.sum((p - q) ** 2),
        "euclidean": lambda p, q: np.sqrt(np.sum((p - q) ** 2)),
    }[metric]
    return np.array([[cost(p, q) for q in y] for p in x])


def ipot_plan(cost, a, b, beta, num_iters):
    """Lohit & Jones 2020, algorithm 1, line by line."""
    n, m = cost.shape
    sigma = np.ones(m) / m
    plan = np.ones((n, m))
    kernel = np.exp(-np.float64(cost) / beta)
    for _ in range(num_iters):
        q = kernel * plan
        delta = a / (q @ sigma)
        sigma = b / (q.T @ delta)
        plan = np.diag(delta) @ q @ np.diag(sigma)
    return plan


def relaxed_emd(cost, a, b):
    """max(sum_i a_i min_j C_ij, sum_j b_j min_i C_ij), over massive points."""
    rows = sum(a[i] * min(cost[i, b > 0]) for i in np.flatnonzero(a))
    columns = sum(b[j] * min(cost[a > 0, j]) for j in np.flatnonzero(b))
    return max(rows, columns)


def exact_transport_cost(cost):
    """Cost of the best permutation over n; uniform masses, n <= 6."""
    n = len(cost)
    assert cost.shape == (n, n)
    assert n <= 6
    return min(
        sum(cost[i, j] for i, j in enumerate(permutation)) / n
        for permutation in itertools.permutations(range(n))
    )


def central_difference(function, x, step=1e-5):
    """Gradient at x of a function of one array with scalar values."""
    x = np.float64(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient


def moments(x, masses=None):
    """Mean and covariance of weighted points, uniform masses by default."""
    x = np.float64(x)
    masses = np.full(len(x), 1 / len(x)) if masses is None else masses
    mean = sum(mass * point for mass, point in zip(masses, x, strict=True))
    covariance = sum(
        mass * np.outer(point - mean, point - mean)
        for mass, point in zip(masses, x, strict=True)
    )
    return mean, covariance


def gaussian_squared_wasserstein(mean_x, cov_x, mean_y, cov_y):
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)."""
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)
    means = np.sum((mean_x - mean_y) ** 2)
    traces = np.trace(cov_x) + np.trace(cov_y)
    return means + traces - 2 * np.sum(np.sqrt(product))


def gaussian_kl(mean_x, cov_x, mean_y, cov_y):
    """Fernandes Montesuma 2025, equation 6, dense."""
    inverse, difference = np.linalg.inv(cov_y), mean_x - mean_y
    log_ratio = np.linalg.slogdet(cov_y)[1] - np.linalg.slogdet(cov_x)[1]
    return 0.5 * (
        np.trace(inverse @ cov_x)
        + difference @ inverse @ difference
        - len(mean_x)
        + log_ratio
    )


def maximum_mean_discrepancy(x, y, masses, kernel):
    """sum_ij w_i w_j (k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j))."""
    return sum(
        masses[i]
        * masses[j]
        * (kernel(x[i], x[j]) + kernel(y[i], y[j]) - 2 * kernel(x[i], y[j]))
        for i in range(len(x))
        for j in range(len(x))
    )


def variational(y_true, y_pred, kernels, variances):
    """<1/2 ((mu(y_pred) - y_true)^2 / s^2 + log s^2)> over all entries.

    Args:
        y_true: `[batch, ..., channels]`.
        y_pred: `[batch, ..., channels]`, of the same positions.
        kernels: Matrices `[channels, channels]`, applied with ReLU between.
        variances: `[channels]` of y_true.
    """
    values = []
    for position in np.ndindex(*np.shape(y_true)[:-1]):
        mean = np.float64(y_pred[position])
        for kernel in kernels[:-1]:
            mean = np.maximum(mean @ np.float64(kernel), 0.0)
        mean = mean @ np.float64(kernels[-1])
        for mu, target, variance in zip(
            mean, y_true[position], np.float64(variances), strict=True
        ):
            values.append(
                0.5 * ((mu - target) ** 2 / variance + np.log(variance))
            )
    return np.mean(values)


def contrastive(z, bank, own, others, constant, num_examples, temperature):
    """Noise-contrastive estimation of one network's embeddings, `[batch]`.

    Args:
        z: Embeddings, `[batch, dim]`.
        bank: The other network's embeddings, `[num_examples, dim]`.
        own: Number of each example.
        others: Numbers of the others drawn for each example.
        constant: That scores are divided by.
        num_examples, temperature: Numbers.
    """
    values = []
    for vector, positive, negatives in zip(z, own, others, strict=True):
        noise = len(negatives) / num_examples
        score = np.exp(np.dot(vector, bank[positive]) / temperature) / constant
        value = np.log(score / (score + noise + 1e-7))
        for number in negatives:
            score = np.exp(np.dot(vector, bank[number]) / temperature)
            value += np.log(noise / (score / constant + noise + 1e-7))
        values.append(-value)
    return np.array(values)


def mean_score(z, bank, own, others, temperature):
    """Mean of all scores before their division, over own and others."""
    return np.mean(
        [
            np.exp(np.dot(vector, bank[number]) / temperature)
            for vector, positive, negatives in zip(z, own, others, strict=True)
            for number in (positive, *negatives)
        ]
    )


def convolution(maps, kernel, bias=0.0):
    """Cross-correlation with zero padding that keeps the size.

    Args:
        maps: `[batch, height, width, channels]`.
        kernel: `[3, 3, channels, filters]`.
        bias: `[filters]`.
    """
    _, height, width, _ = np.shape(maps)
    padded = np.pad(np.float64(maps), [(0, 0), (1, 1), (1, 1), (0, 0)])
    total = np.zeros((*np.shape(maps)[:-1], kernel.shape[-1]))
    for i, j in itertools.product(range(3), range(3)):
        window = padded[:, i : i + height, j : j + width]
        total += window @ np.float64(kernel[i, j])
    return total + bias


def leaky(maps, slope=0.1):
    """Rectified with a slope below zero."""
    return np.where(maps > 0, maps, slope * maps)


def batch_normalized(maps, epsilon=1e-5):
    """Mean 0 and variance 1 over batch and positions."""
    mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
    return (maps - mean) / np.sqrt(variance + epsilon)


def factor_distance(y_true, y_pred):
    """<| n(sum_c y_true^2) - n(sum_c y_pred^2) |>, `[batch]`."""
    values = []
    for teacher, student in zip(y_true, y_pred, strict=True):
        one, two = (
            unit(np.sum(np.float64(side) ** 2, axis=-1))
            for side in (teacher, student)
        )
        values.append(np.mean(np.abs(one - two)))
    return np.array(values)
