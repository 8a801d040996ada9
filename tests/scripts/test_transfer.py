"""Tests of scripts/transfer.py."""

import csv
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import refusals

import tfkd
from tfkd import data

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import common
import prepared
import protocols
import transfer

TINY = ["--smoke", "--epochs", "2"]


@pytest.fixture(scope="module", autouse=True)
def saved_models(tmp_path_factory):
    """A folder that stands in for saved_models of the repository."""
    folder = tmp_path_factory.mktemp("repository") / "saved_models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "SAVED_MODELS", folder)
        yield folder


@pytest.fixture(scope="module")
def run(saved_models, tmp_path_factory):
    """The folder of one small run: two methods, two weights, two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = transfer.main(
        [
            *TINY,
            *("--methods", "scratch", "l2-sp"),
            *("--weights", "1e-2,10"),
            *("--seeds", "3", "4"),
            *("--output", str(folder)),
        ]
    )
    assert code == 0
    return folder


@pytest.fixture
def no_training(monkeypatch):
    """Makes training a failure of the test."""

    def fail(*args, **kwargs):
        raise AssertionError("Training began.")

    monkeypatch.setattr(common, "fit", fail)


@pytest.fixture
def seen(monkeypatch):
    """The trainers that the script fits, which leave students untrained."""
    trainers = []

    def fit(transferer, dataset, **options):
        trainers.append((transferer, dataset, options))
        return [{"epoch": 1}]

    monkeypatch.setattr(common, "fit", fit)
    return trainers


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def read_history(folder):
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def refused(argv, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(transfer.main, [*TINY, *argv], capsys)


# === A run ===


def test_writes_a_whole_run_and_nothing_beside_it(run):
    assert {path.name for path in run.iterdir()} == {
        "student.keras",
        "saved_model",
        "student.tflite",
        "preprocessing.json",
        "config.json",
        "history.csv",
        "report.md",
        "accuracies.png",
    }
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_every_weight_has_a_run_with_every_seed(run):
    runs = read_config(run)["runs"]
    assert [(r["method"], r["weight"], r["seed"]) for r in runs] == [
        ("scratch", None, 3),
        ("scratch", None, 4),
        ("l2-sp", 0.01, 3),
        ("l2-sp", 0.01, 4),
        ("l2-sp", 10.0, 3),
        ("l2-sp", 10.0, 4),
    ]
    rows = read_history(run)
    assert len(rows) == 2 * len(runs)
    terms = [row["l2-sp"] for row in rows]
    assert all(term == "" for term in terms[:4])
    assert all(float(term) > 0 for term in terms[4:])


def test_the_weight_is_chosen_by_validation(run):
    """By mean accuracy over seeds, then loss; its test accuracy is shown."""
    config, groups = read_config(run), {}
    for entry in config["runs"]:
        if entry["method"] == "l2-sp":
            groups.setdefault(entry["weight"], []).append(entry)
    best = max(
        groups.values(),
        key=lambda group: (
            np.mean([entry["validation_accuracy"] for entry in group]),
            -np.mean([entry["validation_loss"] for entry in group]),
        ),
    )
    values = [100 * entry["test_accuracy"] for entry in best]
    deviation = abs(values[0] - values[1]) / np.sqrt(2)
    shown = f"{np.mean(values):.1f} ± {deviation:.1f}"
    report = (run / "report.md").read_text()
    (row,) = re.findall(r"^\| l2-sp .*\|$", report, re.MULTILINE)
    assert row.split("|")[3].strip() == shown
    line = f"l2-sp, 2 per class: weight {best[0]['weight']:g} has the best"
    assert line in report


def test_the_student_of_the_best_run_is_written(run):
    config = read_config(run)
    best = max(
        config["runs"],
        key=lambda entry: (
            entry["validation_accuracy"],
            -entry["validation_loss"],
        ),
    )
    assert config["student"] == best
    student = keras.saving.load_model(run / "student.keras")
    digits = data.load("digits", batch_size=512, classes=[7, 8, 9])
    for split in ("validation", "test"):
        x, y = next(iter(getattr(digits, split)))
        correct = np.argmax(student(x, training=False), axis=-1) == y
        assert np.mean(correct) == best[f"{split}_accuracy"]
    for export in config["exports"].values():
        assert export["max_difference"] <= 1e-4


def test_thirds_of_the_digits_are_source_and_target(run, saved_models):
    """Without a word about classes; both in the same units."""
    config = read_config(run)
    assert config["options"]["source_classes"] == [0, 1, 2, 3, 4, 5, 6]
    assert config["target"]["class_names"] == list("789")
    (file,) = saved_models.glob("teacher-*.keras")
    assert config["source"] == str(file.resolve())
    source = data.load("digits", batch_size=64, classes=[0, 1, 2, 3, 4, 5, 6])
    recipe = common.RECIPE._replace(network="vgg4", width=0.0625, epochs=1)
    assert common.teacher_path(recipe, source) == file
    assert config["target"]["mean"] == list(source.mean)


# === What each method is ===


def test_methods_start_where_they_should(run, tmp_path, seen, saved_models):
    """From nothing, from the source network, or with it as a teacher."""
    methods = ["scratch", "finetune", "l2", "l2-sp", "lwf", "attention"]
    argv = [*TINY, "--output", str(tmp_path / "run"), "--methods", *methods]
    assert transfer.main(argv) == 0
    trainers = dict(zip(methods, (entry[0] for entry in seen), strict=True))
    (file,) = saved_models.glob("teacher-*.keras")
    kernel = keras.saving.load_model(file).get_layer("stem_conv").kernel.numpy()
    for method, trainer in trainers.items():
        assert isinstance(trainer, tfkd.Transferer)
        assert trainer.student.output_shape == (None, 3)
        starts = np.array_equal(
            trainer.student.get_layer("stem_conv").kernel, kernel
        )
        assert starts == (method in ("finetune", "l2", "l2-sp"))
        assert (trainer.reference is not None) == (method == "l2-sp")
        assert (trainer.source_head is not None) == (method == "lwf")
    _, dataset, options = seen[0]
    assert dataset.num_train == 6
    assert options == {
        "epochs": 2,
        "learning_rate": 5e-3,
        "protocol": "short",
        "kept": None,
    }


def test_layers_of_neurons_are_given(run, tmp_path, seen):
    argv = [*TINY, "--methods", "neuron-ot", "--layers", "stage1", "stage3"]
    argv += ["--output", str(tmp_path / "run")]
    assert transfer.main(argv) == 0
    ((trainer, _, _),) = seen
    assert trainer.matches[0].where == "stage1, stage3"


def test_the_source_may_be_a_file(run, tmp_path, seen):
    """Of other classes; all of the target's are then learned."""
    tfkd.models.build(
        "vgg4", num_classes=4, input_shape=(32, 32, 1), width=0.0625
    ).save(tmp_path / "source.keras")
    argv = ["--source", str(tmp_path / "source.keras"), "--methods", "lwf"]
    argv += ["--output", str(tmp_path / "run")]
    assert transfer.main([*TINY, *argv]) == 0
    ((trainer, dataset, _),) = seen
    assert trainer.source_head.units == 4
    assert dataset.num_classes == 10


