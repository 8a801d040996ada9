"""Measures trained networks on one split, also under noise on its images.

Networks are files of Keras, LiteRT (.tflite) and ONNX, and SavedModels. Prints
a table, and with --output writes it to a folder, with the classes that are
taken for others.
"""

import argparse
import contextlib
import math
import os
import pathlib
import sys
import time
from typing import NamedTuple

import common
import numpy as np
import tensorflow as tf

from tfkd import analysis, data
from tfkd.artefacts import open_artefact

SMOKE = {"split": "validation", "stddevs": [0.0, 0.4], "draws": 2}
_SPLITS = ("train", "validation", "test")
_HEADER = (
    "file",
    "size",
    "parameters",
    "accuracy %",
    "cross-entropy, nats",
    "calibration error %",
)
_CLASS_HEADER = ("class", "precision %", "recall %", "count")
_CONFUSION_HEADER = ("true class", "taken for", "count", "% of the class")
_CONFUSIONS = 10


class Network(NamedTuple):
    """One network to measure.

    Attributes:
        file: Path of its file or folder, as it was given.
        label: Its name, with the folders that tell it from others.
        run: A `tfkd.artefacts.Runner`.
        inputs: Function of standardised images that returns what it takes.
        units: What it takes, in words.
    """

    file: str
    label: str
    run: object
    inputs: object
    units: str


class Evaluation(NamedTuple):
    """One network, measured.

    Attributes:
        network: The `Network`.
        score: A `common.Score`.
        calibration: Its expected calibration error, in [0, 1].
        matrix: Of confusion, `[classes, classes]`, the true class first.
        noise: An `analysis.NoiseRobustness`, or None.
    """

    network: Network
    score: common.Score
    calibration: float
    matrix: np.ndarray
    noise: analysis.NoiseRobustness | None


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0, or as of `common.run`.

    Raises:
        SystemExit: With code 2 on bad input, before any measuring.
    """
    parser = _parser()
    options = parser.parse(argv, SMOKE)
    return common.run(parser, lambda: _evaluate(parser, options))


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="networks that return logits: .keras, .tflite or .onnx files, "
        "or folders of SavedModels, such as train.py and distill.py write",
    )
    add(
        "--head",
        metavar="NAME",
        help="the output to measure, of networks with several",
    )
    add("--dataset", default="digits", help=f"one of {', '.join(data.NAMES)}")
    common.add_reading_arguments(parser)
    add(
        "--split",
        choices=_SPLITS,
        default="test",
        help="the images to measure on",
    )
    add(
        "--noise",
        action="store_true",
        help="also the accuracy under Gaussian noise on the standardised "
        "images, the same for all networks",
    )
    add(
        "--stddevs",
        nargs="+",
        type=_standard_deviation,
        default=[0.0, 0.1, 0.2, 0.3, 0.4],
        metavar="STD",
        help="standard deviations of the noise",
    )
    add(
        "--draws",
        type=common.integer(1),
        default=10,
        metavar="N",
        help="noises for each image and standard deviation",
    )
    add("--output", metavar="FOLDER", help="where to write a report")
    add(
        "--overwrite",
        action="store_true",
        help="replace what an earlier run wrote to --output, at the end",
    )
    return parser


def _standard_deviation(text):
    """An argument type: a finite number >= 0."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"expected a finite number >= 0, not {text!r}"
    )


def _evaluate(parser, options):
    """Checks, measures, prints and writes; returns the exit code."""
    started = time.perf_counter()
    dataset, networks = _prepare(parser, options)
    with contextlib.ExitStack() as stack:
        if options.output:
            with parser.checking("--output"):
                folder = stack.enter_context(
                    common.run_folder(
                        options.output, "evaluate", options.overwrite
                    )
                )
        common.say(f"{common.describe(dataset)}; {options.split} split\n")
        evaluations = _measure(parser, options, networks, dataset)
        table = _table(evaluations)
        common.say(table)
        if len(evaluations) == 1:
            scores = _class_table(evaluations[0], dataset)
            common.say(f"\n{scores}")
        if options.output:
            config = {
                "script": "evaluate",
                "options": vars(options),
                "versions": common.versions(),
                "dataset": {
                    "name": dataset.name,
                    "mean": dataset.mean,
                    "std": dataset.std,
                },
                "seconds": round(time.perf_counter() - started, 1),
            }
            _write(folder, config, table, evaluations, dataset)
    if options.output:
        common.say(f"\nwrote {options.output} in {config['seconds']:.0f} s")
    return 0


