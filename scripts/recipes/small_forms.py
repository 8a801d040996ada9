"""What the small forms of several papers share, and so compute once.

A VGG-13 that has learned all images of Fashion-MNIST teaches a VGG-8 with a
few of them, of equal widths, narrow both. Digits are the quick second data.
"""

from recipes import learning

# The students' rate was chosen with labels alone, on validation images.
_ADAM = {"optimizer": "adam", "learning_rate": 1e-2, "drops": [0.8]}
WIDTH = 0.125

FASHION = {
    **_ADAM,
    "data": learning.FASHION,
    "network": "vgg8",
    "width": WIDTH,
    "examples_per_class": 100,
    "batch_size": 64,
    "steps": 800,
}
FASHION_TEACHER = {
    **_ADAM,
    "task": "learning.trained",
    "learning_rate": 5e-3,
    "data": learning.FASHION,
    "network": "vgg13",
    "width": WIDTH,
    "examples_per_class": None,
    "batch_size": 128,
    "steps": 1500,
    "seed": 0,
}
DIGITS = {
    **FASHION,
    "data": "digits",
    "examples_per_class": 10,
    "batch_size": 50,
    "steps": 100,
}
DIGITS_TEACHER = {
    **FASHION_TEACHER,
    "data": "digits",
    "batch_size": 64,
    "steps": 300,
}

FASHION_TEXT = (
    "Fashion-MNIST, 100 images of each class; a VGG-13 teacher of all images "
    "and a VGG-8 student, an eighth of the channels; Adam 1e-2, a tenth of it "
    "after 80 % of 800 steps, batch 64"
)
DIGITS_TEXT = (
    "scikit-learn's digits, 10 images of each class; a VGG-13 teacher of all "
    "and a VGG-8 student, an eighth of the channels; Adam 1e-2, a tenth of it "
    "after 80 % of 100 steps, batch 50"
)


def by_method(setting, method, *, teacher, **given):
    """The configuration of a student that learns by a method.

    Args:
        setting: Dict of data, schedule and network.
        method: As of `tfkd.methods.build`; "ce" has no teacher.
        teacher: The teacher's run.
        **given: Further settings of `taught.taught`.
    """
    return {
        "task": "taught.taught",
        **setting,
        "method": method,
        "teacher": None if method == "ce" else teacher,
        "settings": {},
        "label_weight": None,
        "points": None,
        "aligned": None,
        **given,
    }
