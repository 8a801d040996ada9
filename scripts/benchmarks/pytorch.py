"""The steps of the Jacobian table in plain PyTorch."""

import keras
import numpy as np
import torch
from torch.nn import functional

from benchmarks import jacobian, timing

_TEMPERATURE = 4.0  # of tfkd.methods' "kd", as its weights below
_LABEL_WEIGHT, _SOFT_WEIGHT = 0.1, 0.9


def step_of(name, networks, images, labels):
    """A function that runs one training step of a mode.

    Args:
        name: A key of `jacobian.MODES`.
        networks: As `jacobian.networks_of` returns.
        images: As `jacobian.batch_of` returns.
        labels: As `jacobian.batch_of` returns.

    Returns:
        A function without arguments that returns the loss.
    """
    torch.set_num_threads(timing.THREADS)
    images = torch.tensor(np.moveaxis(images, -1, 1)).contiguous()
    steps = Steps(**networks, images=images, labels=torch.tensor(labels).long())
    loss = steps.losses()[name]
    optimizer = torch.optim.Adam(steps.student.parameters(), 1e-3, eps=1e-7)
    return lambda: steps.train(loss, optimizer)


class Network(torch.nn.Module):
    """A copy of a network of `tfkd.models.vgg`, weights included.

    Args:
        model: The Keras model.
    """

    def __init__(self, model):
        super().__init__()
        layers = {layer.name: _copy(layer) for layer in model.layers[1:]}
        self.layers = torch.nn.ModuleDict(layers)

    def forward(self, x, begin=None, end=None):
        """Runs the layers after `begin`, to `end`; None: all.

        Args:
            x: Images, or the output of `begin`.
            begin: Name of a layer.
            end: Name of a layer.

        Returns:
            The output of the last.
        """
        names = list(self.layers)
        first = 0 if begin is None else names.index(begin) + 1
        last = len(names) if end is None else names.index(end) + 1
        for name in names[first:last]:
            x = self.layers[name](x)
        return x


class _Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def _copy(layer):
    """A layer of PyTorch that computes the same."""
    weights = [torch.tensor(weight) for weight in layer.get_weights()]
    if isinstance(layer, keras.layers.Conv2D):
        inputs, outputs = weights[0].shape[2:]
        result = torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        named = {"weight": weights[0].permute(3, 2, 0, 1)}
    elif isinstance(layer, keras.layers.BatchNormalization):
        result = torch.nn.BatchNorm2d(
            len(weights[0]), layer.epsilon, 1 - layer.momentum
        )
        names = ("weight", "bias", "running_mean", "running_var")
        named = dict(zip(names, weights, strict=True))
        named["num_batches_tracked"] = result.num_batches_tracked
    elif isinstance(layer, keras.layers.Dense):
        result = torch.nn.Linear(*weights[0].shape)
        named = {"weight": weights[0].T, "bias": weights[1]}
    else:
        kinds = {
            keras.layers.ReLU: torch.nn.ReLU,
            keras.layers.MaxPooling2D: lambda: torch.nn.MaxPool2d(2),
            keras.layers.GlobalAveragePooling2D: _Mean,
        }
        return kinds[type(layer)]()
    result.load_state_dict(named)
    return result


