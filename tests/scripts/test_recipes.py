"""Tests of the recipes of the papers on transport and on KD2M."""

import importlib
import itertools
import json
import pathlib
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from prepared import mocked, photograph, prepare

import tfkd

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

from recipes import (
    compression_elsewhere,
    compression_variants,
    kd2m,
    learning,
    model_compression,
    representation_compression,
    representation_transfer,
)
from recipes.runs import Runs
from recipes.table import overridden, required, with_seed
from recipes.workers import missing

TABLES = {
    table.name: table
    for module in (
        kd2m,
        representation_transfer,
        representation_compression,
        model_compression,
        compression_variants,
        compression_elsewhere,
    )
    for table in module.TABLES
}
SCALES = ("small", "full")


def _runs(name, scale):
    """All runs of a table with seed 0, those that it needs included."""
    configs = [with_seed(cell.config, 0) for cell in TABLES[name].cells(scale)]
    return [run for config in configs for run in (*required(config), config)]


def _only_missing(tmp_path, *configs):
    return set(missing(Runs(tmp_path), list(itertools.chain(*configs))))


def _computed(tmp_path, config, **changes):
    """The results of a run, with some settings changed everywhere in it."""

    def change(key, value):
        return changes.get(key, value)

    config = overridden(with_seed(config, 0), change)
    runs = Runs(tmp_path / "runs")
    for one in (*required(config), config):
        runs.compute(one)
    return runs.read(config)["results"]


def _one_convolution(*, include_top, weights, input_tensor):
    """What stands in for a network of keras.applications."""
    maps = keras.layers.Conv2D(4, 3, activation="relu")(input_tensor)
    return keras.Model(
        keras.utils.get_source_inputs(input_tensor)[0], maps, name="resnet101"
    )


def _config(name, row, column):
    for cell in TABLES[name].cells("full"):
        if (cell.row, cell.column) == (row, column):
            return cell.config
    raise AssertionError(f"{name} has no cell {row}, {column}")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_configurations_are_json_of_tasks_and_networks_that_exist(name, scale):
    for run in _runs(name, scale):
        assert json.loads(json.dumps(run)) == run
        module, function = run["task"].split(".")
        assert callable(
            getattr(importlib.import_module(f"recipes.{module}"), function)
        )
        if "width" in run:
            assert run["network"] in tfkd.models.NAMES
        for part in run.get("method", "ce").split("+"):
            assert part in tfkd.methods.NAMES


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_each_cell_is_there_once(name, scale):
    cells = [(c.row, c.column) for c in TABLES[name].cells(scale)]
    assert cells
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("name", TABLES)
def test_published_figures_have_a_full_cell(name):
    cells = {(c.row, c.column) for c in TABLES[name].cells("full")}
    without = set(TABLES[name].published) - cells
    if name == "representation-2":
        # ResNet-1001 has 256 features, ResNet-56 64.
        expected = {
            ("identity", "CIFAR-10 L → M"),
            ("identity", "CIFAR-100 L → M"),
        }
        assert without == expected
    else:
        assert not without


@pytest.mark.parametrize("name", TABLES)
def test_claims_are_of_cells(name):
    table = TABLES[name]
    cells = {
        scale: {(c.row, c.column) for c in table.cells(scale)}
        for scale in SCALES
    }
    for claim in table.claims:
        judged = {
            scale: [pair for pair in claim.pairs if {*pair} <= cells[scale]]
            for scale in SCALES
        }
        assert judged["full"], claim.text
        assert judged["small"], claim.text


@pytest.mark.parametrize(
    ("name", "row", "column", "figure"),
    [
        ("kd2m-1", "JW2 (E)", "CIFAR-10", 86.60),
        ("kd2m-1", "student", "CIFAR-100", 56.66),
        ("representation-1", "uniform", "Cars196", 91.49),
        ("representation-1", "L2-SP", "Dogs120", 77.05),
        ("representation-2", "KD", "CIFAR-100 W → M", 75.6),
        ("compression-1", "FSP", "vgg13 → vgg8", 70.23),
        ("compression-1", "REMD+KD", "resnet32x4 → resnet8x4", 76.06),
        ("compression-2", "AB+KD", "wrn-40-2 → wrn-16-2", 70.27),
        ("compression-3", "output of stage 4", "IPOT", 73.27),
        ("compression-4", "CC", "top-5 error", 10.83),
        ("compression-5", "PKT", "resnet32x4 → resnet8x4", 90.77),
        (
            "compression-7",
            "transport 0.9, KD 1",
            "resnet32x4 → shufflenet-v2",
            76.78,
        ),
    ],
)
def test_figures_are_those_of_the_papers(name, row, column, figure):
    assert TABLES[name].published[row, column] == figure


def test_tables_share_their_runs(tmp_path):
    first = _only_missing(tmp_path, _runs("representation-1", "small"))
    for name in ("representation-figure2", "representation-figure3"):
        assert _only_missing(tmp_path, _runs(name, "small")) <= first
    first = _only_missing(tmp_path, _runs("compression-1", "small"))
    others = {
        name: len(_only_missing(tmp_path, _runs(name, "small")) - first)
        for name in ("compression-2", "compression-4", "compression-7")
    }
    # AT, FitNet, RKD with KD and all three; SP and CC; two weights of 0.9.
    assert others == {
        "compression-2": 4,
        "compression-4": 2,
        "compression-7": 2,
    }


