"""Tests of scripts/reproduce.py and of the recipes of Jacobian matching."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import sys
import threading
import time

import fake_tasks
import keras
import killed
import numpy as np
import pytest
import tensorflow as tf
from prepared import mocked, photograph, prepare

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import reproduce
from recipes import (
    comparison,
    jacobian_matching,
    jacobian_tasks,
    jacobian_transfer,
    learning,
    report,
    runs,
    workers,
)
from recipes.runs import Runs
from recipes.table import Cell, overridden, required, with_seed

import tfkd

fake_tasks.offered()
TABLES = {
    table.name: table
    for table in (*jacobian_matching.TABLES, *jacobian_transfer.TABLES)
}


# === Numbers ===


def test_a_claim_holds_from_two_standard_errors_on():
    """Differences 1, 3, 2: mean 2, deviation 1, standard error 1/sqrt 3."""
    judged = comparison.verdict([2.0, 5.0, 3.0], [1.0, 2.0, 1.0])
    assert judged == (2.0, pytest.approx(1 / math.sqrt(3)), "holds")
    # What is left of equal ones after rounding.
    judged = comparison.verdict([0.3] * 2, [0.1 + 0.2] * 2)
    assert judged.words == "undecided"
    judged = comparison.verdict([1.0, 2.0, 1.0], [2.0, 5.0, 3.0])
    assert judged == (-2.0, pytest.approx(3**-0.5), "does not hold")


def test_what_decides_nothing_is_undecided():
    """Differences 4 and 0: mean 2, standard error 2; then 1 and 3: 1."""
    assert comparison.verdict([4, 0], [0, 0]) == (2.0, 2.0, "undecided")
    assert comparison.verdict([1, 3], [0, 0]) == (2.0, 1.0, "holds")
    assert comparison.verdict([1, 2], [1, 2]) == (0.0, 0.0, "undecided")
    difference, error, words = comparison.verdict([5.0], [1.0])
    assert (difference, words) == (4.0, "undecided")
    assert math.isnan(error)


def test_the_deviation_is_the_samples():
    assert comparison.mean_and_deviation([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert comparison.mean_and_deviation([70.25]) == "70.2"


# === Runs that are kept ===


def test_a_run_is_computed_once(tmp_path):
    kept = Runs(tmp_path / "runs")
    log = tmp_path / "log"
    config = fake_tasks.config("one", log, seed=2, value=40)
    assert kept.read(config) is None
    threads = [
        threading.Thread(target=kept.compute, args=(config,)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_tasks.begun(log)) == 1
    found = kept.read(config)
    assert found["config"] == config
    assert found["results"] == {"accuracy": 42}
    kept.compute({**config, "value": 41})
    assert len(fake_tasks.begun(log)) == 2
    assert kept.read(config)["results"] == {"accuracy": 42}


def test_the_key_is_of_all_settings_and_the_version(tmp_path, monkeypatch):
    kept = Runs(tmp_path)
    config = {"task": "a.b", "seed": 0, "teacher": {"task": "a.c", "seed": 0}}
    keys = {
        kept.key(config),
        kept.key({**config, "seed": 1}),
        kept.key({**config, "teacher": {"task": "a.c", "seed": 1}}),
    }
    assert kept.key(dict(reversed(config.items()))) in keys
    monkeypatch.setattr(runs.tfkd, "__version__", "another")
    assert len({*keys, kept.key(config)}) == 4


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": {}}'])
def test_a_damaged_run_is_named(text, tmp_path):
    kept = Runs(tmp_path)
    path = tmp_path / f"{kept.key({'seed': 0})}.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"'{path}' is damaged")):
        kept.read({"seed": 0})


def test_a_run_whose_network_is_gone_is_missing(tmp_path):
    """A teacher's; that of a run that keeps none is not asked for."""
    kept, log = Runs(tmp_path / "runs"), tmp_path / "log"
    teacher = fake_tasks.config("teacher", log, seed=0, value=1)
    other = fake_tasks.config("other", log, seed=0, value=1)
    kept.folder.mkdir()
    kept.network_path(teacher).write_bytes(b"")
    for config in (teacher, other):
        kept.compute(config)
    assert not workers.missing(kept, [teacher, other])
    kept.network_path(teacher).unlink()
    assert list(workers.missing(kept, [teacher, other]).values()) == [teacher]


