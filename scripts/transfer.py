"""Transfers what a network knows of one task to another and compares ways.

Trains a network on source classes, or loads one; then students on a few
examples per target class: from scratch, fine-tuned from the source network,
or with the source network as a teacher of other classes. Prints a table, and
writes the student with the best validation accuracy, its exports and a report
to one folder.
"""

import argparse
import itertools
import math
import pathlib
import time
from typing import NamedTuple

import common
import keras
import numpy as np
import resuming
from matplotlib.figure import Figure
from protocols import TRANSFER

import tfkd
from tfkd import data, models
from tfkd.export import export_student

METHODS = (
    "scratch",
    "finetune",
    "l2-sp",
    "neuron-ot",
    "lwf",
    "lwf+attention+jacobian",
)
SMOKE = {
    "epochs": 2,
    "examples_per_class": [2],
    "seeds": [0],
    "source_epochs": 1,
    "source_width": 0.0625,
    "student_width": 0.0625,
}
# Between the logits of the student and of its exports.
TOLERANCE = 1e-4
# Methods whose weight is no part of what they are.
_UNWEIGHTED = ("scratch", "ce", "finetune")


class Run(NamedTuple):
    """What a training came to.

    Attributes:
        method: Its method's name.
        examples: Training images of each class, or None for all.
        seed: Of its weights, its examples and their order.
        weight: The weight that was tried, or None for the method's own.
        parameters: Of the student.
        history: List of dicts, one an epoch.
        validation, test: `common.Score`s.
    """

    method: str
    examples: int | None
    seed: int
    weight: float | None
    parameters: int
    history: list
    validation: common.Score
    test: common.Score


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
    if options.steps != parser.get_default("steps"):
        options.epochs = None
    if options.learning_rate is None:
        options.learning_rate = TRANSFER[options.protocol].learning_rate
    return common.run(parser, lambda: _transfer(parser, options))


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("--dataset", default="digits", help=f"one of {', '.join(data.NAMES)}")
    add(
        "--classes",
        nargs="+",
        type=common.integer(0),
        metavar="LABEL",
        help="target classes (default: all; the last third of them if the "
        "source network learns the others)",
    )
    add(
        "--examples-per-class",
        nargs="+",
        type=common.count_or_all,
        default=[5, 10],
        metavar="N",
        help='training images of each target class, or "all"',
    )
    add(
        "--methods",
        nargs="+",
        default=list(METHODS),
        metavar="METHOD",
        help="scratch, any of "
        f"{', '.join(tfkd.methods.WITHOUT_TEACHER)}, lwf and its sums, and "
        "others that compare features with the source network",
    )
    add(
        "--weights",
        type=_weights,
        metavar="W,W",
        help="weights to try for each method of fine-tuning, 1e-4,1e-3 say; "
        "the best by validation accuracy over all seeds is reported",
    )
    add(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="where neuron-* compare the student with its start, by name or "
        "path (default: the last stage but one, and features)",
    )
    add(
        "--seeds",
        nargs="+",
        type=common.integer(0, 2**32 - 1),
        default=[0, 1, 2],
        metavar="SEED",
        help="each method trains one student with each seed",
    )
    _add_network_arguments(parser)
    _add_training_arguments(parser)
    _add_data_arguments(parser)
    common.add_output_arguments(
        parser,
        metavar="FOLDER",
        default="saved_models/transfer-DATASET-TIME",
    )
    return parser


def _add_network_arguments(parser):
    add = parser.add_argument
    add(
        "--source",
        default="vgg4",
        metavar="NETWORK|FILE",
        help="a network, trained once on the source classes and kept in "
        "saved_models, or a .keras file",
    )
    add(
        "--source-dataset",
        metavar="NAME",
        help="what a source network to train learns (default: the target's)",
    )
    add(
        "--source-classes",
        nargs="+",
        type=common.integer(0),
        metavar="LABEL",
        help="its classes (default: all; the first two thirds of them if it "
        "is the target's dataset)",
    )
    add(
        "--source-width",
        type=common.positive_number,
        default=common.RECIPE.width,
        metavar="FACTOR",
        help="on the channels of a source network to train",
    )
    add(
        "--source-epochs",
        type=common.integer(1),
        default=common.RECIPE.epochs,
        metavar="N",
        help="epochs of a source network to train",
    )
    add(
        "--student",
        default="vgg4",
        metavar="NETWORK",
        help="of scratch and of methods with a teacher, one of "
        f"{', '.join(models.NAMES)}; fine-tuning starts from the source",
    )
    add(
        "--student-width",
        type=common.positive_number,
        default=common.RECIPE.width,
        metavar="FACTOR",
        help="on the channels of the student",
    )