@pytest.mark.parametrize(
    ("name", "row", "column", "data", "changes"),
    [
        (
            *("kd2m-1", "W2 (G)", "SVHN", "svhn_cropped"),
            {"network": "resnet18-cifar"},
        ),
        (
            *("representation-2", "optimal transport", "CIFAR-10 W → S"),
            *("cifar10", {"network": "resnet20"}),
        ),
        # It has a stage before the main one.
        ("compression-1", "AB", "vgg13 → vgg8", "cifar100", {}),
        ("compression-2", "IPOT+CRD+KD", "vgg13 → vgg8", "cifar100", {}),
        (
            *("compression-5", "RKD+KD", "wrn-40-2 → wrn-16-2"),
            *("svhn_cropped", {"network": "wrn-16-2"}),
        ),
    ],
)
def test_a_full_run_takes_a_step(
    name, row, column, data, changes, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = _config(name, row, column)
    assert config["data"] == data
    with mocked(data, tmp_path, 200 if data == "cifar100" else 40):
        results = _computed(
            tmp_path,
            config,
            **{"steps": 1, "batch_size": 4, "width": 0.125, **changes},
        )
    assert results["top-1 error"] == pytest.approx(100 - results["accuracy"])
    assert 0 <= results["top-5 error"] <= results["top-1 error"] <= 100


def test_a_full_run_of_photographs_takes_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    images = [(photograph(n), n % 3) for n in range(30)]
    parts = {"train": images, "validation": images[:4]}
    prepare("imagenet2012", tmp_path, parts, version="5.1.0")
    results = _computed(
        tmp_path,
        _config("compression-4", "IPOT+KD", "top-1 error"),
        steps=1,
        batch_size=4,
        width=0.125,
        image_size=64,
    )
    # Of three classes, the right one is among five.
    assert results["top-5 error"] == 0
    assert 0 <= results["top-1 error"] <= 100


def test_a_full_run_of_fine_tuning_takes_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    # The real one takes a minute here, and is built below.
    monkeypatch.setattr(keras.applications, "ResNet101", _one_convolution)
    images = [(photograph(n), n % 3) for n in range(30)]
    prepare("stanford_dogs", tmp_path, {"train": images, "test": images[:6]})
    results = _computed(
        tmp_path,
        _config("representation-1", "none", "Dogs120"),
        steps=1,
        batch_size=4,
        image_size=64,
        images=4,
        weights=None,
    )
    assert 0 <= results["accuracy"] <= 100


def test_the_pretrained_network_has_the_layers_and_its_own_units(tmp_path):
    config = _config("representation-1", "L2-SP", "Dogs120")
    start = {**config["start"], "weights": None, "image_size": 32}
    runs = Runs(tmp_path)
    runs.compute(start)
    network = runs.network(start)
    names = {layer.name for layer in network.layers} | {"features"}
    assert set(config["layers"]) <= names
    assert set(representation_transfer.FULL_COMPARED) <= names
    red = tf.constant([255.0, 0.0, 0.0])
    standardised = (red - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    turned = keras.Model(network.input, network.get_layer("blue_first").output)
    # Blue, green, red, minus their means over ImageNet.
    np.testing.assert_allclose(
        turned(tf.broadcast_to(standardised, [1, 32, 32, 3]))[0, 0, 0],
        [-103.939, -116.779, 255.0 - 123.68],
        rtol=1e-5,
    )


def test_training_begins_with_the_first_pass_whatever_came_before():
    config = {
        **{"data": "digits", "batch_size": 8, "seed": 3, "steps": 4},
        **{"examples_per_class": 2, "optimizer": "adam", "drops": []},
        "learning_rate": 1e-3,
    }
    seen = []
    trainer = types.SimpleNamespace(
        compile=lambda *args, **kwargs: None,
        fit=lambda train, **kwargs: seen.append(order(train)),
    )

    def order(train):
        return next(train.as_numpy_iterator())[1]["index"].tolist()

    dataset = learning.load(config)
    first, second = order(dataset.train), order(dataset.train)
    assert first != second
    learning.fit(trainer, dataset, config)
    learning.fit(trainer, learning.load(config), config)
    assert seen == [first, first]


def test_scores_are_shares_of_the_test_images():
    """A network that always ranks the classes 0, 1, ... 9."""
    network = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer="zeros"),
        ]
    )
    network.layers[-1].bias.assign(np.arange(10, 0, -1))
    config = {"data": "digits", "batch_size": 8}
    test = tfkd.data.load("digits", batch_size=500).test
    labels = np.concatenate([y.numpy() for _, y in test])
    scores = learning.scores(network, config)
    expected = {
        "accuracy": 100 * np.mean(labels == 0),
        "top-1 error": 100 * np.mean(labels != 0),
        "top-5 error": 100 * np.mean(labels >= 5),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value), name
    assert scores["validation"] == pytest.approx(10, abs=1)
    on_test = {**config, "validation_from": "test"}
    assert learning.scores(network, on_test) == {
        name: scores[name] for name in expected
    }