def test_a_run_says_on_what_and_when_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda text: "1999-12-31")
    kept = Runs(tmp_path / "runs")
    config = fake_tasks.config("one", tmp_path / "log", seed=0, value=1)
    kept.compute(config)
    made = kept.read(config)["made"]
    assert f"tensorflow {tf.__version__}" in made
    assert made.endswith("; 1999-12-31")
    plan = [(Cell("a", "b", config), [config])]
    text = report.Outcome(TABLES["jacobian-5"], plan, kept).text("small")
    assert f"\n- {made}\n" in text


def test_what_is_no_number_is_not_kept(tmp_path):
    config = fake_tasks.config("nan", tmp_path / "log", seed=0, value=math.nan)
    kept = Runs(tmp_path / "runs")
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.compute(config)
    assert not list(kept.folder.glob("*.json"))


def test_a_run_without_a_result_is_named(tmp_path):
    kept = Runs(tmp_path / "runs")
    config = fake_tasks.config("one", tmp_path / "log", seed=0, value=1)
    kept.compute(config)
    plan = [(Cell("a", "b", config, "another"), [config])]
    message = re.escape(f"{kept.key(config)}.json' has no 'another'")
    with pytest.raises(ValueError, match=message):
        report.Outcome(TABLES["jacobian-5"], plan, kept)


def test_a_run_that_is_that_of_every_seed_has_no_deviation(tmp_path):
    """A teacher; a student of seeds 0 and 1 has 70 and 71."""
    kept = Runs(tmp_path / "runs")
    fixed, *seeded = (
        fake_tasks.config(name, tmp_path / "log", seed=seed, value=70)
        for name, seed in (("teacher", 0), ("student", 0), ("student", 1))
    )
    for config in (fixed, *seeded):
        kept.compute(config)
    plan = [
        (Cell("teacher", "here", fixed), [fixed, fixed]),
        (Cell("student", "here", seeded[0]), seeded),
    ]
    outcome = report.Outcome(TABLES["jacobian-5"], plan, kept)
    assert body(f"{outcome.body()}\n") == [
        ["teacher", "70.0"],
        ["student", "70.5 ± 0.7"],
    ]


def test_seeds_that_are_missing_are_counted(tmp_path):
    kept = Runs(tmp_path / "runs")
    seeded = [
        fake_tasks.config("student", tmp_path / "log", seed=seed, value=70)
        for seed in range(3)
    ]
    plan = [(Cell("student", "here", seeded[0]), seeded)]
    for count, text in ((1, "70.0 (1 of 3 seeds)"), (3, "71.0 ± 1.0")):
        for config in seeded[:count]:
            kept.compute(config)
        outcome = report.Outcome(TABLES["jacobian-5"], plan, kept)
        assert body(f"{outcome.body()}\n") == [["student", text]]
        assert outcome.complete == (count == 3)


def test_a_table_with_failed_runs_leaves_the_results_as_they_are(
    tmp_path, monkeypatch, capsys
):
    log = tmp_path / "log"
    configs = {
        "good": fake_tasks.config("good", log, value=1),
        "bad": fake_tasks.config("bad", log, error="No."),
    }
    cells = [Cell("a", column, config) for column, config in configs.items()]
    table = dataclasses.replace(
        TABLES["jacobian-5"], published={}, claims=[], cells=lambda _: cells
    )
    monkeypatch.setitem(reproduce.TABLES, "jacobian-5", table)
    monkeypatch.setattr(reproduce, "_RESULTS", tmp_path / "results")
    monkeypatch.setattr(workers, "_WORKER", fake_tasks.WORKER)
    runs_folder = str(tmp_path / "runs")
    assert reproduce.main(["jacobian-5", "--runs", runs_folder]) == 1
    assert "RESULTS.md stays as it was" in capsys.readouterr().out
    assert not list((tmp_path / "results").iterdir())
    argv = ["jacobian-5", "--runs", runs_folder, "--output", str(tmp_path)]
    assert reproduce.main(argv) == 1
    assert "| failed |" in (tmp_path / "RESULTS.md").read_text()


# === Workers ===


@pytest.fixture
def fake_worker(monkeypatch):
    monkeypatch.setattr(workers, "_WORKER", fake_tasks.WORKER)


