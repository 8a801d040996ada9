"""Distils a teacher into students by several methods and compares them.

Trains a teacher on the whole training split, or loads one; then students on
a few examples per class, each method with each seed. Prints a table, and
writes the student with the best validation accuracy, its exports and a
report to one folder. With --protocol crd the setting is that of the papers'
tables, which look at the test images instead.
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import common
import keras
import resuming
import strategies
from protocols import PROTOCOLS

import tfkd
from tfkd import models
from tfkd.export import export_student
from tfkd.strategies import is_chief

METHODS = ("ce", "activations", "activations+jacobian", "kd", "ipot+kd")
SMOKE = {
    "epochs": 5,
    "stage_epochs": 1,
    "seeds": [0],
    "teacher_epochs": 1,
    "teacher_width": 0.0625,
    "student_width": 0.0625,
}
# Between the logits of the student and of its exports.
TOLERANCE = 1e-4
_HEADER = ("parameters", "size", "images/s")


class Run(NamedTuple):
    """A network that has been trained.

    Attributes:
        method: Its method's name.
        seed: Of its weights, its examples and their order.
        network: The network.
        history: List of dicts, one an epoch.
        stages: The same of the stages before, with the stage's name.
        test: `common.Score` after the last epoch.
        validation: The same of the validation images; None where these are
            the test images.
        best: Highest test accuracy of its epochs, where the test images are
            looked at after each; else None.
    """

    method: str
    seed: int
    network: keras.Model
    history: list
    stages: list
    test: common.Score
    validation: common.Score | None
    best: float | None

    @property
    def choice(self):
        """The `common.Score` by which a run is chosen."""
        return self.validation or self.test


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0; 1 if a training diverged, an export disagrees with
        its student, or another run took the folder; 130 if interrupted.

    Raises:
        SystemExit: With code 2 on bad input, before any training.
    """
    parser = _parser()
    options = parser.parse(argv, SMOKE)
    if options.learning_rate is None:
        protocol = PROTOCOLS[options.protocol]
        options.learning_rate = protocol.rate_of(options.student)
    return common.run(parser, lambda: _distill(parser, options))


