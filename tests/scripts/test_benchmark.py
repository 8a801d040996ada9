"""The benchmark's table: every method, and ratios to the first."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import benchmark


def test_prints_every_method_against_cross_entropy(capsys, monkeypatch):
    """Steps that take 1, 2, 3, ... ms by a clock of our own."""
    now = {"ms": 0}
    order = {method: i + 1 for i, method in enumerate(benchmark.METHODS)}
    calls = []

    def step_of(method, batch_size, width):
        def step():
            calls.append(method)
            # The first run of each, which is not timed, is slow.
            slow = 1000 * (calls.count(method) == 1)
            now["ms"] += order[method] + slow

        return step

    monkeypatch.setattr(benchmark, "step_of", step_of)
    monkeypatch.setattr(
        benchmark.time, "perf_counter", lambda: now["ms"] / 1000
    )
    assert benchmark.main(["--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines]
    assert rows == [
        [method, f"{i:.1f}", f"{i:.2f}"] for method, i in order.items()
    ]


def test_a_step_trains(monkeypatch):
    losses = []
    train = benchmark.tfkd.Distiller.train_on_batch

    def spy(self, *args, **kwargs):
        losses.append(train(self, *args, **kwargs, return_dict=True)["loss"])

    monkeypatch.setattr(benchmark.tfkd.Distiller, "train_on_batch", spy)
    step = benchmark.step_of("kd", 4, 0.0625)
    step()
    assert len(losses) == 2
    assert losses[0] != losses[1]
