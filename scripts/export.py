"""Exports a trained student for other runtimes, and proves it the same.

Writes the formats, loads each in a new process, compares it with the student
on test images, and ends with an error if one disagrees: fit for your own
tests before a release.
"""

import argparse
import contextlib
import pathlib
import time

import common
import keras
import numpy as np

from tfkd import data
from tfkd.export import (
    FORMATS,
    MIN_RUNS,
    export_student,
    measure,
    plot_measurements,
    require_onnx,
    require_runtimes,
    with_normalization,
)

SMOKE = {"runs": MIN_RUNS, "calibration": 20, "images": 50}
_BATCH = 64


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0; 1 if an artefact disagrees with the student, or as
        of `common.run`.

    Raises:
        SystemExit: With code 2 on bad input, before anything is written.
    """
    parser = _parser()
    options = parser.parse(argv, SMOKE)
    return common.run(parser, lambda: _export(parser, options))


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add(
        "student",
        type=common.keras_file,
        metavar="STUDENT.keras",
        help="a network such as distill.py and train.py write",
    )
    add(
        "--head",
        metavar="NAME",
        help="the output to export, of several, by its layer's name",
    )
    add(
        "--formats",
        type=_formats,
        default="saved_model,tflite,tflite-float16,tflite-int8,onnx",
        metavar="LIST",
        help=f"with commas between them: {', '.join(FORMATS)}",
    )
    add("--dataset", default="digits", help=f"one of {', '.join(data.NAMES)}")
    common.add_reading_arguments(parser)
    add(
        "--check",
        type=_share,
        default=0.99,
        metavar="SHARE",
        help="of the test images that each artefact must label as the student "
        "does; else the exit code is 1",
    )
    add(
        "--teacher",
        type=common.keras_file,
        metavar="FILE.keras",
        help="to compare sizes, times and accuracies with",
    )
    add(
        "--normalize",
        action="store_true",
        help="let the artefacts take pixels in the dataset's own units and "
        "standardise them",
    )
    add(
        "--serving",
        action="store_true",
        help="write the SavedModel to model/1, as TensorFlow Serving wants it",
    )
    add(
        "--calibration",
        type=common.integer(1),
        default=200,
        metavar="N",
        help="training images by which tflite-int8 finds its ranges",
    )
    add(
        "--images",
        type=common.integer(1),
        default=2000,
        metavar="N",
        help="test images to compare on, at most; drawn at random",
    )
    add(
        "--runs",
        type=common.integer(MIN_RUNS),
        default=200,
        metavar="N",
        help="timed runs of each artefact, one image each",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="what to write (default: saved_models/export-DATASET-TIME)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace what an earlier run wrote there, when the new is ready",
    )
    return parser


def _formats(text):
    """An argument type: names of formats, with commas between them."""
    names = text.split(",")
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(FORMATS)}, with commas between "
                f"them, not {name!r}"
            )
    return list(dict.fromkeys(names))


def _share(text):
    """An argument type: a number in [0, 1]."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"expected a number from 0 to 1, not {text!r}"
    )


