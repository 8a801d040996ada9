"""The benchmark's tables: what is counted, and how it is shown."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import benchmark
import numpy as np
import pytest
import reference_baselines
import tensorflow as tf
from benchmarks import (
    arithmetic,
    jacobian,
    memory,
    methods,
    selectivity,
    timing,
)

# Multiply-adds of each convolution: 9 input channels x output channels x
# positions.
VGG4 = [
    9 * 3 * 64 * 32**2,
    9 * 64 * 128 * 16**2,
    9 * 128 * 512 * 8**2,
]
VGG9 = [
    9 * 3 * 64 * 32**2,
    9 * 64 * 128 * 16**2,
    9 * 128 * 256 * 8**2,
    9 * 256 * 256 * 8**2,
    9 * 256 * 512 * 4**2,
    9 * 512 * 512 * 4**2,
    9 * 512 * 512 * 2**2,
    9 * 512 * 512 * 2**2,
]


def cells(table):
    """The rows of a Markdown table, without header and rule."""
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()[2:]
    ]


# === The table of methods ===


def test_prints_every_method_against_cross_entropy(capsys, monkeypatch):
    """Steps of 1, 2, 3, ... ms by a clock of our own; the last takes twice."""
    now = {"ms": 0}
    names = [
        name
        for method in methods.tfkd.methods.NAMES
        for name in _rows_of(method)
    ]
    order = {name: i + 1 for i, name in enumerate(names)}
    calls = []

    def steps_of(method, options):
        assert options.batch_size == 64

        def step(name):
            calls.append(name)
            # The first run of each, which is not timed, is slow.
            slow = 1000 * (calls.count(name) == 1)
            last = 1 + (calls.count(name) == 4)
            now["ms"] += last * order[name] + slow

        return {name: lambda n=name: step(n) for name in _rows_of(method)}

    monkeypatch.setattr(methods, "steps_of", steps_of)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["ms"] / 1000)
    assert benchmark.main(["--rounds", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet8 beside resnet20, batch 64\n\n")
    assert cells(out.split("\n\n")[1]) == [
        [name, f"{i:.1f}", f"{i:.1f}", f"{i:.2f}", f"{i:.2f}"]
        for name, i in order.items()
    ]


def _rows_of(method):
    stages = method in ("ft", "ab", "fsp")
    return [f"{method}, stage before"] * stages + [method]


def test_steps_of_stages_and_sums_train():
    """The paraphraser of ft in its stage, which its main stage demands."""
    options = benchmark.parser().parse(["--smoke"], methods.SMOKE)
    steps = methods.steps_of("ft+crd+kd", options)
    assert list(steps) == ["ft+crd+kd, stage before", "ft+crd+kd"]
    for step in steps.values():
        assert step() != step()


def test_unknown_methods_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--methods", "kd+ipto"])
    assert "Did you mean 'ipot'?" in capsys.readouterr().err


def test_ratios_are_of_medians_and_of_the_fastest():
    seconds = {
        "ce": np.array([0.1, 0.2, 0.4]),
        "kd": np.array([0.3, 0.2, 0.5]),
    }
    assert cells(methods.table_of(seconds)) == [
        ["ce", "200.0", "100.0", "1.00", "1.00"],
        ["kd", "300.0", "200.0", "1.50", "2.00"],
    ]


# === The table of neuron selectivity ===


def test_selectivity_is_of_all_stages():
    """The maps of the common pair: 56 MiB for 64 images, in float32."""
    shapes = selectivity.shapes_of("resnet8x4", "resnet32x4")
    maps = [(32, 32, 64), (16, 16, 128), (8, 8, 256)]
    assert shapes == [(shape, shape) for shape in maps]
    assert selectivity.input_bytes(shapes, 64) == 56 * 2**20


@pytest.mark.parametrize("mode", selectivity.MODES)
def test_selectivity_steps_sum_the_stages(mode):
    """Against the formula, at a third of the size."""
    shapes = [((4, 4, 3), (4, 4, 5)), ((2, 2, 6), (2, 2, 7))]
    rng = np.random.default_rng(0)
    students, teachers = (
        [rng.random((2, *shape), np.float32) for shape in maps]
        for maps in zip(*shapes, strict=True)
    )
    expected = sum(
        np.mean(reference_baselines.neuron_selectivity(t, s))
        for t, s in zip(teachers, students, strict=True)
    )
    value, gradients = selectivity.step_of(mode, shapes, 2)()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert len(gradients) == 2
    assert np.all(np.array(gradients) != 0)


def test_selectivity_table_leaves_out_unknown_memory():
    seconds = {"graph": np.array([0.1, 0.3, 0.2]), "XLA": np.array([0.4])}
    table = selectivity.table_of(seconds, {"XLA": 2**20 * 5}, 2**21)
    assert cells(table) == [
        ["graph", "200.0", "100.0", "", "", "2"],
        ["XLA", "400.0", "400.0", "5", "100", "2"],
    ]


def test_prints_the_selectivity_of_small_networks(capsys, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", pathlib.Path("nowhere"))
    assert benchmark.main(["--table", "nst", "--smoke"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet8 beside resnet14, batch 4, maps [((32, 32,")
    rows = cells(out.split("\n\n")[1])
    assert [row[0] for row in rows] == ["graph", "XLA"]
    assert [row[3] for row in rows] == ["", ""]


def _allocate(kept, count):
    """Keeps `kept` MiB; its step takes `count` times 32 MiB in turn."""
    block = np.ones(kept * 2**17)

    def step():
        for _ in range(count):
            np.ones(32 * 2**17)
        return block

    return step


@pytest.mark.skipif(not memory.STATUS.exists(), reason="Linux only")
def test_added_memory_is_what_is_alive_at_a_time():
    """Not what was there before, nor what is taken again and again."""
    before = {name: os.environ.get(name) for name in memory._RETURNS_MEMORY}
    peak = memory.added(_allocate, 64, 8) - memory.added(_allocate, 64, 0)
    assert abs(peak / 2**20 - 32) < 4
    assert before == {name: os.environ.get(name) for name in before}


# === Timing ===


def test_steps_run_in_turn():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.times(steps, rounds=2)
    assert order == ["a", "b"] * 3  # once untimed
    assert {name: len(values) for name, values in times.items()} == {
        "a": 2,
        "b": 2,
    }


def test_each_table_has_its_own_options(capsys):
    assert benchmark.parser().parse_args([]).batch_size == 64
    options = benchmark.parser("jacobian").parse_args([])
    assert (options.batch_size, options.width) == ([32, 128], 1.0)
    with pytest.raises(SystemExit):
        benchmark.main(["--table", "accuracy"])
    assert "invalid choice: 'accuracy'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--table", "jacobian", "--help"])
    assert "PyTorch" in capsys.readouterr().out


# === Bounds ===


@pytest.fixture(scope="module")
def costs():
    return jacobian.costs_of(**jacobian.networks_of(1.0))


def test_counts_the_convolutions_of_both_networks(costs):
    assert costs == arithmetic.Costs(
        student=sum(VGG4),
        teacher=sum(VGG9),
        student_part=sum(VGG4[:2]),
        teacher_part=sum(VGG9[:2]),
    )


def test_bounds(costs):
    """By hand, in passes of a network: s of the student, t of the teacher."""
    s, t = sum(VGG4), sum(VGG9)
    part = sum(VGG4[:2])  # the same two convolutions in both networks
    expected = {
        "ce": 3 * s,
        "kd": 3 * s + t,
        "activations": 3 * s + t,
        # Training 3; own pass 1, to the images 1, their derivatives 2.
        "label": 7 * s + 2 * t,
        "top": 7 * s + 2 * t,
        "projection": 7 * s + 2 * t,
        "label, teacher given": 7 * s,
        "label, teacher given, a quarter": 4 * s,
        "norm penalty": 7 * s,
        "all outputs": (3 + 1 + 10 * 3) * s + (1 + 10) * t,
        "activations, attention": 3 * s + t + 7 * part,
        "label, frozen": 6 * s + 2 * t,
    }
    bounds = jacobian.bounds_of(costs)
    assert bounds == {name: cost / (3 * s) for name, cost in expected.items()}
    rounded = {name: f"{bound:.2f}" for name, bound in bounds.items()}
    assert rounded["kd"] == "1.87"
    assert rounded["label"] == "4.08"
    assert rounded["label, teacher given"] == rounded["norm penalty"] == "2.33"
    assert rounded["label, teacher given, a quarter"] == "1.33"
    assert rounded["all outputs"] == "20.93"
    assert rounded["activations, attention"] == "2.70"


def multiply_adds(function):
    """Of the convolutions that a concrete function runs.

    Returns:
        An int, for the whole batch, whose size must be known.
    """
    graph = function.graph
    waiting = [tensor.op for tensor in graph.outputs] + graph.control_outputs
    done, total = set(), 0
    while waiting:
        op = waiting.pop()
        if op.name in done:
            continue
        done.add(op.name)
        waiting += [tensor.op for tensor in op.inputs] + op.control_inputs
        if op.type == "Conv2D":
            maps, kernel = op.outputs[0], op.inputs[1]
        elif op.type == "Conv2DBackpropInput":
            maps, kernel = op.inputs[2], op.inputs[1]
        elif op.type == "Conv2DBackpropFilter":
            maps, kernel = op.inputs[2], op.outputs[0]
        else:
            continue
        # [batch, height, width, output channels] times the window's inputs.
        window = kernel.shape[:3].num_elements()
        total += maps.shape.num_elements() * window
    return total


@pytest.mark.parametrize("name", jacobian.MODES)
def test_a_step_runs_no_more_convolutions_than_its_bound(name, monkeypatch):
    """The traced step of each mode against the costs of the table.

    The gradient by the images, which neither the training pass needs nor
    what goes back through the pass of attention, is counted in the costs.
    """
    monkeypatch.setattr(jacobian, "NUM_CLASSES", 3)  # rows of all outputs
    batch_size = 4
    networks = jacobian.networks_of(0.0625)
    cost = jacobian.MODES[name].cost(jacobian.costs_of(**networks))
    stem = arithmetic.convolutions(networks["student"], until="stem")
    uncounted = 2 * stem if name == "activations, attention" else stem
    images, labels = map(tf.constant, jacobian.batch_of(batch_size))
    distiller = jacobian.distiller_of(jacobian.MODES[name], networks)
    if jacobian.MODES[name].given:
        labels = jacobian.labels_with_teacher(
            distiller, networks["teacher"], images, labels
        )
    step = tf.function(lambda: distiller.train_step((images, labels)))
    counted = multiply_adds(step.get_concrete_function())
    assert counted == batch_size * (cost - uncounted)


# === The tables of Jacobian matching ===


def seconds_of(names):
    """Mode number i takes i s, 2 i s and 3 i s; PyTorch twice as long."""
    times = {
        name: (i + 1) * np.array([3.0, 1.0, 2.0])
        for i, name in enumerate(names)
    }
    return times, {
        ("PyTorch", name): 2 * values
        for name, values in times.items()
        if jacobian.MODES[name].peer
    }


def test_shows_medians_ratios_bounds_and_targets(costs):
    times, peers = seconds_of(jacobian.MODES)
    bounds = jacobian.bounds_of(costs)
    table = jacobian.time_table(times | peers, bounds, has_targets=True)
    assert "| tfkd / PyTorch |" in table.splitlines()[0]
    rows = {row[0]: row[1:] for row in cells(table)}
    no_target = ["2000.0", "1.00", "1.00", "1.00", "", "4000.0", "0.50"]
    assert rows["ce"] == no_target
    assert rows["kd"][:5] == ["4000.0", "2.00", "2.00", "1.87", "1.95"]
    assert rows["kd"][5:] == ["8000.0", "0.50"]
    targets = {name: row[4] for name, row in rows.items()}
    assert targets == {
        "ce": "",
        "kd": "1.95",
        "activations": "",
        "label": "4.40",
        "top": "4.40",
        "projection": "4.40",
        "label, teacher given": "2.60",
        "label, teacher given, a quarter": "1.50",
        "norm penalty": "2.60",
        "all outputs": "24.06",  # 1.15 times 20.9255
        "activations, attention": "",
        "label, frozen": "",
        "attention alone": "1.00",
    }
    # "activations" is the third mode, attention the eleventh.
    alone = ["", "8.00", "8.00", "0.82", "1.00", "", ""]
    assert rows["attention alone"] == alone
    assert rows["label, frozen"][-2:] == ["", ""]  # only in tfkd


def test_without_pytorch_and_targets_their_cells_are_left_out(costs):
    times, _ = seconds_of(jacobian.MODES)
    bounds = jacobian.bounds_of(costs)
    table = jacobian.time_table(times, bounds, has_targets=False)
    assert "PyTorch" not in table
    assert {row[5] for row in cells(table)} == {""}


def test_memory_is_above_that_of_the_small_batch():
    peaks = {"ce": [200e6, 300e6], "label": [250e6, 550e6]}
    assert cells(jacobian.memory_table(peaks, has_target=True)) == [
        ["ce", "100", "1.00", ""],
        ["label", "300", "3.00", "3.50"],
    ]
    rows = cells(jacobian.memory_table(peaks, has_target=False))
    assert {row[3] for row in rows} == {""}


def test_peak_memory_is_that_of_the_function_alone():
    """100 MB more, whatever this process holds."""
    held = np.ones(20_000_000)
    small, large = (memory.peak(np.ones, n) for n in (10, 12_500_010))
    assert large - small == pytest.approx(100e6, rel=0.05)
    assert small < held.nbytes


def test_the_smoke_run_prints_all_tables(capsys, monkeypatch):
    names = ("ce", "activations", "label, teacher given, a quarter")
    for name in {*jacobian.MODES} - {*names, "activations, attention"}:
        monkeypatch.delitem(jacobian.MODES, name)
    asked = []
    monkeypatch.setattr(
        memory, "peak", lambda *args: asked.append(args) or len(asked)
    )
    monkeypatch.setattr(jacobian.importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["--table", "jacobian", "--smoke"]) == 0
    out = capsys.readouterr().out
    sections = out.split("\n\n")
    assert sections[0] == "Batch 4"
    rows = cells(sections[1])
    assert [row[0] for row in rows] == [*jacobian.MODES, "attention alone"]
    assert all(float(row[1]) > 0 for row in rows[:-1])
    assert sections[2] == "Peak memory, batch 4 above 2"
    assert [row[1:] for row in asked] == [
        (name, 0.0625, size) for name in ("ce", "label") for size in (2, 4)
    ]


def test_a_given_teacher_is_the_one_that_the_step_would_have_seen():
    losses = {}
    for name in ("label", "label, teacher given"):
        networks = jacobian.networks_of(0.0625)
        step = jacobian.step_of(jacobian.MODES[name], networks, 4)
        losses[name] = [step() for _ in range(2)]
    assert losses["label"][0] != losses["label"][1]
    # Kept in float16.
    np.testing.assert_allclose(*losses.values(), rtol=1e-3)