def _prepare(parser, options):
    """Refuses bad input.

    Returns:
        The dataset, and the `Network`s in the order of their files.
    """
    paths = [os.path.abspath(file) for file in options.files]
    common.refuse_repeated(parser, "FILE", paths)
    common.refuse_repeated(parser, "--stddevs", options.stddevs)
    for name in ("stddevs", "draws"):
        given = getattr(options, name) != parser.get_default(name)
        if given and not options.noise:
            parser.error(f"argument --{name}: only with --noise")
    if options.overwrite and not options.output:
        parser.error("argument --overwrite: only with --output")
    with parser.checking("--dataset"):
        dataset = data.load(
            options.dataset,
            batch_size=common.RECIPE.batch_size,
            seed=common.RECIPE.seed,
            **common.reading(options),
        )
    images = next(iter(getattr(dataset, options.split)))[0].numpy()
    networks = []
    for file, label in zip(options.files, _labels(options.files), strict=True):
        with parser.checking(file), common.quiet():
            run = open_artefact(file, output=options.head)
            _check(run, dataset, options)
            inputs, units = _inputs(run, dataset)
            outputs = run(inputs(images))
            if outputs.shape[1:] != (dataset.num_classes,):
                raise ValueError(
                    f"'{file}' returns {outputs.shape[1:]} for an image, but "
                    f"'{dataset.name}' has {dataset.num_classes} classes."
                )
            if common.are_probabilities(outputs):
                raise ValueError(
                    f"'{file}' returns probabilities. Expected logits: build "
                    "it without the last activation."
                )
        networks.append(Network(file, label, run, inputs, units))
        _warn(parser, networks[-1], dataset)
    return dataset, networks


def _check(run, dataset, options):
    """Raises a `ValueError` unless a network fits a dataset.

    Args:
        run: A `tfkd.artefacts.Runner`.
        dataset: A `tfkd.data.Dataset`.
        options: Those of the script.
    """
    if run.model is not None and options.head is None:
        common.check_teacher(run.model, dataset, role="network")
    shape = run.input_shape
    fits = shape is None or (
        len(shape) == 3
        and all(
            size in (None, wanted)
            for size, wanted in zip(shape, dataset.input_shape, strict=True)
        )
    )
    if not fits:
        raise ValueError(
            f"'{run.path}' takes inputs of shape {shape}, but "
            f"'{dataset.name}' has images of shape {dataset.input_shape}."
        )
    names = run.class_names or dataset.class_names
    if names != dataset.class_names and set(names) == set(dataset.class_names):
        raise ValueError(
            f"'{run.path}' has the classes of '{dataset.name}' in another "
            f"order, {', '.join(names)}."
        )
    if options.noise and (run.model is None or options.head is not None):
        raise ValueError(
            "--noise is only for .keras files of one output; leave it out."
        )
    if options.noise and not _shares_units(run, dataset):
        raise ValueError(
            "--noise is only for networks that take images as "
            f"'{dataset.name}' standardises them; leave it out."
        )


def _shares_units(run, dataset):
    """Whether a network takes images as a dataset serves them."""
    if run.normalization_inside:
        return False
    return run.preprocessing is None or np.allclose(
        run.preprocessing, [dataset.mean, dataset.std], rtol=1e-6, atol=0
    )


def _inputs(run, dataset):
    """How a network takes a dataset's images.

    What lies beside a network is believed: it knows how it was trained.

    Args:
        run: A `tfkd.artefacts.Runner`.
        dataset: A `tfkd.data.Dataset`.

    Returns:
        A function of standardised images, and what it does, in words.
    """
    if _shares_units(run, dataset):
        return lambda images: images, "as the dataset standardises them"
    mean, std = np.float32(dataset.mean), np.float32(dataset.std)
    units = "raw, for the network standardises them itself"
    if not run.normalization_inside:
        own_mean, own_std = run.preprocessing
        units = f"with the network's own mean {own_mean} and std {own_std}"
    return lambda images: run.preprocess(images * std + mean), units