class _ListMethods(argparse.Action):
    """Prints the table of methods and ends the script."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        common.say(list_methods())
        parser.exit()


def list_methods():
    """What `tfkd.methods` describes, as a plain table."""
    rows = [tfkd.methods.describe(name) for name in tfkd.methods.NAMES]
    rows.insert(0, rows[0]._fields)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
    )


def _parser():
    parser = common.Parser(__doc__)
    common.add_training_arguments(parser, epochs=80, batch_size=25)
    common.add_reading_arguments(parser)
    add = parser.add_argument
    add(
        "--examples-per-class",
        type=common.count_or_all,
        default=10,
        metavar="N",
        help='training images of each class for the students, or "all"',
    )
    add(
        "--method",
        nargs="+",
        default=list(METHODS),
        help=f"any of {', '.join(tfkd.methods.NAMES)}, and sums of them",
    )
    add(
        "--stage-epochs",
        type=common.integer(1),
        default=30,
        metavar="N",
        help="passes over the training images in each stage before the main "
        "one, of methods that need some",
    )
    add(
        "--list",
        action=_ListMethods,
        help="print the methods with their papers and weights, and exit",
    )
    add(
        "--seeds",
        nargs="+",
        type=common.integer(0, 2**32 - 1),
        default=[0, 1, 2],
        metavar="SEED",
        help="each method trains one student with each seed",
    )
    add(
        "--student",
        default="vgg4",
        metavar="NETWORK",
        help=f"one of {', '.join(models.NAMES)}",
    )
    add(
        "--student-width",
        type=common.positive_number,
        default=0.25,
        metavar="FACTOR",
        help="on the channels of the student",
    )
    add(
        "--teacher",
        default=common.RECIPE.network,
        metavar="NETWORK|FILE",
        help="a network, trained once and kept in saved_models, or a .keras "
        "file such as train.py writes",
    )
    add(
        "--teacher-width",
        type=common.positive_number,
        default=common.RECIPE.width,
        metavar="FACTOR",
        help="on the channels of a teacher to train",
    )
    add(
        "--teacher-epochs",
        type=common.integer(1),
        default=common.RECIPE.epochs,
        metavar="N",
        help="epochs of a teacher to train",
    )
    strategies.add_argument(parser)
    common.add_output_arguments(
        parser,
        metavar="FOLDER",
        default="saved_models/distill-DATASET-TIME",
    )
    return parser


def _distill(parser, options):
    """Checks, trains, compares and writes; returns the exit code."""
    started = time.perf_counter()
    strategy = strategies.begin(parser, options)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    output = pathlib.Path(
        options.output
        or common.SAVED_MODELS
        / f"distill-{common.slug(options.dataset)}-{stamp}"
    )
    if resuming.is_complete(parser, options, "distill"):
        common.say(f"{output} is complete")
        return 0
    writing = (
        common.run_folder(output, "distill", options.overwrite)
        if is_chief(strategy)
        else strategies.nothing_kept()
    )
    with (
        resuming.keeping(
            parser, options, "distill", chief=is_chief(strategy)
        ) as kept,
        parser.opening("--output", writing) as folder,
    ):
        dataset, recipe, teacher_file = _prepare(parser, options)
        strategies.require_trained(parser, strategy, teacher_file)
        common.say(common.describe(dataset, options.protocol))
        if recipe and not teacher_file.exists():
            common.train_teacher(
                parser, "--teacher", recipe, dataset, teacher_file, kept
            )
        network = common.load_teacher(teacher_file)
        teacher = _measured(options, "teacher", network, dataset)
        common.say(f"teacher: {_accuracies(teacher)}, {teacher_file}")
        with strategy.scope():
            network = common.load_teacher(teacher_file)
        runs = _train_students(options, network, kept, strategy)
        if not is_chief(strategy):
            return 0
        chosen = max(
            runs,
            key=lambda run: (run.choice.accuracy, -run.choice.loss),
        )
        images, _ = next(
            iter(dataset.validation.rebatch(common.CHECKED_IMAGES))
        )
        with common.quiet():
            exports = export_student(
                chosen.network,
                folder,
                formats=common.EXPORT_FORMATS,
                check=images,
                class_names=dataset.class_names,
                normalization=(dataset.mean, dataset.std),
                white=dataset.white,
            )
        table = _table(teacher, chosen, runs, dataset)
        config = {
            "script": "distill",
            "options": vars(options),
            "versions": common.versions(),
            "dataset": {
                "name": dataset.name,
                "class_names": dataset.class_names,
                "mean": dataset.mean,
                "std": dataset.std,
            },
            "teacher": {
                "file": str(teacher_file.resolve()),
                **_summary(teacher),
            },
            "student": _summary(chosen),
            "exports": common.summarize_exports(exports),
            "seconds": round(time.perf_counter() - started, 1),
        }
        common.write_json(folder / "config.json", config)
        common.write_history(
            folder / "history.csv",
            [
                {"method": run.method, "seed": run.seed, **row}
                for run in runs
                for row in (*run.stages, *run.history)
            ],
        )
        report = _report(config, table, exports)
        (folder / "report.md").write_text(report, encoding="utf-8")
        _draw(folder / "curves.png", options, teacher, runs)
    common.say(f"\n{table}\n\n{common.exports_table(exports)}\n")
    common.say(
        f"chosen by {_chosen_by(options)}: {chosen.method}, seed "
        f"{chosen.seed}, {_accuracies(chosen)}\n"
        f"wrote {output} in {config['seconds']:.0f} s"
    )
    return common.check_exports(parser, exports, TOLERANCE)


def _prepare(parser, options):
    """Refuses bad input.

    Returns:
        The dataset, the `common.Recipe` of a teacher to train or None, and
        the path of the teacher's file.
    """
    common.refuse_repeated(parser, "--method", options.method)
    common.refuse_repeated(parser, "--seeds", options.seeds)
    recipe = None
    if options.teacher in models.NAMES:
        recipe = common.RECIPE._replace(
            network=options.teacher,
            width=options.teacher_width,
            epochs=options.teacher_epochs,
            learning_rate=PROTOCOLS[options.protocol].rate_of(options.teacher),
            protocol=options.protocol,
        )
    with parser.checking("--dataset"):
        dataset = common.load_data(
            options.dataset,
            protocol=options.protocol,
            batch_size=common.RECIPE.batch_size,
            seed=common.RECIPE.seed,
            **common.reading(options),
        )
    with parser.checking("--examples-per-class"):
        students_data = _students_data(options, options.seeds[0])
    with parser.checking("--teacher"):
        if recipe:
            teacher_file = common.teacher_path(recipe, dataset)
        else:
            teacher_file = _given_file(parser, options)
        if not recipe:
            teacher = common.load_teacher(teacher_file)
        elif teacher_file.exists():
            teacher = common.kept_teacher(teacher_file)
        else:
            teacher = common.build(recipe, dataset)
        common.check_teacher(teacher, dataset)
    with parser.checking("--student"):
        student = _build_student(options, students_data)
    for method in options.method:
        with parser.checking("--method"):
            list(_distillers(method, options, students_data, student, teacher))
    return dataset, recipe, teacher_file


def _given_file(parser, options):
    """The path that --teacher gives."""
    path = common.given_teacher(options.teacher)
    for option in ("teacher_width", "teacher_epochs"):
        if getattr(options, option) != parser.get_default(option):
            raise ValueError(
                f"--{option.replace('_', '-')} is for a teacher to train, "
                "not for one from a file."
            )
    return path


def _students_data(options, seed):
    return common.load_data(
        options.dataset,
        protocol=options.protocol,
        batch_size=options.batch_size,
        examples_per_class=options.examples_per_class,
        index=any(map(_needs_index, options.method)),
        seed=seed,
        **common.reading(options),
    )


def _build_student(options, dataset):
    return models.build(
        options.student,
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        width=options.student_width,
        synchronized=options.strategy != "none",
    )


def _needs_index(method):
    """Whether a method has to know its training images one by one."""
    return "crd" in method.split("+")


def _distillers(method, options, dataset, student, teacher):
    """Makes the Distiller of each stage of a method, when it is due.

    Yields:
        The stage's name, None for the main stage, which is the last; its
        epochs; and its Distiller.
    """
    known = {}
    if _needs_index(method):
        known["crd"] = {"labels": common.training_labels(dataset)}
    method = tfkd.methods.build(
        method, student=student, teacher=teacher, **known
    )
    networks = {"student": student, "teacher": teacher}
    for stage in method.stages:
        distiller = tfkd.Distiller(matches=stage, **networks)
        yield stage.name, options.stage_epochs, distiller
    yield None, options.epochs, tfkd.Distiller(matches=method, **networks)


def _train_students(options, teacher, kept, strategy):
    """The `Run` of each method with each seed; prints a line for each.

    Args:
        options: An `argparse.Namespace`.
        teacher: A Keras model.
        kept: Folder of all checkpoints of the run, or None.
        strategy: The `tf.distribute.Strategy` of the teacher, by which to
            train.

    Returns:
        A list.
    """
    plan = [(m, seed) for m in options.method for seed in options.seeds]
    longest = max(map(len, options.method))
    runs = []
    for number, (method, seed) in enumerate(plan, start=1):
        start = time.perf_counter()
        common.say(
            f"{number:3}/{len(plan)}  {method.ljust(longest)}  seed {seed}  ",
            end="",
        )
        keras.utils.set_random_seed(seed)
        dataset = _students_data(options, seed)
        with strategy.scope():
            student, stages, history = _train_student(
                method, seed, options, dataset, teacher, kept
            )
        student = strategies.on_one_device(student)
        run = _measured(
            options, method, student, dataset, seed, history, stages
        )
        runs.append(run)
        seconds = time.perf_counter() - start
        common.say(f"  {_accuracies(run)}  {seconds:5.1f} s")
    return runs


def _train_student(method, seed, options, dataset, teacher, kept):
    """The student, and the history of the stages before and of the last."""
    student = _build_student(options, dataset)
    stages, history = [], []
    for stage, epochs, distiller in _distillers(
        method, options, dataset, student, teacher
    ):
        history = common.fit(
            distiller,
            dataset,
            epochs=epochs,
            learning_rate=options.learning_rate,
            protocol=options.protocol,
            stage=stage is not None,
            progress=common.dot,
            kept=kept and kept / f"{method}-seed{seed}" / (stage or "main"),
        )
        if stage:
            stages += [{**row, "stage": stage} for row in history]
    return student, stages, history


def _measured(
    options, method, network, dataset, seed=None, history=(), stages=()
):
    """The `Run` of a trained network."""
    on_test = common.validates_on_test(options.protocol)
    return Run(
        method=method,
        seed=seed,
        network=network,
        history=history,
        stages=stages,
        test=common.evaluate(network, dataset.test),
        validation=None
        if on_test
        else common.evaluate(network, dataset.validation),
        best=common.best_epoch(history)["validation_accuracy"]
        if on_test and history
        else None,
    )


# === Reporting ===


def _accuracies(run):
    test = f"test {common.percent(run.test.accuracy)} %"
    if run.validation:
        return f"validation {common.percent(run.validation.accuracy)} %, {test}"
    best = "" if run.best is None else f", at best {common.percent(run.best)} %"
    return test + best


def _summary(run):
    summary = {
        "method": run.method,
        "seed": run.seed,
        "test_accuracy": run.test.accuracy,
    }
    if run.validation:
        return {**summary, "validation_accuracy": run.validation.accuracy}
    return {**summary, "best_test_accuracy": run.best}


def _chosen_by(options):
    """What the exported student was chosen by, in words."""
    on_test = common.validates_on_test(options.protocol)
    return "test images" if on_test else "validation images"


def _by_method(runs):
    """Method -> list of its runs."""
    methods = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def _table(teacher, chosen, runs, dataset):
    """The comparison as a Markdown table."""
    rows = []
    groups = {"teacher": [teacher], **_by_method(runs)}
    # Students differ in their weights only, so one is timed for all.
    speeds = [
        common.images_per_second(run.network, dataset.test)
        for run in (teacher, chosen)
    ]
    for method, group in groups.items():
        network = group[0].network
        rows.append(
            (
                method,
                common.mean_and_deviation([r.test.accuracy for r in group]),
                _second(group),
                f"{network.count_params():,}",
                common.kilobytes(common.weight_bytes(network)),
                f"{speeds[method != 'teacher']:,.0f}",
            )
        )
    accuracies = (
        ("test accuracy %", "validation %")
        if chosen.validation
        else ("test accuracy %, last epoch", "best epoch %")
    )
    return common.markdown_table(("method", *accuracies, *_HEADER), rows)


def _second(group):
    """The second column of the comparison, of a method's runs."""
    values = [
        run.validation.accuracy if run.validation else run.best for run in group
    ]
    return "" if None in values else common.mean_and_deviation(values)


