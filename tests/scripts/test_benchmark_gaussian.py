"""The benchmark's table of Gaussians: what is timed computes the same."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import numpy as np
from benchmarks import gaussian


def test_the_divergence_and_its_formula_are_one_number():
    steps = gaussian.kl_steps(*gaussian.features(8, 12))
    (value, gradient), *others = [step() for step in steps.values()]
    assert value > 0
    for other in others:
        np.testing.assert_allclose(other[0], value, rtol=1e-5)
        np.testing.assert_allclose(other[1], gradient, rtol=1e-4, atol=1e-6)


def test_the_wasserstein_distance_and_its_formula_are_one_number(monkeypatch):
    """POT gives the root, with a ridge on both sides."""
    monkeypatch.setattr(gaussian.importlib.util, "find_spec", lambda name: None)
    steps = gaussian.wasserstein_steps(*gaussian.features(64, 4))
    formula, (value, gradient), other = [step() for step in steps.values()]
    np.testing.assert_allclose(formula**2, value, rtol=0.1)
    np.testing.assert_allclose(other[0], value, rtol=1e-5)
    np.testing.assert_allclose(other[1], gradient, rtol=1e-4, atol=1e-6)


def test_table_divides_by_the_formula():
    """Medians of 30 and 2 ms."""
    rows = gaussian.table(
        {
            ("KL", "covariances"): np.array([0.02, 0.03, 0.04]),
            ("KL", "graph"): np.array([0.001, 0.002, 0.004]),
        }
    ).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells == [
        ["KL", "covariances", "30.00", "20.00", "", ""],
        ["KL", "graph", "2.00", "1.00", "15.0 times as long", "100"],
    ]


def test_smoke_prints_both_distances(capsys):
    import benchmark

    assert benchmark.main(["--table", "gaussian", "--smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == ["Wasserstein"] * 3 + ["KL"] * 3
