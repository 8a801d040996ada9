"""The benchmark's steps in PyTorch, where it is installed."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import numpy as np
import pytest
import tensorflow as tf
from benchmarks import jacobian

torch = pytest.importorskip("torch")

from benchmarks import pytorch  # noqa: E402

WIDTH = 0.0625
MODES = [name for name, mode in jacobian.MODES.items() if mode.peer]


def test_knows_every_mode():
    images, labels = jacobian.batch_of(4)
    steps = pytorch.Steps(
        **jacobian.networks_of(WIDTH),
        images=torch.tensor(np.moveaxis(images, -1, 1)),
        labels=torch.tensor(labels).long(),
    )
    assert list(steps.losses()) == MODES


# The signs of a projection are drawn anew in each framework.
@pytest.mark.parametrize("name", sorted({*MODES} - {"projection"}))
def test_losses_and_gradients_are_those_of_tfkd(name):
    """With moving statistics that stand still.

    tfkd reads them before the training pass moves them, PyTorch's steps
    after it.
    """
    batch = jacobian.batch_of(8)
    networks = jacobian.networks_of(WIDTH)
    for layer in networks["student"].layers + networks["teacher"].layers:
        if "norm" in layer.name:
            rng = np.random.default_rng(len(layer.name))
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    peer = pytorch.Steps(
        **networks,
        images=torch.tensor(np.moveaxis(batch[0], -1, 1)),
        labels=torch.tensor(batch[1]).long(),
    )
    for layer in peer.student.layers.values():
        layer.momentum = 0.0
    loss = peer.losses()[name]()
    theirs = dict(
        zip(
            [name for name, _ in peer.student.named_parameters()],
            torch.autograd.grad(loss, list(peer.student.parameters())),
            strict=True,
        )
    )
    images, labels = map(tf.constant, batch)
    distiller = jacobian.distiller_of(jacobian.MODES[name], networks)
    seen = []
    distiller.optimizer.apply_gradients = lambda pairs: seen.extend(pairs)
    ours = distiller.train_step((images, labels))["loss"]
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    names = {
        "kernel": "weight",
        "gamma": "weight",
        "beta": "bias",
        "bias": "bias",
    }
    assert len(seen) == len(theirs)
    for gradient, variable in seen:
        layer, kind = variable.path.split("/")
        peers = theirs[f"layers.{layer}.{names[kind]}"].numpy()
        gradient = gradient.numpy()
        if gradient.ndim == 4:
            gradient = gradient.transpose(3, 2, 0, 1)
        elif gradient.ndim == 2:
            gradient = gradient.T
        scale = np.abs(peers).max()
        np.testing.assert_allclose(gradient, peers, atol=1e-4 * scale)


def test_a_projection_is_of_random_signs():
    images, labels = jacobian.batch_of(4)
    step = pytorch.step_of(
        "projection", jacobian.networks_of(WIDTH), images, labels
    )
    assert np.isfinite(step())
    assert step() != step()
