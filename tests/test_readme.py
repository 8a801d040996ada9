"""What the README shows, runs; what it lists, is all there is."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from prepared import photograph

import tfkd
from tfkd.trace import Trace

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _code(start):
    """The first Python block with this text."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if start in block)


def test_the_ten_lines_run(tmp_path, monkeypatch):
    """As printed, but for one epoch and in another folder."""
    (tmp_path / "saved_models").mkdir()
    teacher = tfkd.models.build(
        "vgg9", num_classes=10, input_shape=(32, 32, 1), width=0.0625
    )
    teacher.save(tmp_path / "saved_models" / "teacher.keras")
    monkeypatch.chdir(tmp_path)
    code = _code("distiller.fit").replace("epochs=100", "epochs=1, verbose=0")
    names = {}
    exec(compile(code, "README", "exec"), names)
    exported = tf.saved_model.load(tmp_path / "saved_models" / "student")
    x = np.ones([3, 32, 32, 1], "float32")
    np.testing.assert_allclose(
        exported.serve(x), names["student"](x), rtol=1e-4, atol=1e-5
    )


def test_the_example_of_keeping_a_teacher_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    student, teacher = (
        tfkd.models.build(
            name, num_classes=10, input_shape=(32, 32, 1), width=0.0625
        )
        for name in ("vgg4", "vgg9")
    )
    names = {"tfkd": tfkd, "student": student, "teacher": teacher}
    exec(compile(_code("with_teacher"), "README", "exec"), names)
    assert len(list((tmp_path / "tfkd").iterdir())) == 1
    record = next(iter(names["train"]))[1]
    assert set(record) == {"label", "index", "teacher"}


def test_the_example_of_another_input_has_the_jacobian_of_the_whole():
    large_teacher = tfkd.models.build(
        "vgg4", num_classes=10, input_shape=(64, 64, 1), width=0.0625
    )
    names = {"keras": keras, "large_teacher": large_teacher}
    exec(compile(_code("Resizing"), "README", "exec"), names)
    x = tf.random.normal([2, 32, 32, 1])
    trace = Trace(names["wrapped"], x, differentiable=True)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = large_teacher(tf.image.resize(x / 16, [64, 64]))[:, 3]
    np.testing.assert_allclose(
        trace.input_gradient(lambda trace: trace.outputs[:, 3]),
        tape.gradient(logits, x),
        rtol=1e-4,
        atol=1e-7,
    )


def test_the_example_of_photographs_runs(tmp_path, monkeypatch):
    for path in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "birds" / path).mkdir(parents=True)
        for i in range(6 if path.startswith("train") else 1):
            file = tmp_path / "birds" / path / f"{i}.jpg"
            file.write_bytes(photograph(i))
    monkeypatch.chdir(tmp_path)
    names = {"tfkd": tfkd}
    exec(compile(_code("average_views"), "README", "exec"), names)
    probabilities = np.exp(names["logits"])
    assert probabilities.shape == (2, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)


def test_the_example_of_a_loss_works():
    names = {"keras": keras, "tf": tf}
    exec(compile(_code("AbsoluteError"), "README", "exec"), names)
    loss = names["AbsoluteError"]()
    y_true, y_pred = np.array([[1.0, 2.0]]), np.array([[0.0, 5.0]])
    assert float(loss(y_true, y_pred)) == 4.0


def test_the_table_of_methods_says_what_the_library_says():
    """Each row in the words of `methods.describe`, and in its order."""
    section = README.split("## Methods")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[\w+-]+` \|.*) \|$", section, re.MULTILINE)
    described = [
        tuple(cell.strip().strip("`") for cell in row.split("|"))
        for row in rows
    ]
    assert described == [
        tuple(tfkd.methods.describe(name)) for name in tfkd.methods.NAMES
    ]


def test_the_table_of_losses_is_complete():
    section = README.split("## Where and how")[1].split("\n## ")[0]
    names = set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE))
    assert names == {*tfkd.losses.__all__} - {"DistributionLoss"}