def _add_training_arguments(parser):
    add = parser.add_argument
    add(
        "--protocol",
        choices=list(TRANSFER),
        default="short",
        help="how students are trained, which changes other defaults. "
        + " ".join(
            f"{name}: {protocol.description}."
            for name, protocol in TRANSFER.items()
        ),
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=common.integer(1),
        default=100,
        metavar="N",
        help="passes over the training images",
    )
    length.add_argument(
        "--steps",
        type=common.integer(1),
        metavar="N",
        help="instead of epochs: steps, rounded up to whole epochs",
    )
    add(
        "--batch-size",
        type=common.integer(1),
        default=25,
        metavar="N",
        help="images per step",
    )
    add(
        "--learning-rate",
        type=common.positive_number,
        metavar="RATE",
        help="at the start (default: that of the protocol: "
        + "; ".join(
            f"{name} {protocol.learning_rate:g}"
            for name, protocol in TRANSFER.items()
        )
        + ")",
    )


def _add_data_arguments(parser):
    add = parser.add_argument
    add("--data-dir", metavar="FOLDER", help="of TensorFlow Datasets")
    add(
        "--download",
        action="store_true",
        help="let TensorFlow Datasets download what is missing",
    )
    add(
        "--augment",
        action="store_true",
        help="train students on random crops and mirror images",
    )
    add(
        "--image-size",
        type=common.integer(1),
        metavar="PIXELS",
        help="side of the crops of photographs, whose shorter edge is "
        "brought to 256/224 of it (default: 224)",
    )
    add(
        "--ten-crop",
        action="store_true",
        help="test on ten crops of each photograph",
    )
    add(
        "--skip-corrupt",
        action="store_true",
        help="leave out photographs that cannot be decoded",
    )


def _weights(text):
    """An argument type: numbers > 0 between commas."""
    weights = [common.positive_number(part) for part in text.split(",")]
    if len(set(weights)) != len(weights):
        raise argparse.ArgumentTypeError(f"a weight given twice in {text!r}")
    return weights


def _transfer(parser, options):
    """Checks, trains, compares and writes; returns the exit code."""
    started = time.perf_counter()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    output = pathlib.Path(
        options.output
        or common.SAVED_MODELS
        / f"transfer-{common.slug(options.dataset)}-{stamp}"
    )
    if resuming.is_complete(parser, options, "transfer"):
        common.say(f"{output} is complete")
        return 0
    writing = common.run_folder(output, "transfer", options.overwrite)
    with (
        resuming.keeping(parser, options, "transfer") as kept,
        parser.opening("--output", writing) as folder,
    ):
        target, source_data, recipe, file = _prepare(parser, options)
        if recipe and not file.exists():
            common.say(f"source {common.describe(source_data)}")
            common.train_teacher(
                parser, "--source", recipe, source_data, file, kept
            )
        source = common.load_teacher(file)
        common.say(f"source network: {file}")
        common.say(f"target {common.describe(target)}")
        runs, chosen, student = _train_students(options, source, kept)
        images, _ = next(iter(target.validation.rebatch(common.CHECKED_IMAGES)))
        with common.quiet():
            exports = export_student(
                student,
                folder,
                formats=common.EXPORT_FORMATS,
                check=images,
                class_names=target.class_names,
                normalization=(target.mean, target.std),
                white=target.white,
            )
        best = _best_weights(runs)
        table = _table(options, best)
        config = {
            "script": "transfer",
            "options": vars(options),
            "versions": common.versions(),
            "source": str(file.resolve()),
            "target": {
                "name": target.name,
                "class_names": target.class_names,
                "mean": target.mean,
                "std": target.std,
            },
            "student": _summary(chosen),
            "runs": [_summary(run) for run in runs],
            "exports": common.summarize_exports(exports),
            "seconds": round(time.perf_counter() - started, 1),
        }
        common.write_json(folder / "config.json", config)
        common.write_history(
            folder / "history.csv",
            [{**_key(run), **row} for run in runs for row in run.history],
        )
        report = _report(config, table, best, exports)
        (folder / "report.md").write_text(report, encoding="utf-8")
        _draw(folder / "accuracies.png", options, best)
    common.say(f"\n{table}\n{_chosen_weights(best)}")
    common.say(f"{common.exports_table(exports)}\n")
    common.say(
        f"chosen by validation: {_name(chosen)}, {_accuracies(chosen)}\n"
        f"wrote {output} in {config['seconds']:.0f} s"
    )
    return common.check_exports(parser, exports, TOLERANCE)


