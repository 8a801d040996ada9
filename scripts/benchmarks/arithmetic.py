"""What each mode of Jacobian matching must cost at least.

Each pass through a convolution, forward, backward to its input or backward
to its kernel, takes the same number of multiply-adds:

    output height * output width * kernel height * kernel width
    * input channels * output channels.

All else of a step (normalisation, activations, pools, the optimizer) is left
out; what is left takes nearly all of the arithmetic and much of the time.
"""

from typing import NamedTuple

import keras


def convolutions(model, until=None):
    """Multiply-adds of one image's forward pass through the convolutions.

    Args:
        model: A Functional model, whose layers stand in order.
        until: Name of the last layer that counts; None: all.

    Returns:
        An int.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            height, width = layer.output.shape[1:3]
            total += height * width * layer.kernel.shape.num_elements()
        if layer.name == until:
            break
    return total


class Costs(NamedTuple):
    """Multiply-adds for one image.

    Attributes:
        student: One forward pass of the student.
        teacher: One of the teacher.
        student_part: One of the student up to the layer whose attention is
            matched.
        teacher_part: One of the teacher up to that layer.
    """

    student: int
    teacher: int
    student_part: int
    teacher_part: int

    @property
    def training(self):
        """The student's training pass.

        Forward, backward to the inputs, backward to the kernels. (The images
        need no gradient: the first layer's share of the second, 1 % of the
        step, is counted all the same.)
        """
        return 3 * self.student

    def teacher_jacobian(self, rows=1):
        """The teacher forward, and backward to the images for each row.

        Args:
            rows: Of the Jacobian.
        """
        return (1 + rows) * self.teacher

    def student_jacobian(self, rows=1, own_pass=True):
        """A pass of the student, differentiated twice.

        Forward, where it is not the training pass, and backward to the
        images for each row of the Jacobian. This backward pass is a chain of
        convolutions, too, linear in what comes in and in the kernels; so its
        derivative takes, for each row, one pass to what came in and one to
        the kernels. Nothing goes on through the forward pass: of ReLU and
        max pooling the backward pass sees only which units are on, which has
        no derivative. Of statistics of the batch something does, but joins
        what the training pass sends back anyway.

        Args:
            rows: Of the Jacobian.
            own_pass: Whether it is another pass than that of training.
        """
        return (own_pass + rows + 2 * rows) * self.student

    @property
    def attention_jacobian(self):
        """What the Jacobian of attention adds to both networks' forward pass.

        As above, of the part up to the layer. But attention is the square of
        features, so the backward pass begins with the features themselves,
        and its derivative does go on through the forward pass, to inputs and
        to kernels.
        """
        return self.teacher_part + (4 + 2) * self.student_part
