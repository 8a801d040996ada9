"""Runs of the tables of Jacobian matching that nothing else needs."""

import keras

import tfkd
from recipes import learning
from tfkd.analysis import noise_robustness


def distilled(config, runs):
    """A task: a student that learns labels and what a teacher says.

    Args:
        config: The run's configuration. "terms": any of "activations" (the
            logits) and "jacobian" (the true class' input gradient, with
            "batch_statistics"), squared errors of weight 1;
            "label_weight": that of the labels.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`.
    """
    dataset = learning.load(config)
    student = learning.build(config, dataset)
    terms, teacher, matches = config["terms"], None, []
    if terms:
        teacher = runs.network(config["teacher"])
    if "activations" in terms:
        loss = tfkd.losses.SquaredError()
        matches.append(tfkd.Match(loss, name="activations"))
    if "jacobian" in terms:
        statistics = config["batch_statistics"]
        matches.append(tfkd.JacobianMatch(batch_statistics=statistics))
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=matches,
        label_weight=config["label_weight"],
    )
    learning.fit(distiller, dataset, config, teacher=teacher, runs=runs)
    return learning.scores(student, config)


def hardened(config, runs):
    """A task: a network with a penalty, under noise on the test images.

    Args:
        config: The run's configuration; "penalty" holds the weights of
            "jacobian" (with "batch_statistics") and "l2" and the rate of
            "dropout", as far as there are some; "stddevs": of the noise;
            "draws": noises for each image and level.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`, and the accuracies "noise 0" and so on, in
        percent.
    """
    dataset = learning.load(config)
    penalty = config["penalty"]
    network = learning.build(config, dataset)
    if "dropout" in penalty:
        network = with_dropout(network, penalty["dropout"], config["seed"])
    matches = []
    if "jacobian" in penalty:
        match = tfkd.JacobianPenalty(
            batch_statistics=config["batch_statistics"],
            weight=penalty["jacobian"],
        )
        matches.append(match)
    if "l2" in penalty:
        strength = penalty["l2"]
        matches.append(tfkd.L2(kernel=strength, new=strength))
    distiller = tfkd.Distiller(student=network, matches=matches)
    learning.fit(distiller, dataset, config)
    noisy = noise_robustness(
        network,
        learning.measured(config).test,
        stddevs=config["stddevs"],
        draws=config["draws"],
    )
    return {
        **learning.scores(network, config),
        **{
            f"noise {stddev:g}": 100 * float(mean)
            for stddev, mean in zip(noisy.stddevs, noisy.mean, strict=True)
        },
    }


def with_dropout(network, rate, seed):
    """A chain of layers with dropout after each max pool.

    Args:
        network: A `keras.Model` whose layers are a chain, vgg4 or vgg9.
        rate: Share of the entries that are dropped.
        seed: Of the first dropout; the next ones count on.
    """
    x = network.input
    for layer in network.layers[1:]:
        x = layer(x)
        if isinstance(layer, keras.layers.MaxPooling2D):
            x = keras.layers.Dropout(
                rate, seed=seed, name=f"{layer.name}_dropout"
            )(x)
            seed += 1
    return keras.Model(network.input, x, name=network.name)


def transferred(config, runs):
    """A task: a student of a target task, with a teacher of another.

    Args:
        config: The run's configuration. "terms": any of "activations" (of
            the source head), "attention" (at the pairs of layers "at",
            student's first) and "jacobian" (of attention, at the pair
            "jacobian_at", with "window" and "batch_statistics"), each with
            "weight", as the labels.
            "start": a run whose network the student begins from, or None.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`; with "jacobian" also "reduction", the part of
        that term's value on the training images that training took off, in
        percent.
    """
    dataset = learning.load(config)
    student = learning.build(config, dataset)
    if config.get("start"):
        start = runs.network(config["start"])
        student = tfkd.models.with_head(start, num_classes=dataset.num_classes)
    terms, weight = config["terms"], config["weight"]
    if not terms:
        trainer = tfkd.Distiller(student=student, label_weight=weight)
        learning.fit(trainer, dataset, config)
        return learning.scores(student, config)
    teacher = runs.network(config["teacher"])
    trainer = tfkd.Transferer(
        student=student,
        teacher=teacher,
        source_head="activations" in terms,
        matches=[_match(term, config) for term in terms],
        label_weight=weight,
    )
    watched, aside = [], learning.load(config).train

    def watch(logs):
        score = trainer.evaluate(aside, verbose=0, return_dict=True)
        watched.append(score.get("jacobian"))

    watcher = keras.callbacks.LambdaCallback(
        on_train_begin=watch, on_train_end=watch
    )
    learning.fit(
        trainer,
        dataset,
        config,
        teacher=teacher,
        runs=runs,
        callbacks=[watcher] if "jacobian" in terms else [],
    )
    results = learning.scores(student, config)
    if "jacobian" in terms:
        before, after = watched
        results["reduction"] = 100 * (1 - after / before)
    return results


def _match(term, config):
    """The match of a term, by its name."""
    weight = config["weight"]
    if term == "activations":
        loss = tfkd.losses.SquaredError()
        return tfkd.Match(loss, weight=weight, name=term)
    if term == "attention":
        loss = tfkd.losses.AttentionTransfer()
        at = [tuple(pair) for pair in config["at"]]
        return tfkd.Match(loss, at=at, weight=weight, name=term)
    return tfkd.AttentionJacobianMatch(
        [tuple(config["jacobian_at"])],
        window=config["window"],
        batch_statistics=config["batch_statistics"],
        weight=weight,
        name=term,
    )
