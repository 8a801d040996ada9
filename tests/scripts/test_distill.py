"""Tests of scripts/distill.py."""

import csv
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import refusals
import tensorflow as tf

import tfkd
from tfkd import data
from tfkd.export import predict

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import common
import distill

TINY = ["--smoke", "--epochs", "2", "--examples-per-class", "2"]


@pytest.fixture(scope="module", autouse=True)
def saved_models(tmp_path_factory):
    """A folder that stands in for saved_models of the repository."""
    folder = tmp_path_factory.mktemp("repository") / "saved_models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "SAVED_MODELS", folder)
        patch.setattr(common, "TIMING_SECONDS", 0.01)
        yield folder


@pytest.fixture(scope="module")
def run(saved_models, tmp_path_factory):
    """The folder of one small run: two methods, two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = distill.main(
        [
            *TINY,
            "--epochs",
            "3",
            *("--method", "ce", "activations+jacobian"),
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


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def read_history(folder):
    with (folder / "history.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder):
    """Relative path -> bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(argv, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(distill.main, [*TINY, *argv], capsys)


# === Protocols ===


@pytest.fixture(scope="module")
def crd_run(saved_models, tmp_path_factory):
    """The folder of a small run by the common benchmark's protocol."""
    folder = tmp_path_factory.mktemp("runs") / "crd"
    argv = [
        *("--protocol", "crd", "--smoke", "--epochs", "4"),
        *("--method", "ce", "ab", "--teacher", "vgg4", "--student", "vgg4"),
        *("--output", str(folder)),
    ]
    assert distill.main(argv) == 0
    return folder


def test_crd_has_defaults_of_its_own(crd_run):
    options = read_config(crd_run)["options"]
    assert options["batch_size"] == 64
    assert options["learning_rate"] == 0.05
    assert options["examples_per_class"] is None
    # Those of --smoke come last.
    assert options["student_width"] == 0.0625


def test_crd_drops_the_rate_in_the_main_stage_alone(crd_run):
    rates = [
        (row["method"], row["stage"], float(row["learning_rate"]))
        for row in read_history(crd_run)
    ]
    # After 5/8, 6/8 and 7/8 of the steps; the rate is that of the next step.
    main = [0.05, 0.05, 5e-4, 5e-5]
    expected = [("ce", "", rate) for rate in main]
    expected += [("ab", "ab", 0.05), *(("ab", "", rate) for rate in main)]
    for ours, theirs in zip(rates, expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


def test_crd_reports_the_last_epoch_and_the_best(crd_run):
    rows = [row for row in read_history(crd_run) if row["method"] == "ce"]
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    report = (crd_run / "report.md").read_text()
    header, _, teacher, ce, _ = [
        line for line in report.splitlines() if line.startswith("|")
    ][:5]
    assert "last epoch" in header
    assert "best epoch" in header
    cells = [cell.strip() for cell in ce.strip("|").split("|")]
    assert cells[:3] == [
        "ce",
        common.percent(accuracies[-1]),
        common.percent(max(accuracies)),
    ]
    assert teacher.split("|")[3].strip() == ""
    assert "test images chose it" in report
    assert "test images chose nothing" not in report
    student = read_config(crd_run)["student"]
    assert "validation_accuracy" not in student
    assert student["best_test_accuracy"] >= student["test_accuracy"]


def test_crd_trains_on_augmented_images_and_all_of_them(monkeypatch):
    asked = []
    load = data.load

    def keep(name, **settings):
        asked.append(settings)
        return load(name, **settings)

    monkeypatch.setattr(data, "load", keep)
    common.load_data("digits", protocol="crd", batch_size=8)
    common.load_data("digits", batch_size=8)
    assert asked == [
        {"batch_size": 8, "augment": True, "validation_from": "test"},
        {"batch_size": 8},
    ]


def test_an_option_goes_before_the_protocols(no_training, saved_models):
    parser = distill._parser()
    options = parser.parse(
        ["--protocol", "crd", "--epochs", "7", "--learning-rate", "1"], {}
    )
    assert (options.epochs, options.learning_rate) == (7, 1.0)
    assert (options.student, options.teacher) == ("resnet8x4", "resnet32x4")


# === The list ===


def test_lists_the_methods_and_runs_none(no_training, capsys):
    with pytest.raises(SystemExit) as stopped:
        distill.main(["--list"])
    assert stopped.value.code == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "paper", "matches", "weight", "needs"]
    for line, name in zip(lines, tfkd.methods.NAMES, strict=True):
        cells = [cell for cell in re.split("  +", line) if cell]
        assert cells == [cell for cell in tfkd.methods.describe(name) if cell]


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
        "curves.png",
    }
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_config_holds_every_option(run):
    assert read_config(run)["options"] == {
        "dataset": "digits",
        "data_dir": None,
        "download": False,
        "image_size": None,
        "skip_corrupt": False,
        "epochs": 3,
        "stage_epochs": 1,
        "batch_size": 25,
        "learning_rate": 5e-3,
        "examples_per_class": 2,
        "method": ["ce", "activations+jacobian"],
        "seeds": [3, 4],
        "student": "vgg4",
        "student_width": 0.0625,
        "teacher": "vgg9",
        "teacher_width": 0.0625,
        "teacher_epochs": 1,
        "strategy": "none",
        "output": str(run),
        "overwrite": False,
        "resume": False,
        "protocol": "short",
        "smoke": True,
    }