# === Data and networks ===


def _prepare(parser, options):
    """Refuses bad input.

    Returns:
        The target's data; those of a source network to train, its
        `common.Recipe`, both None for one from a file; the path of its file.
    """
    for option in ("methods", "seeds", "examples_per_class"):
        name = f"--{option.replace('_', '-')}"
        common.refuse_repeated(parser, name, getattr(options, option))
    _refuse_settings_of_no_method(parser, options)
    recipe = source_data = None
    if options.source in models.NAMES:
        recipe = common.RECIPE._replace(
            network=options.source,
            width=options.source_width,
            epochs=options.source_epochs,
        )
        option = "--source-dataset" if options.source_dataset else "--dataset"
        with parser.checking(option):
            source_data = _source_data(options)
    with parser.checking("--dataset"):
        target = _target_data(options, None, options.seeds[0])
    for examples in options.examples_per_class:
        with parser.checking("--examples-per-class"):
            _target_data(options, examples, options.seeds[0])
    with parser.checking("--source"):
        if recipe:
            file = common.teacher_path(recipe, source_data)
            if file.exists():
                source = common.kept_teacher(file)
            else:
                source = common.build(recipe, source_data)
        else:
            file = common.given_teacher(options.source)
            _refuse_settings_of_training(parser, options)
            source = common.load_teacher(file)
        teaches = any(_role(m) == "teacher" for m in options.methods)
        common.check_teacher(source, target, same_classes=False, logits=teaches)
    with parser.checking("--student"):
        _build_student(options, target)
    for method in options.methods:
        with parser.checking("--methods"):
            for weight in _weights_of(method, options):
                _trainer(method, weight, options, target, source)
    return target, source_data, recipe, file


def _refuse_settings_of_no_method(parser, options):
    """Refuses settings that none of the methods would heed."""
    tuned = any(_weights_of(m, options) != [None] for m in options.methods)
    if options.weights and not tuned:
        parser.error(
            "argument --weights: it is for methods of fine-tuning, l2-sp and "
            f"neuron-ot say, not for {', '.join(options.methods)}"
        )
    if options.layers and not any(map(_compares_layers, options.methods)):
        parser.error(
            "argument --layers: it is for neuron-* as methods of fine-tuning, "
            f"not for {', '.join(options.methods)}"
        )


def _refuse_settings_of_training(parser, options):
    """Raises if a source from a file comes with how to train one."""
    for name in (
        "source_dataset",
        "source_classes",
        "source_width",
        "source_epochs",
    ):
        default = SMOKE.get(name) if options.smoke else None
        if getattr(options, name) not in (parser.get_default(name), default):
            raise ValueError(
                f"--{name.replace('_', '-')} is for a source network to "
                "train, not for one from a file."
            )


def _source_data(options):
    """What a source network learns; sets the classes of both tasks."""
    name = options.source_dataset or options.dataset
    shared = {"batch_size": common.RECIPE.batch_size, **_reading(options, name)}
    if name == options.dataset and not (
        options.classes or options.source_classes
    ):
        count = data.load(name, **shared).num_classes
        known = math.ceil(count * 2 / 3)
        options.source_classes = list(range(known))
        options.classes = list(range(known, count))
    return data.load(
        name,
        classes=options.source_classes,
        seed=common.RECIPE.seed,
        **shared,
    )


def _target_data(options, examples, seed):
    return data.load(
        options.dataset,
        batch_size=options.batch_size,
        examples_per_class=examples,
        classes=options.classes,
        augment=options.augment,
        ten_crop=options.ten_crop,
        seed=seed,
        **_reading(options, options.dataset),
    )