class Steps:
    """The losses of all modes over one batch.

    Args:
        student: The Keras model.
        teacher: The Keras model.
        images: `[batch, 3, 32, 32]`.
        labels: `[batch]`.

    Attributes:
        student: The student's copy, in training mode between the steps.
    """

    def __init__(self, student, teacher, images, labels):
        self.student = Network(student).train()
        self._teacher = Network(teacher).eval().requires_grad_(False)
        self._images, self._labels = images, labels

    def train(self, loss, optimizer):
        """One training step; returns the loss."""
        optimizer.zero_grad()
        value = loss()
        value.backward(inputs=list(self.student.parameters()))
        optimizer.step()
        return value.item()

    def losses(self):
        """Mode -> a function without arguments that returns its loss."""
        part = round(jacobian.FRACTION * len(self._images))
        return {
            "ce": self._cross_entropy,
            "kd": self._soft_targets,
            "activations": self._activations,
            "label": lambda: self._jacobians(self._label),
            "top": lambda: self._jacobians(self._top),
            "projection": lambda: self._jacobians(self._signs),
            "label, teacher given": self._given(len(self._images)),
            "label, teacher given, a quarter": self._given(part),
            "norm penalty": self._penalty,
            "all outputs": lambda: self._jacobians(self._all),
            "activations, attention": self._attention,
        }

    def _cross_entropy(self):
        return functional.cross_entropy(
            self.student(self._images), self._labels
        )

    def _soft_targets(self):
        with torch.no_grad():
            theirs = self._teacher(self._images)
        ours = self.student(self._images)
        soft = functional.kl_div(
            torch.log_softmax(ours / _TEMPERATURE, -1),
            torch.softmax(theirs / _TEMPERATURE, -1),
            reduction="batchmean",
        )
        return (
            _LABEL_WEIGHT * functional.cross_entropy(ours, self._labels)
            + _SOFT_WEIGHT * _TEMPERATURE**2 * soft
        )

    def _activations(self):
        with torch.no_grad():
            theirs = self._teacher(self._images)
        return self._with_activations(theirs)

    def _with_activations(self, theirs):
        ours = self.student(self._images)
        error = (theirs - ours).square().sum(-1).mean()
        return functional.cross_entropy(ours, self._labels) + error

    # Each of these returns the combinations `[rows, batch, classes]` of the
    # outputs whose gradients are compared.

    def _label(self, outputs):
        chosen = self._labels[: len(outputs)]
        return functional.one_hot(chosen, jacobian.NUM_CLASSES)[None]

    def _top(self, outputs):
        return functional.one_hot(outputs.argmax(-1), outputs.shape[-1])[None]

    def _signs(self, outputs):
        return torch.randint(0, 2, (1, *outputs.shape)) * 2 - 1

    def _all(self, outputs):
        classes = torch.eye(outputs.shape[-1])
        return classes[:, None].expand(-1, len(outputs), -1)

    def _jacobians(self, combinations):
        rows, theirs = self._of_teacher(combinations, len(self._images))
        loss = self._cross_entropy()
        return loss + _mean_square(theirs - self._of_student(rows))

    def _given(self, size):
        rows, theirs = self._of_teacher(self._label, size)

        def loss():
            loss = self._cross_entropy()
            return loss + _mean_square(theirs - self._of_student(rows))

        return loss

    def _penalty(self):
        rows = functional.one_hot(self._labels, jacobian.NUM_CLASSES)[None]
        loss = self._cross_entropy()
        return loss + _mean_square(self._of_student(rows))

    def _of_teacher(self, combinations, size):
        """The combinations and the teacher's Jacobian of `size` images."""
        images = self._images[:size].clone().requires_grad_()
        outputs = self._teacher(images)
        rows = combinations(outputs)
        return rows, _gradients(outputs, rows, images)

    def _of_student(self, rows):
        """The student's Jacobian, by its moving statistics.

        After the training pass: a training pass that came later would change
        the statistics before the backward pass reads them, silently.
        """
        images = self._images[: rows.shape[1]].clone().requires_grad_()
        self.student.eval()
        outputs = self.student(images)
        self.student.train()
        return _gradients(outputs, rows, images, create_graph=True)

    def _attention(self):
        layer = jacobian.ATTENTION_LAYER
        images = self._images.clone().requires_grad_()
        features = self._teacher(images, end=layer)
        with torch.no_grad():
            theirs = self._teacher(features, begin=layer)
        maps = _pooled(features)
        place = functional.one_hot(maps.argmax(-1), maps.shape[-1])
        target = _gradients(maps, place[None], images)[0]
        loss = self._with_activations(theirs)
        images = self._images.clone().requires_grad_()
        self.student.eval()
        maps = _pooled(self.student(images, end=layer))
        self.student.train()
        ours = _gradients(maps, place[None], images, create_graph=True)[0]
        difference = _unit(target) - _unit(ours)
        return loss + _mean_square(difference[None])


def _gradients(outputs, rows, images, create_graph=False):
    """`[rows, batch, 3, 32, 32]`: of combinations of the outputs."""
    return torch.stack(
        [
            torch.autograd.grad(
                (row * outputs).sum(),
                images,
                retain_graph=create_graph or index < len(rows) - 1,
                create_graph=create_graph,
            )[0]
            for index, row in enumerate(rows)
        ]
    )


def _mean_square(rows):
    """The mean over the batch of squares summed over all else."""
    return rows.square().sum() / rows.shape[1]


def _pooled(features):
    """The attention map, pooled as by a window of 5, `[batch, places]`."""
    maps = features.square().sum(1, keepdim=True)
    window = [max(1, round(size / 5)) for size in maps.shape[2:]]
    return functional.avg_pool2d(maps, window, 1).flatten(1)


def _unit(gradients):
    return functional.normalize(gradients.flatten(1))