def test_history_has_a_row_for_every_epoch_of_every_run(run):
    rows = read_history(run)
    assert [(r["method"], r["seed"], r["epoch"]) for r in rows] == [
        (method, seed, epoch)
        for method in ("ce", "activations+jacobian")
        for seed in "34"
        for epoch in "123"
    ]
    terms = {"activations", "jacobian"}
    expected = {
        "method",
        "seed",
        "epoch",
        "learning_rate",
        "loss",
        "label_loss",
        "accuracy",
        "validation_accuracy",
        "validation_loss",
    }
    assert set(rows[0]) == expected | terms
    for row in rows:
        filled = {term for term in terms if row[term]}
        assert filled == terms & set(row["method"].split("+"))
        # All weights are 1.
        total = sum(float(row[key]) for key in ("label_loss", *filled))
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)


def test_learning_rate_falls_to_zero(run):
    rates = [float(row["learning_rate"]) for row in read_history(run)[:3]]
    # One step an epoch: 5e-3 (1 + cos(pi epoch / 3)) / 2.
    np.testing.assert_allclose(rates, [3.75e-3, 1.25e-3, 0.0], atol=1e-8)


def test_students_of_a_seed_start_alike(run):
    """Before its first step a student is what the seed alone made of it."""
    first = {}
    for row in read_history(run):
        if row["epoch"] == "1":
            key = row["seed"]
            first.setdefault(key, []).append(float(row["label_loss"]))
    # One step an epoch, so the first epoch's loss is that of the new student.
    for values in first.values():
        np.testing.assert_allclose(values, values[0], rtol=1e-4)
    assert first["3"] != first["4"]


def test_chosen_student_is_the_best_by_validation(run):
    final = [row for row in read_history(run) if row["epoch"] == "3"]
    best = max(
        final,
        key=lambda row: (
            float(row["validation_accuracy"]),
            -float(row["validation_loss"]),
        ),
    )
    chosen = read_config(run)["student"]
    assert chosen["method"] == best["method"]
    assert chosen["seed"] == int(best["seed"])
    assert chosen["validation_accuracy"] == float(best["validation_accuracy"])


def test_student_file_has_the_reported_accuracies(run):
    student = keras.saving.load_model(run / "student.keras")
    chosen = read_config(run)["student"]
    digits = data.load("digits", batch_size=512)
    for split in ("validation", "test"):
        x, y = next(iter(getattr(digits, split)))
        correct = np.argmax(student(x, training=False), axis=-1) == y
        assert np.mean(correct) == chosen[f"{split}_accuracy"]


def test_exports_agree_with_the_student_file(run):
    x, _ = next(iter(data.load("digits", batch_size=32).test))
    student = keras.saving.load_model(run / "student.keras")
    truth = keras.ops.convert_to_numpy(student(x, training=False))
    config = read_config(run)
    for name in ("saved_model", "student.tflite"):
        np.testing.assert_allclose(predict(run / name, x), truth, atol=1e-4)
    for export in config["exports"].values():
        assert export["max_difference"] <= 1e-4
        assert export["label_agreement"] == 1.0