def _warn(parser, network, dataset):
    """Tells on stderr what may surprise."""
    run = network.run
    notes = []
    if not _shares_units(run, dataset) and not run.normalization_inside:
        notes.append(
            f"images are standardised {network.units}, beside it, not with "
            f"mean {dataset.mean} and std {dataset.std} of '{dataset.name}'"
        )
    if run.class_names not in (None, dataset.class_names):
        notes.append(
            f"its classes have other names than those of '{dataset.name}'; "
            "they are taken in their order"
        )
    for note in notes:
        print(
            f"{parser.prog}: warning: {network.file}: {note}", file=sys.stderr
        )


def _measure(parser, options, networks, dataset):
    """The `Evaluation` of each network."""
    examples = getattr(dataset, options.split)
    if options.split == "train":
        # Read once, for it has another order each time.
        parts = zip(*examples.as_numpy_iterator(), strict=True)
        examples = tf.data.Dataset.from_tensor_slices(
            tuple(map(np.concatenate, parts))
        ).batch(common.RECIPE.batch_size)
    evaluations = []
    for network in networks:
        noise = None
        if options.noise:
            noise = analysis.noise_robustness(
                network.run.model,
                examples,
                stddevs=options.stddevs,
                draws=options.draws,
            )
        with parser.checking(network.file), common.quiet():
            logits, labels = _outputs(network, examples)
        score = common.score(logits, labels, network.label)
        evaluations.append(
            Evaluation(
                network=network,
                score=score,
                calibration=analysis.calibration_error(
                    np.exp(common.log_softmax(logits)), labels
                ),
                matrix=analysis.confusion_matrix(
                    logits.argmax(axis=-1),
                    labels,
                    num_classes=dataset.num_classes,
                ),
                noise=noise,
            )
        )
    return evaluations


def _outputs(network, examples):
    """Logits `[images, classes]` and labels `[images]` of a pass."""
    parts = [
        (network.run(network.inputs(x)), y)
        for x, y in examples.as_numpy_iterator()
    ]
    return map(np.concatenate, zip(*parts, strict=True))


def _labels(files):
    """Paths of files from the deepest folder that has them all."""
    paths = [os.path.abspath(file) for file in files]
    parent = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [pathlib.Path(path).relative_to(parent).as_posix() for path in paths]


# === Reporting ===


def _table(evaluations):
    """The measurements as a Markdown table."""
    noise = evaluations[0].noise
    stddevs = [] if noise is None else noise.stddevs
    rows = []
    for evaluation in evaluations:
        network = evaluation.network
        model = network.run.model
        row = [
            network.label,
            common.kilobytes(network.run.bytes),
            "" if model is None else f"{model.count_params():,}",
            common.percent(evaluation.score.accuracy),
            f"{evaluation.score.loss:.4f}",
            common.percent(evaluation.calibration),
        ]
        if evaluation.noise is not None:
            # Without noise all draws are one.
            row += [
                common.mean_and_deviation(draws if stddev else draws[:1])
                for stddev, draws in zip(
                    stddevs, evaluation.noise.accuracies, strict=True
                )
            ]
        rows.append(row)
    header = [*_HEADER, *(f"% at std {stddev:g}" for stddev in stddevs)]
    return common.markdown_table(header, rows)


def _class_table(evaluation, dataset):
    """How well each class is recognised, as a Markdown table."""
    scores = analysis.class_scores(evaluation.matrix)
    rows = [
        (name, _share(precision), _share(recall), f"{count:,}")
        for name, precision, recall, count in zip(
            dataset.class_names, *scores, strict=True
        )
    ]
    return common.markdown_table(_CLASS_HEADER, rows)


def _share(value):
    """A share as a percentage, or a dash where there is none."""
    return "-" if np.isnan(value) else common.percent(value)