def test_ten_crops_are_averaged(run, tmp_path, seen, monkeypatch):
    """Of the test split; validation has one crop."""
    digits = data.load("digits", batch_size=64, classes=[7, 8, 9])
    factors = np.float32([0.5, 1.5])[:, None, None, None]
    crops = digits.test.map(lambda x, y: (factors * x[:, None], y))
    monkeypatch.setattr(
        transfer,
        "_target_data",
        lambda *args: data.Dataset(**{**vars(digits), "test": crops}),
    )
    argv = [*TINY, "--ten-crop", "--methods", "scratch"]
    argv += ["--output", str(tmp_path / "run")]
    assert transfer.main(argv) == 0
    student = seen[0][0].student
    correct = []
    for x, y in digits.test:
        logits = [student(factor * x, training=False) for factor in (0.5, 1.5)]
        correct.extend(np.argmax(sum(logits), axis=-1) == y)
    (entry,) = read_config(tmp_path / "run")["runs"]
    np.testing.assert_allclose(entry["test_accuracy"], np.mean(correct))


def test_photographs_from_a_source_of_small_images(run, tmp_path, seen):
    """What is for one of the datasets alone does not trouble the other."""
    for path in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "photographs" / path
        folder.mkdir(parents=True)
        for number in range(10):
            content = prepared.photograph(number)
            (folder / f"{number}.jpg").write_bytes(content)
    argv = [*TINY, "--methods", "lwf", "neuron-ot", "--ten-crop", "--augment"]
    argv += [*("--dataset", f"folder:{tmp_path / 'photographs'}")]
    argv += [*("--source-dataset", "cifar10"), *("--image-size", "32")]
    argv += [*("--data-dir", str(tmp_path)), "--skip-corrupt"]
    argv += [*("--output", str(tmp_path / "run"))]
    with prepared.mocked("cifar10", tmp_path, 200):
        assert transfer.main(argv) == 0
        (_, source, _), (forgetless, target, _), _ = seen
        x, _ = next(iter(target.test))
        assert source.name == "cifar10"
    assert x.shape == (20, 10, 32, 32, 3)
    assert forgetless.source_head.units == 10
    assert len(read_config(tmp_path / "run")["runs"]) == 2


# === Protocols ===