def _examples(options):
    """How many images the students are trained on, in words."""
    return f"{options['examples_per_class'] or 'all'} images of each class"


def _draw(path, options, teacher, runs):
    curves, scores = {}, {}
    for method, group in _by_method(runs).items():
        scores[method] = [run.test.accuracy for run in group]
        curves[method] = [
            [
                (row["epoch"], row["validation_accuracy"])
                for row in run.history
                if "validation_accuracy" in row
            ]
            for run in group
        ]
    common.draw_curves(
        path,
        title=f"{options.dataset}: {teacher.network.name} teaches "
        f"{options.student} on {_examples(vars(options))}",
        curves=curves,
        scores=scores,
        teacher_line=teacher.choice.accuracy,
        curve_title=f"{'Test' if teacher.validation is None else 'Validation'} "
        "accuracy, mean and range of seeds",
        test_line=teacher.test.accuracy,
    )


def _numbers(values):
    return ", ".join(f"{value:.6g}" for value in values)


def _protocol(options):
    """How the students were trained, in words."""
    name = options["protocol"]
    text = (
        f"Protocol {name}: {PROTOCOLS[name].description}. Here: "
        f"{options['epochs']} epochs, batch size {options['batch_size']}, "
        f"learning rate {options['learning_rate']:g}."
    )
    if common.validates_on_test(name):
        text += (
            " The best epoch is that of the highest test accuracy, as the "
            "papers' tables have it: test images chose it."
        )
    return text