@pytest.mark.usefixtures("fake_worker")
def test_needs_come_first_and_what_failed_is_told(tmp_path):
    log = tmp_path / "log"

    def config(name, **settings):
        return fake_tasks.config(name, log, seed=0, **settings)

    good = config("teacher", value=70)
    bad = config("spoilt", error="No data here.")
    configs = [
        config("student", teacher=good),
        config("hopeless", teacher=bad),
        config("alone", value=5),
    ]
    kept = Runs(tmp_path / "runs")
    told = []
    failed = workers.compute(
        kept, configs, jobs=1, report=lambda *over: told.append(over)
    )
    assert failed == 2
    names = [name for name, _ in fake_tasks.begun(log)]
    assert sorted(names) == ["alone-0", "spoilt-0", "student-0", "teacher-0"]
    assert names.index("teacher-0") < names.index("student-0")
    assert [over for _, _, over, _ in told] == [1, 2, 3, 4, 5]
    errors = {one["network"]: error for one, error, _, _ in told}
    assert errors.pop("spoilt").endswith("ValueError: No data here.\n")
    assert errors.pop("hopeless") == "what it needs failed"
    assert errors == dict.fromkeys(["teacher", "student", "alone"])
    assert kept.read(configs[0])["results"] == {"accuracy": 70}
    assert list(workers.missing(kept, configs).values()) == [bad, configs[1]]


@pytest.mark.usefixtures("fake_worker")
def test_a_worker_that_dies_fails_its_run_alone(tmp_path):
    log, kept = tmp_path / "log", Runs(tmp_path / "runs")
    big = fake_tasks.config("big", log, seed=3, die=True)
    small = fake_tasks.config("small", log, seed=3, value=1)
    told = {}

    def tell(config, error, over, total):
        told[config["network"]] = error

    assert workers.compute(kept, [big, small], jobs=1, report=tell) == 1
    assert "process ended (code -9); out of memory?" in told["big"]
    assert told["small"] is None
    assert kept.read(small)["results"] == {"accuracy": 4}


def test_a_killed_command_loses_nothing_and_computes_nothing_twice(tmp_path):
    """A teacher, then 4 cells with 2 seeds each, two at a time."""
    log, kept = tmp_path / "log", Runs(tmp_path / "runs")
    argv = ["fake", "--seeds", "2", "--jobs", "2"]
    argv += ["--runs", str(kept.folder), "--output", str(tmp_path / "out")]
    run = fake_tasks.reproduce
    assert killed.run(run, log, argv, kill_after=4) == -9
    first = fake_tasks.begun(log)
    processes = {pid for _, pid in first}
    assert len(processes) == 2
    wait_for_the_end(processes)
    before = contents(kept.folder)
    assert 4 <= len(before) < 9
    assert killed.run(run, log, argv) == 0
    after = contents(kept.folder)
    assert len(after) == 9
    assert after.items() >= before.items()
    done = {
        "{network}-{seed}".format(**json.loads(text)["config"])
        for _, text in before.values()
    }
    second = [name for name, _ in fake_tasks.begun(log)[len(first) :]]
    assert len(second) == len(set(second)) == 9 - len(done)
    assert not done & set(second)
    written = (tmp_path / "out" / "RESULTS.md").read_text()
    assert body(written) == [[row, *["100.5 ± 0.7"] * 2] for row in "ab"]
    wait_for_the_end({pid for _, pid in fake_tasks.begun(log)})


def wait_for_the_end(processes):
    """Fails if one still runs after 10 seconds."""
    for _ in range(200):
        if not any(map(running, processes)):
            return
        time.sleep(0.05)
    raise AssertionError("A worker outlived its parent.")


def running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def contents(folder):
    """Time and text of each run's file."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_text())
        for path in folder.glob("[!.]*.json")
    }


def body(text, number=0):
    """The rows of a Markdown text's table, without header and rule."""
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in tables[number].splitlines()[2:]
    ]


# === The command ===