def _confusions(evaluation, dataset):
    """The most frequent confusions, as a Markdown table; or a sentence."""
    wrong = evaluation.matrix * (1 - np.eye(dataset.num_classes, dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = [np.unravel_index(place, wrong.shape) for place in order]
    totals = evaluation.matrix.sum(axis=1)
    rows = [
        (
            dataset.class_names[true],
            dataset.class_names[said],
            f"{wrong[true, said]:,}",
            common.percent(wrong[true, said] / totals[true]),
        )
        for true, said in cells
        if wrong[true, said]
    ]
    if not rows:
        return "No class was taken for another."
    return common.markdown_table(_CONFUSION_HEADER, rows)


def _write(folder, config, table, evaluations, dataset):
    """Writes all files of a run."""
    common.write_json(folder / "config.json", config)
    common.write_json(
        folder / "evaluation.json",
        {
            "networks": [
                _record(evaluation, dataset) for evaluation in evaluations
            ]
        },
    )
    for number, evaluation in enumerate(evaluations, 1):
        np.savetxt(
            folder / f"confusion-{number}.csv",
            evaluation.matrix,
            fmt="%d",
            delimiter=",",
        )
        analysis.plot_confusion(
            evaluation.matrix,
            folder / f"confusion-{number}.png",
            class_names=dataset.class_names,
            title=f"{evaluation.network.label} on {dataset.name}, "
            f"{config['options']['split']} split",
        )
    report = _report(config, table, evaluations, dataset)
    (folder / "report.md").write_text(report, encoding="utf-8")
    if config["options"]["noise"]:
        analysis.plot_noise_robustness(
            {
                evaluation.network.label: evaluation.noise
                for evaluation in evaluations
            },
            folder / "noise.png",
        )


def _record(evaluation, dataset):
    """An `Evaluation` as it is written to evaluation.json."""
    run = evaluation.network.run
    scores = analysis.class_scores(evaluation.matrix)
    record = {
        "file": evaluation.network.file,
        "kind": run.kind,
        "bytes": run.bytes,
        "parameters": run.model and run.model.count_params(),
        "inputs": evaluation.network.units,
        "accuracy": evaluation.score.accuracy,
        "cross_entropy_nats": evaluation.score.loss,
        "calibration_error": evaluation.calibration,
        "classes": [
            {
                "name": name,
                # JSON knows no NaN.
                "precision": None if np.isnan(precision) else precision,
                "recall": None if np.isnan(recall) else recall,
                "count": int(count),
            }
            for name, precision, recall, count in zip(
                dataset.class_names, *scores, strict=True
            )
        ],
    }
    if evaluation.noise is not None:
        stddevs, accuracies = evaluation.noise
        record["noise"] = {
            "stddevs": stddevs.tolist(),
            "accuracies": accuracies.tolist(),
            "mean": evaluation.noise.mean.tolist(),
            "std": None
            if accuracies.shape[1] == 1
            else evaluation.noise.std.tolist(),
        }
    return record


def _report(config, table, evaluations, dataset):
    """The text of report.md."""
    options = config["options"]
    versions = ", ".join(f"{k} {v}" for k, v in config["versions"].items())
    noise = ""
    if options["noise"]:
        noise = f"""
Columns "at std": accuracy with Gaussian noise of this standard deviation \
added to the standardised images, not clipped; mean ± sample standard \
deviation over {options["draws"]} draws, in percent. All networks meet the \
same noise.

![Accuracy under noise](noise.png)
"""
    parts = [
        f"""
## {evaluation.network.label}

![Confusion of classes](confusion-{number}.png)

{_confusions(evaluation, dataset)}

{_class_table(evaluation, dataset)}
"""
        for number, evaluation in enumerate(evaluations, 1)
    ]
    units = "\n".join(
        f"- `{evaluation.network.file}` takes images {evaluation.network.units}"
        for evaluation in evaluations
    )
    return f"""# Evaluation on {dataset.name}, {options["split"]} split

{table}

Cross-entropy is the mean over the images. The calibration error is the \
expected one, with 15 bins of equal width: how far the largest probability is \
from the share of right answers.
{noise}{"".join(parts)}
## How it was made

- {versions}
- settings: `config.json`; all numbers: `evaluation.json`, \
`confusion-*.csv` (a row for each true class)
- the dataset standardises images as `(pixels - mean) / std` with mean \
{dataset.mean} and std {dataset.std}
{units}
- {config["seconds"]:.0f} seconds
"""


if __name__ == "__main__":
    common.start(main)
