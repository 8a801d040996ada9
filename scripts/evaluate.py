"""Measures trained networks on one split, also under noise on its images.

Prints a table, and with --output writes it to a folder.
"""

import argparse
import contextlib
import math
import os
import pathlib
import time
from typing import NamedTuple

import common
import numpy as np
import tensorflow as tf

from tfkd import analysis, data

SMOKE = {"split": "validation", "stddevs": [0.0, 0.4], "draws": 2}
_SPLITS = ("train", "validation", "test")
_HEADER = ("file", "parameters", "accuracy %", "cross-entropy, nats")


class Evaluation(NamedTuple):
    """One network, measured.

    Attributes:
        file: Path of its file, as it was given.
        label: Its file's name, with the folders that tell it from others.
        parameters: Number of its weights.
        score: A `common.Score`.
        noise: An `analysis.NoiseRobustness`, or None.
    """

    file: str
    label: str
    parameters: int
    score: common.Score
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
        type=common.keras_file,
        metavar="FILE.keras",
        help="networks that return logits, such as train.py writes",
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
        evaluations = _measure(options, networks, dataset)
        table = _table(evaluations)
        common.say(table)
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
            _write(folder, config, table, evaluations)
    if options.output:
        common.say(f"\nwrote {options.output} in {config['seconds']:.0f} s")
    return 0


def _prepare(parser, options):
    """Refuses bad input.

    Returns:
        The dataset, and the networks in the order of their files.
    """
    paths = [os.path.abspath(file) for file in options.files]
    common.refuse_repeated(parser, "FILE.keras", paths)
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
    networks = []
    for file in options.files:
        with parser.checking(file):
            network = common.load_teacher(file)
            common.check_teacher(network, dataset)
        networks.append(network)
    return dataset, networks


def _measure(options, networks, dataset):
    """The `Evaluation` of each network."""
    examples = getattr(dataset, options.split)
    if options.split == "train":
        # Read once, for it has another order each time.
        parts = zip(*examples.as_numpy_iterator(), strict=True)
        examples = tf.data.Dataset.from_tensor_slices(
            tuple(map(np.concatenate, parts))
        ).batch(common.RECIPE.batch_size)
    evaluations = []
    for file, label, network in zip(
        options.files, _labels(options.files), networks, strict=True
    ):
        noise = None
        if options.noise:
            noise = analysis.noise_robustness(
                network, examples, stddevs=options.stddevs, draws=options.draws
            )
        # TensorFlow warns that each network is traced anew.
        with common.quiet():
            score = common.evaluate(network, examples)
        evaluations.append(
            Evaluation(
                file=file,
                label=label,
                parameters=network.count_params(),
                score=score,
                noise=noise,
            )
        )
    return evaluations


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
        row = [
            evaluation.label,
            f"{evaluation.parameters:,}",
            common.percent(evaluation.score.accuracy),
            f"{evaluation.score.loss:.4f}",
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


def _write(folder, config, table, evaluations):
    """Writes all files of a run."""
    common.write_json(folder / "config.json", config)
    common.write_json(
        folder / "evaluation.json",
        {"networks": [_record(evaluation) for evaluation in evaluations]},
    )
    report = _report(config, table)
    (folder / "report.md").write_text(report, encoding="utf-8")
    if config["options"]["noise"]:
        analysis.plot_noise_robustness(
            {evaluation.label: evaluation.noise for evaluation in evaluations},
            folder / "noise.png",
        )


def _record(evaluation):
    """An `Evaluation` as it is written to evaluation.json."""
    record = {
        "file": evaluation.file,
        "parameters": evaluation.parameters,
        "accuracy": evaluation.score.accuracy,
        "cross_entropy_nats": evaluation.score.loss,
    }
    if evaluation.noise is not None:
        stddevs, accuracies = evaluation.noise
        record["noise"] = {
            "stddevs": stddevs.tolist(),
            "accuracies": accuracies.tolist(),
            "mean": evaluation.noise.mean.tolist(),
            # JSON knows no NaN.
            "std": None
            if accuracies.shape[1] == 1
            else evaluation.noise.std.tolist(),
        }
    return record


def _report(config, table):
    """The text of report.md."""
    options, dataset = config["options"], config["dataset"]
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
    return f"""# Evaluation on {dataset["name"]}, {options["split"]} split

{table}

Cross-entropy is the mean over the images.
{noise}
## How it was made

- {versions}
- files: {", ".join(f"`{file}`" for file in options["files"])}
- settings: `config.json`; all numbers: `evaluation.json`
- inputs are `(pixels - mean) / std` with mean {dataset["mean"]} and std \
{dataset["std"]}
- {config["seconds"]:.0f} seconds
"""


if __name__ == "__main__":
    common.start(main)