def test_report_has_a_row_for_the_teacher_and_every_method(run):
    report = (run / "report.md").read_text()
    rows = re.findall(r"^\| ([\w+]+) +\|(.*)\|$", report, re.MULTILINE)
    cells = {name: row.split("|") for name, row in rows}
    assert list(cells)[1:4] == [
        "teacher",
        "ce",
        "activations+jacobian",
    ]
    config = read_config(run)
    final = [row for row in read_history(run) if row["epoch"] == "3"]
    for method in config["options"]["method"]:
        values = [
            100 * float(row["validation_accuracy"])
            for row in final
            if row["method"] == method
        ]
        # The sample's deviation of two values is their distance / sqrt 2.
        deviation = abs(values[0] - values[1]) / np.sqrt(2)
        shown = f"{np.mean(values):.1f} ± {deviation:.1f}"
        assert cells[method][1].strip() == shown
        # 3x3 convolutions 1-4-8-32, scale and shift of each, 4 statistics
        # counted as parameters by Keras, 33 x 10 for the logits.
        parameters = 9 * (4 + 4 * 8 + 8 * 32) + 4 * (4 + 8 + 32) + 33 * 10
        assert cells[method][2].strip() == f"{parameters:,}"
    accuracy = 100 * config["teacher"]["test_accuracy"]
    assert cells["teacher"][0].strip() == f"{accuracy:.1f}"


def test_stages_before_the_main_one_and_indices(tmp_path, monkeypatch):
    """The student of ft stays as it is while its paraphraser is trained."""
    before, matches = [], []
    fit = common.fit

    def spy(distiller, dataset, **options):
        student = distiller.student
        weights = [v.numpy() for v in student.variables]
        rows = fit(distiller, dataset, **options)
        before.append(
            all(
                np.array_equal(one, two)
                for one, two in zip(weights, student.variables, strict=True)
            )
        )
        matches.append([match.name for match in distiller.matches])
        return rows

    monkeypatch.setattr(common, "fit", spy)
    folder = tmp_path / "run"
    argv = ["--method", "ft", "crd+kd", "--output", str(folder)]
    assert distill.main([*TINY, *argv, "--stage-epochs", "3"]) == 0
    expected = [["paraphraser_match"], ["ft"], ["crd", "kd"]]
    assert matches[-3:] == expected
    assert before[-3:] == [True, False, False]
    rows = [
        (row["method"], row["stage"], row["epoch"])
        for row in read_history(folder)
    ]
    assert rows == [
        *(("ft", "ft", str(epoch)) for epoch in (1, 2, 3)),
        *(("ft", "", str(epoch)) for epoch in (1, 2)),
        *(("crd+kd", "", str(epoch)) for epoch in (1, 2)),
    ]


def test_curves_are_a_picture(run):
    content = (run / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width = int.from_bytes(content[16:20], "big")
    assert width > 1000


# === The teacher ===


def test_teacher_is_kept_and_used_again(
    run, saved_models, tmp_path, capsys, monkeypatch
):
    (file,) = saved_models.glob("teacher-vgg9-*.keras")
    assert file.name.startswith("teacher-vgg9-digits-width0.0625-epochs1-seed0")
    before, written = file.read_bytes(), file.stat().st_mtime_ns

    def fail(*args, **kwargs):
        raise AssertionError("The teacher was trained again.")

    monkeypatch.setattr(common, "train", fail)
    monkeypatch.chdir(tmp_path)
    assert distill.main([*TINY, "--method", "ce"]) == 0
    assert file.read_bytes() == before
    assert file.stat().st_mtime_ns == written
    # Without --output the run is beside it, wherever the script is started.
    (folder,) = saved_models.glob("distill-digits-*")
    assert read_config(folder)["teacher"] == read_config(run)["teacher"]
    assert not any(tmp_path.iterdir())
    assert "training the teacher" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"network": "vgg4"},
        {"width": 0.125},
        {"epochs": 2},
        {"batch_size": 32},
        {"learning_rate": 1e-3},
        {"seed": 1},
    ],
)
def test_teachers_of_other_settings_have_other_files(change):
    digits = data.load("digits", batch_size=64)
    recipe = common.RECIPE
    path = common.teacher_path(recipe, digits)
    assert path == common.teacher_path(recipe._replace(), digits)
    assert path != common.teacher_path(recipe._replace(**change), digits)


@pytest.mark.parametrize("change", [{"name": "idx:a/digits"}, {"mean": (1.0,)}])
def test_teachers_of_other_data_have_other_files(change):
    digits = data.load("digits", batch_size=64)
    other = data.Dataset(**{**vars(digits), **change})
    path = common.teacher_path(common.RECIPE, digits)
    assert path != common.teacher_path(common.RECIPE, other)


def make_teacher(shape=(32, 32, 1), classes=10, last=None):
    x = keras.Input(shape)
    y = keras.layers.GlobalAveragePooling2D()(x)
    y = keras.layers.Dense(classes, name="logits")(y)
    if last:
        y = last(y)
    return keras.Model(x, y, name="given")