def _reading(options, name):
    """Arguments of `data.load` that say how images are read.

    Where source and target are different datasets, what is only for one of
    them is not given to the other.
    """
    other = options.source_dataset or options.dataset
    if name == other:
        other = options.dataset
    return {
        argument: getattr(options, argument)
        for argument in ("image_size", "skip_corrupt", "data_dir", "download")
        if getattr(options, argument)
        and (_is_for(argument, name) or not _is_for(argument, other))
    }


def _is_for(argument, name):
    """Whether `data.load` takes an argument for a dataset."""
    if argument in ("data_dir", "download"):
        return name in data.prepared.NAMES
    return name.startswith("folder:") or name in data.prepared.PHOTOGRAPHS


def _build_student(options, dataset):
    return models.build(
        options.student,
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        width=options.student_width,
    )


def _role(method):
    """What the source network is to a method: "none", "start", "teacher"."""
    if method in ("scratch", "ce"):
        return "none"
    known = set(tfkd.methods.WITHOUT_TEACHER)
    return "start" if set(method.split("+")) <= known else "teacher"


def _compares_layers(method):
    """Whether a method compares neurons with the student's start."""
    return "neuron" in method and _role(method) == "start"


def _weights_of(method, options):
    """The weights to try; None is the method's own."""
    fixed = method in _UNWEIGHTED or _role(method) != "start"
    return [None] if fixed or not options.weights else options.weights


def _trainer(method, weight, options, dataset, source):
    """The `tfkd.Transferer` of a method, with a new student."""
    role = _role(method)
    name = "ce" if method == "scratch" else method
    settings = {} if weight is None else {"weight": weight}
    if role == "start":
        student = models.with_head(source, num_classes=dataset.num_classes)
        if options.layers and _compares_layers(method):
            settings["at"] = options.layers
        built = tfkd.methods.build(name, student=student, **settings)
        compared = any(match.needs_teacher for match in built.matches)
        return tfkd.Transferer(
            student=student,
            reference="start" if compared else None,
            matches=built,
        )
    student = _build_student(options, dataset)
    if role == "none":
        return tfkd.Transferer(student=student)
    built = tfkd.methods.build(name, student=student, teacher=source)
    if built.stages:
        raise ValueError(
            f"method '{method}' has a stage before the main one, which is "
            "for a teacher of the same task: see distill.py."
        )
    return tfkd.Transferer(
        student=student,
        teacher=source,
        source_head=any(match.reads_outputs for match in built.matches),
        matches=built,
    )


# === Training ===


def _epochs(options, dataset):
    """Passes over the training images, as many as the steps make."""
    steps = int(dataset.train.cardinality())
    return options.epochs or math.ceil(options.steps / steps)


def _train_students(options, source, kept):
    """Trains all students, with a line for each.

    Args:
        options: An `argparse.Namespace`.
        source: The source network.
        kept: Folder of all checkpoints of the run, or None.

    Returns:
        List of all `Run`s, the best by validation, and its student.
    """
    plan = [
        (method, examples, weight, seed)
        for examples in options.examples_per_class
        for method in options.methods
        for weight in _weights_of(method, options)
        for seed in options.seeds
    ]
    runs, chosen, best = [], None, None
    for number, (method, examples, weight, seed) in enumerate(plan, start=1):
        start = time.perf_counter()
        keras.utils.set_random_seed(seed)
        dataset = _target_data(options, examples, seed)
        transferer = _trainer(method, weight, options, dataset, source)
        history = common.fit(
            transferer,
            dataset,
            epochs=_epochs(options, dataset),
            learning_rate=options.learning_rate,
            protocol=options.protocol,
            kept=kept and kept / f"student{number}",
        )
        student = transferer.student
        tested = models.average_views(student) if options.ten_crop else student
        run = Run(
            method=method,
            examples=examples,
            seed=seed,
            weight=weight,
            parameters=student.count_params(),
            history=history,
            validation=common.evaluate(student, dataset.validation),
            test=common.evaluate(tested, dataset.test),
        )
        runs.append(run)
        if chosen is None or _rank(run) > _rank(chosen):
            chosen, best = run, student
        common.say(
            f"{number:3}/{len(plan)}  {_name(run)}  {_accuracies(run)}  "
            f"{time.perf_counter() - start:5.1f} s"
        )
    return runs, chosen, best


def _rank(run):
    return run.validation.accuracy, -run.validation.loss


# === Reporting ===


