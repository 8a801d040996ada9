"""How networks are trained, whatever method teaches them."""

from typing import NamedTuple

import keras

_CRD_EPOCHS = 240
# Epochs after which the rate falls to a tenth.
_CRD_DROPS = (150, 180, 210)


class Protocol(NamedTuple):
    """A way to train networks.

    Attributes:
        description: In words, for --help.
        learning_rate: At the start.
        shufflenet_rate: The same for a ShuffleNet.
        options: Dict, option -> its default, where it is not the script's.
        data: Dict of settings of `tfkd.data.load`.
        optimizer: Function of a learning rate at the start, the number of
            steps and whether a stage before the main one is trained, that
            returns a Keras optimizer.
        evaluations: How often a run is validated, spread over its epochs; or
            None: after each epoch.
    """

    description: str
    learning_rate: float
    shufflenet_rate: float
    options: dict
    data: dict
    optimizer: callable
    evaluations: int | None

    def rate_of(self, network):
        """The learning rate at the start of a network of `tfkd.models`."""
        if network.startswith("shufflenet"):
            return self.shufflenet_rate
        return self.learning_rate


class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay is a part of the gradient.

    Formula: `m = momentum m - rate (gradient + decay w)`, `w = w + m`

    That is what PyTorch's SGD calls weight decay, and a penalty of
    `decay / 2 |w|^2` on each variable that is trained: biases, normalisation
    and projectors too. Keras' own takes `rate decay w` off the weights beside
    the momentum, a tenth as much where that is 0.9.

    Args:
        learning_rate: As of `keras.optimizers.SGD`.
        decay: Of each variable. >= 0.
        **kwargs: As of `keras.optimizers.SGD`.
    """

    def __init__(self, learning_rate=0.01, *, decay=0.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.decay = decay

    def update_step(self, gradient, variable, learning_rate):
        """As `keras.optimizers.SGD.update_step`."""
        decay = keras.ops.cast(self.decay, variable.dtype)
        gradient = keras.ops.cast(gradient, variable.dtype) + decay * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """As `keras.optimizers.SGD.get_config`."""
        return {**super().get_config(), "decay": self.decay}


def _adam(rate, steps, stage):
    """Adam, the rate falling to 0 along a cosine.

    At rate 0 the moving statistics of BatchNormalization, by which the
    student infers, catch up with the weights. While these move fast, they
    lag behind; where a Jacobian match is by moving statistics, so far that
    inference can be much worse than training.
    """
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(rate, steps)
    )


def _crd_sgd(rate, steps, stage):
    """As the common benchmark; in a stage before, the rate is constant."""
    if not stage:
        # The last step of the rate before.
        drops = [steps * drop // _CRD_EPOCHS - 1 for drop in _CRD_DROPS]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            drops, [rate * 0.1**drop for drop in range(len(drops) + 1)]
        )
    return CoupledSGD(rate, decay=5e-4, momentum=0.9)


def _dropping_sgd(*drops):
    """SGD with momentum, the rate a tenth after each of these shares."""

    def optimizer(rate, steps, stage):
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
            # The last step of the rate before.
            [round(steps * drop) - 1 for drop in drops],
            [rate * 0.1**number for number in range(len(drops) + 1)],
        )
        return keras.optimizers.SGD(schedule, momentum=0.9)

    return optimizer


PROTOCOLS = {
    "short": Protocol(
        "Adam, the rate falling to 0 along a cosine",
        learning_rate=5e-3,
        shufflenet_rate=5e-3,
        options={},
        data={},
        optimizer=_adam,
        evaluations=12,
    ),
    "crd": Protocol(
        "the common benchmark of Tian et al. 2020: all training images, "
        "cropped and mirrored at random; SGD with momentum 0.9 and weight "
        f"decay 5e-4 on all that is trained, {_CRD_EPOCHS} epochs, the rate "
        f"a tenth after {', '.join(map(str, _CRD_DROPS))} (in proportion for "
        "other --epochs); accuracy on the test images after each epoch",
        learning_rate=0.05,
        shufflenet_rate=0.01,
        options={
            "epochs": _CRD_EPOCHS,
            "batch_size": 64,
            "examples_per_class": None,
            "student": "resnet8x4",
            "student_width": 1.0,
            "teacher": "resnet32x4",
            "teacher_width": 1.0,
            "teacher_epochs": _CRD_EPOCHS,
            "network": "resnet32x4",
            "width": 1.0,
        },
        data={"augment": True, "validation_from": "test"},
        optimizer=_crd_sgd,
        evaluations=None,
    ),
}

# Of transfer.py. "steps" are rounded up to whole epochs.
TRANSFER = {
    "short": PROTOCOLS["short"],
    "scenes": Protocol(
        "Srinivas & Fleuret 2018 on MIT scenes: SGD with momentum 0.9, 75 "
        "epochs, the rate a tenth after 40 and 60",
        learning_rate=1e-3,
        shufflenet_rate=1e-3,
        options={"epochs": 75, "batch_size": 8},
        data={},
        optimizer=_dropping_sgd(40 / 75, 60 / 75),
        evaluations=12,
    ),
    "finetune": Protocol(
        "Li et al. 2020: SGD with momentum 0.9, 9000 steps, the rate a tenth "
        "after 6000; they choose it from 0.005, 0.01, 0.02 and 0.04",
        learning_rate=0.01,
        shufflenet_rate=0.01,
        options={"epochs": None, "steps": 9000, "batch_size": 64},
        data={},
        optimizer=_dropping_sgd(2 / 3),
        evaluations=12,
    ),
    "finetune-long": Protocol(
        "the same on Foods: 16000 steps, a tenth after 8000 and 12000",
        learning_rate=0.01,
        shufflenet_rate=0.01,
        options={"epochs": None, "steps": 16000, "batch_size": 64},
        data={},
        optimizer=_dropping_sgd(1 / 2, 3 / 4),
        evaluations=12,
    ),
}

ALL = {**PROTOCOLS, **TRANSFER}