def test_the_example_of_stages_trains_the_paraphraser():
    student, teacher = (
        tfkd.models.build(
            name, num_classes=10, input_shape=(32, 32, 1), width=0.0625
        )
        for name in ("vgg4", "vgg9")
    )
    names = {
        "tfkd": tfkd,
        "student": student,
        "teacher": teacher,
        "data": tfkd.data.load("digits", batch_size=32, examples_per_class=2),
        "label_loss": keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        ),
    }
    code = _code("method.stages")
    fast = 'epochs=1, verbose=0 * getattr(stage, "epochs", 100)'
    code = code.replace('epochs=getattr(stage, "epochs", 100)', fast)
    exec(compile(code, "README", "exec"), names)
    (match,) = names["method"].matches
    assert int(match.paraphraser.steps) == 1


def test_the_examples_of_transfer_run():
    """Another label space, and the own start with a new head."""
    backbone, teacher = (
        tfkd.models.build(
            name, num_classes=10, input_shape=(32, 32, 1), width=0.0625
        )
        for name in ("vgg4", "vgg9")
    )
    names = {
        "tfkd": tfkd,
        "student": tfkd.models.with_head(backbone, num_classes=5),
        "teacher": teacher,
        "backbone": backbone,
        "train": tf.data.Dataset.from_tensors(
            (np.ones([2, 32, 32, 1], "float32"), np.array([0, 4]))
        ),
        "label_loss": keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        ),
    }
    code = _code("source_head=True").replace("(train)", "(train, verbose=0)")
    exec(compile(code, "README", "exec"), names)
    assert names["transferer"].source_head.units == 10
    assert names["student"].output_shape == (None, 5)
    exec(compile(_code('reference="start"'), "README", "exec"), names)
    assert names["transferer"].matches[1].where == "kernels, new: logits"


def test_the_table_of_networks_is_complete():
    section = README.split("## Networks")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    names = re.findall(r"`([\w-]+)`", " ".join(rows))
    assert sorted(names) == sorted(tfkd.models.NAMES)


def test_the_list_of_data_is_complete():
    section = README.split("## Data")[1].split("\n## ")[0].split("```")[0]
    names = set(re.findall(r"`([a-z0-9_]+(?::FOLDER)?)`", section))
    assert names - {"train", "test", "validation"} == {*tfkd.data.NAMES}


def test_the_example_of_an_export_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tfkd.data.load("digits", batch_size=16)
    names = {
        "tfkd": tfkd,
        "data": data,
        "images": next(iter(data.train))[0],
        "student": tfkd.models.build(
            "vgg4", num_classes=10, input_shape=(32, 32, 1), width=0.0625
        ),
    }
    exec(compile(_code("export_student"), "README", "exec"), names)
    folder = tmp_path / "saved_models" / "student"
    assert {path.name for path in folder.iterdir()} == {
        *(tfkd.export.FORMATS[name] for name in names["artefacts"]),
        "preprocessing.json",
    }
    for name in tfkd.export.FORMATS:
        assert f"| `{name}` | `{tfkd.export.FORMATS[name]}" in README


@pytest.mark.parametrize("name", ["jacobian-1", "jacobian-2"])
def test_the_papers_tables_are_those_of_the_results(name):
    """Means and deviations, row by row and column by column."""
    results = (ROOT / "scripts" / "recipes" / "RESULTS.md").read_text()
    theirs = _table(results[results.index(f"## {name}: ") :])
    ours = _table(README[README.index(f"`reproduce.py {name}`;") :])
    assert len(ours) > 2
    columns = [theirs[0].index(column) for column in ours[0][1:]]
    rows = {row[0]: row for row in theirs}
    for row in ours[1:]:
        kept = [_number(rows[row[0]][column]) for column in columns]
        assert [_number(cell) for cell in row[1:]] == kept


def _table(text):
    """The first table of a Markdown text, rows of cells, without the rule."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [row for row in rows if not row[0].startswith("---")]


def _number(cell):
    """A cell without the paper's figure."""
    return cell.partition(" (")[0]
