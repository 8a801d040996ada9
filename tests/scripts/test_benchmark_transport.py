"""The benchmark's table of transport: what is timed, and its errors."""

import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import benchmark
import numpy as np
import pytest
from benchmarks import memory, transport


def cells(table):
    """The rows of a Markdown table, without its rule."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
    ]
    return [rows[0], *rows[2:]]


def cheapest(cost):
    """Least mean cost over all permutations."""
    rows = np.arange(len(cost))
    return min(
        cost[rows, list(order)].mean() for order in itertools.permutations(rows)
    )


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(
        transport.importlib.util, "find_spec", lambda name: None
    )


# === Solvers ===


def test_exact_cost_is_that_of_the_best_permutation():
    teacher, student = transport.features(6, 5)
    squared = np.sum((teacher[:, None] - student[None]) ** 2, axis=-1)
    np.testing.assert_allclose(
        transport.exact_cost(teacher, student), cheapest(squared), rtol=1e-6
    )


@pytest.mark.parametrize("value", [2.5, 1.5, np.float32(2.5)])
def test_error_is_a_share_of_the_exact_cost(value):
    assert transport.relative_error(value, 2.0) == 0.25


def test_all_solvers_compute_one_number(no_torch):
    """Points 0, 10 against 11, 2: costs 4 and 1."""
    teacher = np.array([[0.0], [10.0]], "float32")
    student = np.array([[11.0], [2.0]], "float32")
    steps = transport.solver_steps(teacher, student)
    assert list(steps) == [
        "POT, NumPy, value alone",
        "tfkd, graph",
        "tfkd, XLA",
    ]
    exact = transport.exact_cost(teacher, student)
    assert exact == 2.5
    for name, step in steps.items():
        value, gradient = step()
        assert transport.relative_error(value, exact) < 1e-3, name
        if name.startswith("tfkd"):
            # 2 (student - teacher) / 2, at its partner
            np.testing.assert_allclose(gradient, [[1.0], [2.0]], atol=0.02)
        else:
            assert gradient is None


def peer_step(name, teacher, student):
    """The step of a library that need not be installed."""
    pytest.importorskip({"ott-jax": "ott"}.get(name, name))
    if name == "torch":
        name = "POT, PyTorch"
    return transport.solver_steps(teacher, student)[name]


@pytest.mark.parametrize("name", ["torch", "geomloss", "ott-jax"])
def test_peers_compute_the_same(name):
    """With gradient, of costs whose plan is clear."""
    teacher, _ = transport.features(6, 16)
    student = teacher[::-1] + 0.1
    value, gradient = peer_step(name, teacher, student)()
    np.testing.assert_allclose(value, 16 * 0.1**2, rtol=0.1)
    expected = np.full([6, 16], 2 * 0.1 / 6)
    np.testing.assert_allclose(gradient, expected, rtol=0.1)


def test_solver_table():
    """POT in 10 (8) ms; of those within 1e-3, XLA with 4 (2) ms is first."""
    seconds = {
        (64, "POT, PyTorch"): np.array([0.008, 0.01, 0.02]),
        (64, "tfkd, graph"): np.array([0.003, 0.005, 0.02]),
        (64, "tfkd, XLA"): np.array([0.002, 0.004, 0.009]),
        (64, "geomloss"): np.array([0.001, 0.001, 0.001]),
    }
    errors = dict(zip(seconds, [1e-8, 3e-4, 1e-3, 1.1e-3], strict=True))
    header, *rows = cells(transport.solver_table(seconds, errors))
    assert header == list(transport._SOLVER_HEADER)
    assert ["|".join(row) for row in rows] == [
        "64|POT, PyTorch|10.0|8.0|1.00|1.00||1.0e-08|yes",
        "64|tfkd, graph|5.0|3.0|0.50|0.38||3.0e-04|yes",
        "64|tfkd, XLA|4.0|2.0|0.40|0.25|0.5|1.0e-03|yes, fastest",
        "64|geomloss|1.0|1.0|0.10|0.12||1.1e-03|no",
    ]


# === Methods ===


def test_methods_table():
    seconds = {
        "remd": np.array([0.1, 0.2, 0.3]),
        "ipot": np.array([0.12, 0.21, 0.3]),
    }
    assert cells(transport.methods_table(seconds)) == [
        list(transport._METHODS_HEADER),
        ["remd", "200.0", "100.0", "1.00", "1.00", ""],
        ["ipot", "210.0", "120.0", "1.05", "1.20", "1.03"],
    ]


# === Neurons ===


def test_neurons_and_their_formula_are_one_number():
    (value, _), *others = [
        step() for step in transport.neuron_steps(24).values()
    ]
    assert value > 0
    for other, gradient in others:
        np.testing.assert_allclose(other, value, rtol=2e-3)
        assert gradient.shape == (transport.NEURON_EXAMPLES, 24)


def test_neuron_table():
    seconds = {
        "POT": np.array([0.3, 0.3]),
        "graph": np.array([0.1, 0.1]),
        "XLA": np.array([0.05, 0.15]),
    }
    rows = transport.neuron_table(seconds, {"XLA": 2**24})
    assert cells(rows) == [
        list(transport._NEURON_HEADER),
        ["POT", "300.0", "300.0", "", "", "", ""],
        ["graph", "100.0", "100.0", "3.0 times as long", "3", "", ""],
        ["XLA", "100.0", "50.0", "3.0 times as long", "3", "16", "200"],
    ]


# === The whole ===


def test_smoke_prints_three_tables(capsys, monkeypatch, no_torch):
    """Memory as if a neuron took 1 MiB, and the process 1 MiB."""
    asked = []

    def peak(function, name, neurons):
        assert function is transport.neurons_alone
        asked.append((name, neurons))
        return (1 + neurons) * 2**20

    monkeypatch.setattr(memory, "peak", peak)
    monkeypatch.setattr(memory, "STATUS", pathlib.Path(__file__))
    assert benchmark.main(["--table", "transport", "--smoke"]) == 0
    assert asked == [("graph", 8), ("graph", 16), ("XLA", 8), ("XLA", 16)]
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if "|" in line]
    assert [name for name in names if name[0] != "-"] == [
        *("n", "8", "8", "8"),
        *("method", "remd", "ipot"),
        *("neurons by", "POT, NumPy, value alone", "graph", "XLA"),
    ]
    memories = [line.split("|")[6].strip() for line in lines[-2:]]
    assert memories == ["8", "8"]


def test_options(capsys):
    options = benchmark.parser("transport").parse_args([])
    assert options.sizes == [64, 128, 256, 512, 1024]
    assert (options.batch_size, options.width, options.neurons) == (64, 1, 2048)
    with pytest.raises(SystemExit):
        benchmark.main(["--table", "transport", "--sizes", "0"])
    assert "--sizes" in capsys.readouterr().err