def _best_weights(runs):
    """(method, examples) -> the runs with the weight that validates best."""
    tried = {}
    for run in runs:
        by_weight = tried.setdefault((run.method, run.examples), {})
        by_weight.setdefault(run.weight, []).append(run)
    return {
        key: max(
            by_weight.values(),
            key=lambda group: tuple(np.mean([_rank(r) for r in group], axis=0)),
        )
        for key, by_weight in tried.items()
    }


def _examples(examples):
    return "all" if examples is None else str(examples)


def _name(run):
    weight = "" if run.weight is None else f", weight {run.weight:g}"
    return (
        f"{run.method}{weight}, {_examples(run.examples)} per class, "
        f"seed {run.seed}"
    )


def _accuracies(run):
    return (
        f"validation {common.percent(run.validation.accuracy)} %, "
        f"test {common.percent(run.test.accuracy)} %"
    )


def _key(run):
    return {
        "method": run.method,
        "examples_per_class": _examples(run.examples),
        "seed": run.seed,
        "weight": run.weight,
    }


def _summary(run):
    return {
        **_key(run),
        "validation_accuracy": run.validation.accuracy,
        "validation_loss": run.validation.loss,
        "test_accuracy": run.test.accuracy,
    }


def _table(options, best):
    """Test accuracies as a Markdown table."""
    header = ["test accuracy %, examples per class", "parameters"]
    header += [_examples(n) for n in options.examples_per_class]
    rows = []
    for method in options.methods:
        groups = [best[method, n] for n in options.examples_per_class]
        rows.append(
            [
                method,
                f"{groups[0][0].parameters:,}",
                *(
                    common.mean_and_deviation([r.test.accuracy for r in group])
                    for group in groups
                ),
            ]
        )
    return common.markdown_table(header, rows)


def _chosen_weights(best):
    """A line for each weight that validation chose."""
    lines = [
        f"{method}, {_examples(examples)} per class: weight "
        f"{group[0].weight:g} has the best validation accuracy"
        for (method, examples), group in best.items()
        if group[0].weight is not None
    ]
    return "\n".join(["", *lines, ""]) if lines else ""


def _draw(path, options, best):
    """Test accuracy over examples per class, a line a method."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(options.examples_per_class))
    shift = 0.3 / max(len(options.methods), 1)
    for number, (method, color) in enumerate(
        zip(options.methods, itertools.cycle(common.COLORS), strict=False)
    ):
        values = [
            100 * np.array([run.test.accuracy for run in best[method, n]])
            for n in options.examples_per_class
        ]
        axes.errorbar(
            places + shift * number - 0.15,
            [value.mean() for value in values],
            [value.std(ddof=1) if len(value) > 1 else 0.0 for value in values],
            color=color,
            marker="o",
            ms=4,
            capsize=2,
            linestyle="-" if number < len(common.COLORS) else "--",
            label=method,
        )
    axes.set_xticks(places, map(_examples, options.examples_per_class))
    axes.set(xlabel="examples per class", ylabel="test accuracy, %")
    axes.set_title(f"{options.dataset}, mean ± deviation of seeds", loc="left")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    figure.savefig(path, dpi=140)


def _report(config, table, best, exports):
    """The text of report.md."""
    options, target = config["options"], config["target"]
    protocol = TRANSFER[options["protocol"]]
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    crops = ", ten crops of each" if options["ten_crop"] else ""
    student = config["student"]
    return f"""# Transfer to {target["name"]}

Classes {", ".join(target["class_names"])}; mean ± standard deviation over \
seeds: {", ".join(map(str, options["seeds"]))}. Test images{crops}.

{table}
{_chosen_weights(best)}
`scratch` is an untrained `{options["student"]}` (width \
{options["student_width"]:g}), as is the student of methods with a teacher \
(lwf); the others start from the source network with a new head.

![Accuracies](accuracies.png)

## The exported student

{student["method"]}, {student["examples_per_class"]} per class, seed \
{student["seed"]}: the best of all runs by validation accuracy, then \
validation loss. Validation \
{common.percent(student["validation_accuracy"])} %, test \
{common.percent(student["test_accuracy"])} %; test images chose nothing.

{common.exports_table(exports)}

## How it was made

- {versions}
- source network: `{config["source"]}`
- protocol: {options["protocol"]} ({protocol.description})
- settings and all runs: `config.json`; every epoch: `history.csv`
- {config["seconds"]:.0f} seconds
"""


if __name__ == "__main__":
    common.start(main)