def _choice(options, student):
    """How the exported student was chosen, in words."""
    test = common.percent(student["test_accuracy"])
    if common.validates_on_test(options["protocol"]):
        return (
            "the best of all runs by test accuracy after the last epoch, then "
            f"test loss. Test {test} %, of images that chose the run."
        )
    validation = common.percent(student["validation_accuracy"])
    return (
        "the best of all runs by validation accuracy, then validation loss. "
        f"Validation {validation} %, test {test} %; test images chose nothing."
    )


def _report(config, table, exports):
    """The text of report.md."""
    options, student = config["options"], config["student"]
    dataset = config["dataset"]
    classes = ", ".join(dataset["class_names"])
    seeds = ", ".join(map(str, options["seeds"]))
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    return f"""# Distillation on {dataset["name"]}

Students `{options["student"]}` (width {options["student_width"]:g}) on \
{_examples(options)}. Mean ± standard deviation over seeds: {seeds}.

{table}

Size is that of the weights. Images/s is the median over batches of \
{common.TIMING_BATCH} on this machine.

![Curves](curves.png)

{_protocol(options)}

## The exported student

{student["method"]}, seed {student["seed"]}: {_choice(options, student)}

{common.exports_table(exports)}

Each was loaded and compared with the student on up to \
{common.CHECKED_IMAGES} \
images that were not trained on: largest absolute difference of a logit \
(tolerance {TOLERANCE:g}), and share of equal labels.

Inputs are `(pixels - mean) / std` with mean {_numbers(dataset["mean"])} and \
std {_numbers(dataset["std"])}; outputs are logits of {classes}.

## How it was made

- {versions}
- teacher: `{config["teacher"]["file"]}`
- settings: `config.json`; every epoch of every run: `history.csv`
- {config["seconds"]:.0f} seconds
"""


if __name__ == "__main__":
    common.start(main)