def _export(parser, options):
    """Checks, exports, measures, writes; returns the exit code."""
    started = time.perf_counter()
    dataset, student, teacher = _prepare(parser, options)
    output = pathlib.Path(
        options.output
        or common.SAVED_MODELS
        / f"export-{common.slug(dataset.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    images, labels = _test_images(dataset, options.images)
    calibration = _training_images(dataset, options.calibration)
    normalization = (dataset.mean, dataset.std)
    # What the artefacts take, and Keras models that take the same.
    reference, rival = student, teacher
    if options.normalize:
        images, calibration = (
            (x * np.float64(dataset.std) + dataset.mean).astype(np.float32)
            for x in (images, calibration)
        )
        reference = with_normalization(student, *normalization)
        rival = teacher and with_normalization(teacher, *normalization)
    writing = common.run_folder(output, "export", options.overwrite)
    with parser.opening("--output", writing) as folder:
        common.say(
            f"{common.describe(dataset)}; {len(images)} test images to "
            f"compare on\n{student.name}: {student.count_params():,} "
            "parameters\n"
        )
        with parser.checking("--formats"), common.quiet():
            exports = export_student(
                student,
                folder,
                formats=options.formats,
                calibration=calibration,
                class_names=dataset.class_names,
                normalization=normalization,
                normalization_inside=options.normalize,
                white=dataset.white,
                version=1 if options.serving else None,
            )
        with parser.checking("STUDENT.keras"), common.quiet():
            measurements = measure(
                reference,
                exports,
                images,
                labels,
                teacher=rival,
                runs=options.runs,
            )
        table = _table(measurements)
        below = _below(measurements, options.check)
        config = {
            "script": "export",
            "options": vars(options),
            "versions": common.versions(),
            "dataset": {
                "name": dataset.name,
                "class_names": dataset.class_names,
                "mean": dataset.mean,
                "std": dataset.std,
            },
            "seconds": round(time.perf_counter() - started, 1),
        }
        common.write_json(folder / "config.json", config)
        common.write_json(
            folder / "report.json",
            {
                "images": len(images),
                "check": options.check,
                "below": below,
                "artefacts": {
                    name: {
                        "file": _file(exports, name),
                        **measurement._asdict(),
                    }
                    for name, measurement in measurements.items()
                },
            },
        )
        report = _report(config, table, measurements, len(images), below)
        (folder / "report.md").write_text(report, encoding="utf-8")
        plot_measurements(
            measurements,
            folder / "artefacts.png",
            title=f"{student.name} on {dataset.name}: {len(images)} test "
            "images, one thread",
        )
    common.say(f"{table}\n\nwrote {output} in {config['seconds']:.0f} s")
    for name in below:
        share = measurements[name].label_agreement
        common.complain(
            parser,
            f"{name} gives {common.percent(share)} % of the test images the "
            f"student's label, less than {100 * options.check:g} %",
        )
    return 1 if below else 0


def _prepare(parser, options):
    """Refuses bad input; returns the dataset, the student and the teacher."""
    with parser.checking("--formats"):
        if "onnx" in options.formats:
            require_onnx()
        require_runtimes(FORMATS[name] for name in options.formats)
    if options.serving and "saved_model" not in options.formats:
        parser.error("argument --serving: only with saved_model in --formats")
    with parser.checking("--dataset"):
        dataset = data.load(
            options.dataset,
            batch_size=_BATCH,
            seed=common.RECIPE.seed,
            **common.reading(options),
        )
    networks = []
    for role, option, file in (
        ("student", "STUDENT.keras", options.student),
        ("teacher", "--teacher", options.teacher),
    ):
        network = None
        if file:
            with parser.checking(option):
                network = common.load_teacher(file)
                if role == "student":
                    network = _up_to(network, options.head)
                common.check_teacher(network, dataset, logits=False, role=role)
        networks.append(network)
    return dataset, *networks


def _up_to(network, head):
    """A network up to one of its outputs.

    Args:
        network: A Keras model.
        head: The name of the layer that makes it, or None where there is one.

    Returns:
        A Keras model of one output, unless it has no names for its outputs;
        with the same weights.

    Raises:
        ValueError: If there is no such output, or none is named of several.
    """
    names = getattr(network, "output_names", ())
    if head is None and len(names) < 2:
        return network
    if head not in names:
        given = f"not '{head}'" if head else "which --head chooses"
        raise ValueError(
            f"'{network.name}' has the outputs "
            f"{', '.join(map(repr, names)) or 'of no names'}, {given}"
        )
    output = network.outputs[names.index(head)]
    return keras.Model(network.inputs, output, name=network.name)


def _test_images(dataset, count):
    """At most `count` of the test images, at random, and their labels."""
    chosen = np.random.RandomState(0).permutation(dataset.num_test)[:count]
    kept = np.zeros(dataset.num_test, bool)
    kept[chosen] = True
    images, labels, seen = [], [], 0
    for x, y in dataset.test.as_numpy_iterator():
        here = kept[seen : seen + len(x)]
        images.append(x[here])
        labels.append(y[here])
        seen += len(x)
    return np.concatenate(images), np.concatenate(labels)


def _training_images(dataset, count):
    """At most `count` of the training images, which come in random order."""
    images = []
    for x, _ in dataset.train.as_numpy_iterator():
        images.append(x)
        if sum(map(len, images)) >= count:
            break
    return np.concatenate(images)[:count]


def _below(measurements, check):
    """Names of the artefacts whose label agreement is too small."""
    return [
        name
        for name, measurement in measurements.items()
        if measurement.label_agreement is not None
        and measurement.label_agreement < check
    ]


# === Reporting ===


def _file(exports, name):
    """Path of an artefact in the run's folder; None of the Keras models."""
    if name not in exports:
        return None
    file = FORMATS[name]
    path = exports[name].path
    return file if path.name == file else f"model/{path.name}"


def _table(measurements):
    """The measurements as a Markdown table."""
    with_teacher = "teacher" in measurements
    header = [
        "network",
        "run by",
        "size",
        *(["of the teacher's"] if with_teacher else []),
        "parameters",
        "accuracy %",
        "same label %",
        "largest difference",
        "ms, median",
        "ms, 90 %",
    ]
    rows = [
        [
            name,
            m.runtime,
            common.kilobytes(m.bytes),
            *([f"1/{m.compression:.1f}"] if with_teacher else []),
            f"{m.parameters:,}",
            common.percent(m.accuracy),
            "-"
            if m.label_agreement is None
            else common.percent(m.label_agreement),
            "-" if m.max_difference is None else f"{m.max_difference:.1e}",
            f"{m.milliseconds:.3f}",
            f"{m.slow_milliseconds:.3f}",
        ]
        for name, m in measurements.items()
    ]
    return common.markdown_table(header, rows)


def _report(config, table, measurements, images, below):
    """The text of report.md."""
    options, dataset = config["options"], config["dataset"]
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    largest = measurements["student"].largest_output
    verdict = (
        f"Fails the check of {100 * options['check']:g} % the same labels: "
        f"{', '.join(below)}."
        if below
        else f"All give at least {100 * options['check']:g} % of the test "
        "images the student's label."
    )
    inputs = (
        "pixels in the dataset's own units, which the artefacts standardise "
        "themselves"
        if options["normalize"]
        else "`(pixels - mean) / std`, see `preprocessing.json`"
    )
    return f"""# {options["student"]} for other runtimes

{table}

{verdict}

![Accuracy against size and time](artefacts.png)

- Accuracy and differences are over {images} test images of \
{dataset["name"]}. "Same label" and "largest difference" compare with the \
Keras student that was exported; its largest output is {largest:.3g}.
- Each artefact was loaded from disk by a new process; those of LiteRT and \
onnxruntime by one in which TensorFlow cannot be imported.
- Times are of one image on one thread, from array to array, over \
{options["runs"]} runs after warming up: the median, and what 90 % of the runs \
stay below.
- Size is that on disk, of the Keras models as a .keras file without \
optimizer. Parameters are those of the network an artefact was made of.

## How it was made

- {versions}
- inputs are {inputs}
- settings: `config.json`; all numbers: `report.json`
- {config["seconds"]:.0f} seconds
"""


if __name__ == "__main__":
    common.start(main)