@pytest.mark.parametrize(
    ("protocol", "steps", "rates"),
    [
        ("scenes", 75, {0: 1e-3, 39: 1e-3, 40: 1e-4, 59: 1e-4, 60: 1e-5}),
        ("finetune", 9000, {0: 1e-2, 5999: 1e-2, 6000: 1e-3, 8999: 1e-3}),
        (
            "finetune-long",
            16000,
            {0: 1e-2, 7999: 1e-2, 8000: 1e-3, 11999: 1e-3, 12000: 1e-4},
        ),
    ],
)
def test_rates_are_those_of_the_papers(protocol, steps, rates):
    protocol = protocols.TRANSFER[protocol]
    optimizer = protocol.optimizer(protocol.learning_rate, steps, False)
    assert (type(optimizer).__name__, optimizer.momentum) == ("SGD", 0.9)
    assert optimizer.weight_decay is None
    for step, rate in rates.items():
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(optimizer.learning_rate, rate, rtol=1e-5)


def test_protocols_set_length_and_batches(run, tmp_path, seen):
    """9000 steps of 64 images: 5 images are one step an epoch."""
    for protocol, epochs, batch in (("finetune", 9000, 64), ("scenes", 75, 8)):
        argv = ["--smoke", "--protocol", protocol, "--methods", "scratch"]
        options = transfer._parser().parse(argv[1:], transfer.SMOKE)
        assert options.batch_size == batch
        dataset = data.load(
            "digits", batch_size=batch, classes=[5], examples_per_class=5
        )
        assert transfer._epochs(options, dataset) == epochs


@pytest.mark.parametrize("protocol", ["short", "scenes", "finetune"])
def test_a_number_of_steps_makes_whole_epochs(run, tmp_path, seen, protocol):
    """6 images of 3 classes are 2 steps of 4 images."""
    argv = [*("--methods", "scratch"), *("--protocol", protocol)]
    argv += [*("--steps", "3"), *("--batch-size", "4")]
    argv += ["--smoke", *("--output", str(tmp_path / "run"))]
    assert transfer.main(argv) == 0
    ((_, _, options),) = seen
    assert options["epochs"] == 2


def test_defaults_compare_with_scratch_and_fine_tuning():
    options = transfer._parser().parse_args([])
    assert {"scratch", "finetune", "neuron-ot", "lwf"} <= set(options.methods)
    assert options.examples_per_class == [5, 10]
    assert len(options.seeds) == 3


# === Bad input ===


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "lwg"], r"'lwg'.*Did you mean 'lwf'"),
        (["--methods", "lwf", "lwf"], r"--methods: \['lwf'\] given twice"),
        (["--methods", "ft"], "'ft' has a stage before.*distill.py"),
        (["--methods", "jacobian"], 'target task.*of="top"'),
        (["--weights", "0.1,x"], "--weights: expected a finite number"),
        (["--weights", "0.1,0.1"], "a weight given twice"),
        (["--weights", "1", "--methods", "neuron-ot+l2"], "`weight` belongs"),
        (["--weights", "1", "--methods", "lwf"], "--weights: .*fine-tuning"),
        (["--layers", "stage1", "--methods", "l2"], r"--layers: .*neuron-\*"),
        (["--steps", "9"], "--steps: not allowed with argument --epochs"),
        (["--dataset", "folder:none"], "--dataset: No folder"),
        (["--methods", "neuron-ot", "--layers", "stag1"], "no layer 'stag1'"),
        (["--examples-per-class", "3", "3"], r"\[3\] given twice"),
        (["--examples-per-class", "500"], r"--examples-per-class.*at most"),
        (["--classes", "5", "11"], "--classes|classes"),
        (["--source", "vgg7"], r"--source.*'vgg4', 'vgg9'.*Did you mean"),
        (["--source", "no/file.keras"], "--source: No file"),
        (["--student", "vgg5"], r"--student.*Did you mean"),
        (["--dataset", "digit"], r"'digits'"),
        (["--ten-crop"], "ten_crop"),
        (["--protocol", "crd"], "invalid choice: 'crd'"),
        (["--seeds", "1", "1"], r"--seeds: \[1\] given twice"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    run, argv, message, capsys, tmp_path, no_training
):
    line = refused([*argv, "--output", str(tmp_path / "run")], capsys)
    assert re.search(message, line), line
    assert not any(tmp_path.iterdir())


def test_a_source_that_does_not_fit_is_refused(tmp_path, capsys, no_training):
    def refuse(source, *argv):
        source.save(tmp_path / "source.keras")
        given = ["--source", str(tmp_path / "source.keras"), *argv]
        return refused([*given, "--output", str(tmp_path / "run")], capsys)

    def network(shape, last=None):
        x = keras.Input(shape)
        y = keras.layers.GlobalAveragePooling2D(name="features")(x)
        y = keras.layers.Dense(4, activation=last)(y)
        return keras.Model(x, y, name="given")

    assert "(None, 28, 28, 1)" in refuse(network((28, 28, 1)))
    fits = (32, 32, 1)
    assert "ends in softmax" in refuse(
        network(fits, "softmax"), "--methods", "lwf"
    )
    assert "--source-epochs is for a source network to train" in refuse(
        network(fits), "--source-epochs", "7"
    )
    assert "has no layers named stage1" in refuse(
        network(fits), "--methods", "neuron-ot"
    )
