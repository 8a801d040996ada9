"""A task: students that a method of `tfkd.methods` teaches, by its name."""

import common
import keras
import numpy as np

import tfkd
from recipes import learning
from tfkd import analysis


def taught(config, runs):
    """A task: a student that learns by a method.

    Args:
        config: The run's configuration. "method": as of `tfkd.methods.build`;
            "settings": dict of what it is given, by part; "label_weight":
            None for the method's own; "teacher": a run, or None for labels
            alone. "stage_share": how long each stage before the main one
            takes, in units of "steps". "points": None, or so many looks, for
            the results "accuracy 1", "label loss 1", "value 1" and so on.
            "aligned": None, or how many test images are put into one plane.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`, and what the looks saw; with "aligned" the mean
        "distance" of both features in units of the teacher's spread, and
        the points of "teacher features" and "student features".
    """
    dataset = learning.load(config)
    student = learning.build(config, dataset)
    teacher = config["teacher"] and runs.network(config["teacher"])
    method = tfkd.methods.build(
        config["method"],
        student=student,
        teacher=teacher,
        **_settings(config, dataset),
    )
    for stage in method.stages:
        before = tfkd.Distiller(student=student, teacher=teacher, matches=stage)
        steps = max(1, round(config["stage_share"] * config["steps"]))
        schedule = {**config, "steps": steps, "drops": []}
        learning.fit(before, learning.load(config), schedule)
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=method,
        label_weight=config["label_weight"],
    )
    looks = []
    watcher = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: looks.append(
            {
                "accuracy": learning.scores(student, config)["accuracy"],
                "label loss": float(logs["label_loss"]),
                "value": sum(
                    float(logs[match.name]) for match in method.matches
                ),
            }
        )
    )
    points = config["points"]
    learning.fit(
        distiller,
        dataset,
        config,
        points=points or 1,
        callbacks=[watcher] if points else [],
    )
    results = learning.scores(student, config)
    for number, look in enumerate(looks, start=1):
        results |= {f"{name} {number}": v for name, v in look.items()}
    if config["aligned"]:
        results |= _aligned(student, teacher, config)
    return results


def _settings(config, dataset):
    """What the method's parts are given; labels too where they are needed."""
    settings = {part: {**own} for part, own in config["settings"].items()}
    if "crd" in config["method"].split("+"):
        labels = common.training_labels(dataset)
        settings["crd"] = {**settings.get("crd", {}), "labels": labels}
    return settings


def _aligned(student, teacher, config):
    """How far the student's features are from the teacher's."""
    plane = analysis.feature_alignment(
        student,
        teacher,
        learning.measured(config).test,
        max_examples=config["aligned"],
    )
    return {
        "distance": plane.distance,
        "teacher features": np.round(plane.teacher, 4).tolist(),
        "student features": np.round(plane.student, 4).tolist(),
    }