def test_teacher_may_be_a_file(run, tmp_path, saved_models):
    teacher = make_teacher()
    teacher.save(tmp_path / "mine.keras")
    before = contents(saved_models)
    argv = ["--teacher", str(tmp_path / "mine.keras"), "--method", "kd"]
    argv += ["--output", str(tmp_path / "run"), "--examples-per-class", "all"]
    assert distill.main([*TINY, *argv, "--epochs", "1"]) == 0
    x, y = next(iter(data.load("digits", batch_size=512).test))
    correct = np.argmax(teacher(x), axis=-1) == y
    config = read_config(tmp_path / "run")
    assert config["teacher"]["test_accuracy"] == np.mean(correct)
    assert config["options"]["examples_per_class"] is None
    assert contents(saved_models) == before


# === Failures on the way ===


@pytest.fixture
def untrained(monkeypatch):
    """Leaves students as they are built, to save the time."""
    row = {"epoch": 1, "validation_accuracy": 0.1, "validation_loss": 2.3}
    monkeypatch.setattr(common, "fit", lambda *args, **kwargs: [row])


def test_exit_code_tells_that_an_export_disagrees(
    run, tmp_path, capsys, monkeypatch, untrained
):
    monkeypatch.setattr(distill, "TOLERANCE", -1.0)
    argv = ["--method", "ce", "--output", str(tmp_path / "run")]
    assert distill.main([*TINY, *argv]) == 1
    assert "differs from its student" in capsys.readouterr().err


@pytest.mark.parametrize(
    "where", ["_train_students", "export_student", "_draw"]
)
def test_interrupted_run_leaves_the_old_one_whole(
    run, capsys, monkeypatch, untrained, where
):
    before = contents(run.parent)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, where, stop)
    argv = [*TINY, "--method", "ce", "--output", str(run), "--overwrite"]
    assert distill.main(argv) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert contents(run.parent) == before


def test_overwrite_replaces_a_run(run, tmp_path, untrained):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text('{"script": "distill"}')
    (folder / "notes.txt").write_text("of the old run")
    argv = ["--method", "ce", "--output", str(folder), "--overwrite"]
    assert distill.main([*TINY, *argv]) == 0
    assert not (folder / "notes.txt").exists()
    assert read_config(folder)["options"]["method"] == ["ce"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


# === Bad input ===


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "ce", "idot+kd"], r"'idot'.*'ce'.*Did you mean 'ipot'"),
        (["--method", "ce", "ce"], r"--method: \['ce'\] given twice"),
        (["--student", "vgg5"], r"--student.*'vgg4', 'vgg9'.*Did you mean"),
        (["--teacher", "vgg7"], r"--teacher.*'vgg4', 'vgg9'.*Did you mean"),
        (["--dataset", "digit"], r"--dataset.*'digits'"),
        (["--dataset", "idx:/no/such/folder"], "/no/such/folder"),
        (["--epochs", "0"], r"--epochs: expected an integer >= 1, not '0'"),
        (["--stage-epochs", "0"], r"--stage-epochs: expected an integer >= 1"),
        (["--epochs", "1.5"], r"--epochs: expected an integer >= 1"),
        (["--teacher-epochs", "-1"], r"--teacher-epochs: expected"),
        (["--seeds", "0", "-1"], r"--seeds: expected an integer from 0 to"),
        (["--seeds", "4294967296"], r"--seeds: expected an integer from 0 to"),
        (["--seeds", "1", "1"], r"--seeds: \[1\] given twice"),
        (["--student-width", "0"], r"--student-width: expected a finite"),
        (["--teacher-width", "nan"], r"--teacher-width: expected a finite"),
        (["--learning-rate", "inf"], r"--learning-rate: expected a finite"),
        (["--batch-size", "0"], r"--batch-size: expected an integer >= 1"),
        (["--examples-per-class", "0"], r"--examples-per-class: expected"),
        (["--examples-per-class", "5000"], r"--examples-per-class.*at most"),
        (["--teacher", "no/file.keras"], r"--teacher: No file 'no/file.keras'"),
        (["--method", "jacobian", "--bogus"], r"unrecognized.*--bogus"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    argv, message, capsys, tmp_path, no_training
):
    line = refused([*argv, "--output", str(tmp_path / "run")], capsys)
    assert re.search(message, line), line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: make_teacher((28, 28, 1)), r"\(None, 28, 28, 1\).*32, 32, 1"),
        (lambda: make_teacher((32, 32, 3)), r"\(None, 32, 32, 3\).*32, 32, 1"),
        (lambda: make_teacher(classes=7), r"\(None, 7\).*10 classes"),
        (lambda: make_teacher(last=keras.layers.Softmax()), "ends in softmax"),
        (
            lambda: make_teacher(last=keras.layers.Lambda(lambda y: 2 * y)),
            "no Keras model that can be loaded",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    teacher, message, capsys, tmp_path, no_training
):
    teacher().save(tmp_path / "teacher.keras")
    before = contents(tmp_path)
    argv = ["--teacher", str(tmp_path / "teacher.keras")]
    line = refused([*argv, "--output", str(tmp_path / "run")], capsys)
    assert re.search(message, line), line
    assert contents(tmp_path) == before