def test_list_tells_of_every_table_what_it_costs(capsys):
    assert reproduce.main(["--list"]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    assert len(parts) == len(reproduce.TABLES)
    for table, part in zip(reproduce.TABLES.values(), parts, strict=True):
        assert part.startswith(f"{table.name}: {table.title} (")
        assert f"reproduce.py {table.name} --scale small" in part
        words = " ".join(part.split())
        assert table.minutes > 0
        assert f" {table.minutes} minutes of one thread here" in words
    (part,) = (part for part in parts if part.startswith("jacobian-1: "))
    # Six losses, of which one has no teacher, and ours; 4 columns, 5 seeds.
    assert "141 trainings, " in " ".join(part.split())
    # In the full form 6 columns, and 5 more where the statistics move.
    assert "211 trainings of 500 to 195,500 steps" in " ".join(part.split())
    assert "|  5.69 | 13.90 | 20.03 | 37.60 | 44.92 | 54.28 |" in part


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say which tables"),
        (["jacobian-9"], "no table 'jacobian-9'; there are compression-1,"),
        (["jacobian-1", "jacobian-1"], "given twice"),
        (["jacobian-1", "--steps", "3"], "argument --output: needed with"),
        (["jacobian-1", "--scale", "full"], "argument --output: needed with"),
        (["jacobian-1", "--seeds", "4"], "argument --output: needed with"),
        (
            ["jacobian-1", "--dataset", f"{learning.FASHION}=b"],
            "argument --output: needed with",
        ),
        (["jacobian-1", "--dataset", "a=b"], "'a' is not of these tables, but"),
        (["kd2m-1", "--dataset", "digits=b", "digits=c"], "given twice"),
        (["jacobian-1", "--dataset", "a"], "expected OLD=NEW, not 'a'"),
    ],
)
def test_bad_input_ends_with_a_line(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(argv)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_results_wait_for_another_process(tmp_path):
    """What another writes meanwhile is kept."""
    table = TABLES["jacobian-5"]
    outcome = report.Outcome(table, [], Runs(tmp_path / "runs"))
    outcome.table = dataclasses.replace(table, draw=drawn)
    writer = threading.Thread(target=outcome.write, args=(tmp_path, "small"))
    with report._alone(tmp_path):
        writer.start()
        writer.join(0.3)
        (tmp_path / "RESULTS.md").write_text("# Head\n\n## other: x\n\nKept.\n")
        assert writer.is_alive()
    writer.join()
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## other: x\n\nKept.\n" in text
    assert "## jacobian-5: " in text


def drawn(path, outcome):
    path.write_bytes(b"")


# === Runs of a step ===


def run_of(table, row, column, scale):
    for cell in TABLES[table].cells(scale):
        if (cell.row, cell.column) == (row, column):
            return with_seed(cell.config, 0)
    raise AssertionError(f"{table} has no cell {row}, {column}.")


def of_scenes(config, *, folder, size):
    """A run on the scenes in a folder, shrunk; what it needs, too."""
    changed = {
        key: of_scenes(value, folder=folder, size=size)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }
    if config.get("data") == "folder:mit-scenes":
        changed["data"] = f"folder:{folder}"
    return {**changed, "image_size": size} if "data" in config else changed


def results(kept, config, **changes):
    """Of a run, with some settings changed everywhere in it."""
    config = overridden(config, lambda key, value: changes.get(key, value))
    for one in (*required(config), config):
        kept.compute(one)
    return kept.read(config)["results"]


def test_dropout_comes_after_each_pool():
    """With all kept it is the same network, with other seeds in each."""
    network = tfkd.models.build(
        "vgg4", num_classes=3, input_shape=(32, 32, 1), width=0.125
    )
    x = tf.random.stateless_normal([2, 32, 32, 1], (0, 0))
    changed = jacobian_tasks.with_dropout(network, 0.25, 7)
    dropouts = []
    for before, layer in itertools.pairwise(changed.layers):
        assert isinstance(before, keras.layers.MaxPooling2D) == isinstance(
            layer, keras.layers.Dropout
        )
        if isinstance(layer, keras.layers.Dropout):
            dropouts.append((layer.rate, layer.seed))
    assert dropouts == [(0.25, 7), (0.25, 8), (0.25, 9)]
    np.testing.assert_array_equal(changed(x), network(x))


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("jacobian-1", "CE + both", "all"),
        ("jacobian-2", "Jacobian 1", "0.4"),
    ],
)
def test_a_full_run_of_cifar_takes_a_step(
    table, row, column, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = run_of(table, row, column, "full")
    assert config["steps"] == 500 * 391
    assert config["drops"] == [0.8]
    with mocked("cifar100", tmp_path, 200):
        found = results(
            Runs(tmp_path / "runs"),
            config,
            width=0.25,
            batch_size=4,
            steps=1,
            draws=1,
        )
    assert 0 <= found["accuracy"] <= 100
    if table == "jacobian-2":
        assert found["noise 0"] == pytest.approx(found["accuracy"])
        assert 0 <= found[f"noise {column}"] <= 100


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of an ImageNet of 3 classes and of scenes of 2."""
    folder = tmp_path_factory.mktemp("photographs")
    images = [(photograph(n), n % 3) for n in range(30)]
    prepare(
        "imagenet2012",
        folder,
        {"train": images, "validation": images[:4]},
        version="5.1.0",
    )
    for part, count in (("train", 12), ("test", 2)):
        for name in ("bakery", "library"):
            (folder / "scenes" / part / name).mkdir(parents=True)
            for number in range(count):
                path = folder / "scenes" / part / name / f"{number}.jpg"
                path.write_bytes(photograph(4 * number))
    return folder


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("jacobian-3", "all three", "5"),
        ("jacobian-4", "test accuracy", "level 4"),
        ("jacobian-5", "test accuracy", "none"),
    ],
)
def test_a_full_run_of_transfer_takes_a_step(
    table, row, column, photographs, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(photographs))
    config = run_of(table, row, column, "full")
    images = 67 * int(config["examples_per_class"])
    assert config["steps"] == 75 * math.ceil(images / 8)
    found = results(
        Runs(photographs / "runs"),
        of_scenes(config, folder=photographs / "scenes", size=64),
        examples_per_class=2,
        width=0.25,
        batch_size=4,
        steps=1,
    )
    assert 0 <= found["accuracy"] <= 100
    assert found["reduction"] <= 100


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", TABLES)
def test_every_run_names_what_there_is(name, scale):
    """Tasks, networks and matches; published cells and claims have cells."""
    table = TABLES[name]
    cells = table.cells(scale)
    places = [cell[:2] for cell in cells]
    assert len(set(places)) == len(places)
    for cell in cells:
        config = with_seed(cell.config, 0)
        for run in (*required(config), config):
            assert json.loads(json.dumps(run)) == run
            assert callable(runs._task(run["task"]))
            assert run["network"] in tfkd.models.NAMES
        if "jacobian_at" in config:
            jacobian_tasks._match("jacobian", config)
    judged = [
        any(set(places) >= set(pair) for pair in claim.pairs)
        for claim in table.claims
    ]
    if scale == "full":
        assert set(places) >= set(table.published)
        assert all(judged)
    else:
        assert any(judged)


def test_the_full_forms_levels_have_maps_of_one_size():
    """56, 28, 14 and 7: in the first, s of table 5 is 56."""
    shape = {"input_shape": (224, 224, 3), "width": 0.125}
    student, teacher = (
        tfkd.models.build(name, num_classes=67, **shape)
        for name in ("vgg9", "resnet34")
    )
    for (ours, theirs), size in zip(
        run_of("jacobian-3", "CE", "5", "full")["at"],
        (56, 28, 14, 7),
        strict=True,
    ):
        maps = [
            network.get_layer(name).output.shape[1:3]
            for network, name in ((student, ours), (teacher, theirs))
        ]
        assert maps == [(size, size)] * 2


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [("jacobian-1", "CE", "all"), ("jacobian-3", "CE", "all")],
)
def test_the_rate_falls_where_the_paper_says(table, row, column):
    """After 400 of 500 epochs; after 40 and 60 of 75."""
    config = run_of(table, row, column, "full")
    rate = learning.optimizer(config)._learning_rate
    epochs, drops = {"jacobian-1": (500, [400])}.get(table, (75, [40, 60]))
    length = config["steps"] // epochs
    for number, epoch in enumerate([0, *drops]):
        begun = float(rate(tf.constant(epoch * length)))
        assert begun == pytest.approx(1e-3 * 0.1**number)
        if epoch:
            before = float(rate(tf.constant(epoch * length - 1)))
            assert before == pytest.approx(1e-2 * 0.1**number)