def test_file_that_is_no_model_is_refused(tmp_path, capsys, no_training):
    (tmp_path / "teacher.keras").write_text("a letter")
    argv = ["--teacher", str(tmp_path / "teacher.keras")]
    line = refused([*argv, "--output", str(tmp_path / "run")], capsys)
    assert "no Keras model that can be loaded" in line
    assert not (tmp_path / "run").exists()


def test_settings_of_a_teacher_that_is_not_trained_are_refused(
    tmp_path, capsys, no_training
):
    make_teacher().save(tmp_path / "teacher.keras")
    argv = ["--teacher", str(tmp_path / "teacher.keras")]
    line = refused([*argv, "--teacher-epochs", "7"], capsys)
    assert "--teacher-epochs is for a teacher to train" in line


def test_network_that_does_not_fit_into_memory_is_refused(
    tmp_path, capsys, no_training, monkeypatch
):
    def fail(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM\nat [3, 3]")

    monkeypatch.setattr(distill, "_build_student", fail)
    line = refused(["--output", str(tmp_path / "run")], capsys)
    assert "--student: too large: OOM at [3, 3]" in line
    assert not any(tmp_path.iterdir())


def test_method_that_does_not_fit_the_teacher_is_refused(
    tmp_path, capsys, no_training
):
    make_teacher().save(tmp_path / "teacher.keras")
    argv = ["--teacher", str(tmp_path / "teacher.keras"), "--method", "ipot"]
    line = refused([*argv, "--output", str(tmp_path / "run")], capsys)
    assert "no common layers named stage1" in line


def test_another_run_needs_overwrite(run, capsys, no_training):
    before = contents(run)
    line = refused(["--output", str(run)], capsys)
    assert "holds another run" in line
    assert "--overwrite" in line
    assert contents(run) == before


@pytest.mark.parametrize("config", [None, "[]", '{"script": "other"}', "{"])
def test_folder_that_is_no_run_is_never_replaced(
    tmp_path, capsys, no_training, config
):
    (tmp_path / "thesis.tex").write_text("mine")
    if config:
        (tmp_path / "config.json").write_text(config)
    before = contents(tmp_path)
    for flags in ([], ["--overwrite"]):
        line = refused(["--output", str(tmp_path), *flags], capsys)
        assert "never replaced" in line
    assert contents(tmp_path) == before


def test_output_that_cannot_be_written_is_refused(
    tmp_path, capsys, no_training
):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused(["--output", str(path)], capsys)
        assert "--output" in line
    assert contents(tmp_path) == {"file": b"mine"}


def test_folder_filled_meanwhile_is_not_replaced_and_the_run_is_kept(tmp_path):
    def write_run():
        with common.run_folder(tmp_path / "run", "distill", False) as folder:
            (folder / "report.md").write_text("new")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "thesis.tex").write_text("mine")

    with pytest.raises(FileExistsError, match=r"something else.*run-2"):
        write_run()
    assert contents(tmp_path) == {
        "run/thesis.tex": b"mine",
        "run-2/report.md": b"new",
    }


def test_defaults_are_those_of_the_comparison():
    options = distill._parser().parse_args([])
    assert set(options.method) == {
        "ce",
        "activations",
        "activations+jacobian",
        "kd",
        "ipot+kd",
    }
    assert options.examples_per_class == 10
    assert len(options.seeds) == 3
    assert set(tfkd.methods.NAMES) >= {"ce", "kd", "ipot"}


def test_diverged_training_writes_and_keeps_nothing(tmp_path, capsys):
    argv = [*TINY, "--method", "ce", "--learning-rate", "1e30"]
    output = tmp_path / "run"
    assert distill.main([*argv, "--output", str(output)]) == 1
    assert "not finite" in capsys.readouterr().err
    assert not output.exists()


def test_teacher_of_integers_is_refused(tmp_path, capsys):
    inputs = keras.Input((32, 32, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(10)(x))
    teacher.save(tmp_path / "bytes.keras")
    argv = ["--output", str(tmp_path / "run")]
    argv += ["--teacher", str(tmp_path / "bytes.keras")]
    assert "takes uint8" in refused(argv, capsys)
