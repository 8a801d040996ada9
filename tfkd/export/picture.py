"""Accuracy against size and against time, one labelled point a network."""

import itertools
import math

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_OWN = {"teacher": ("0.25", "s"), "student": ("0.25", "o")}
_POINTS = 9  # size of a marker
_ANGLES = (90, 270, 0, 180, 60, 120, 240, 300, 30, 150, 210, 330)


def plot_measurements(measurements, path, *, title=""):
    """Draws accuracy against size on disk and against time.

    A line runs from each median time to the time that 90 % of the runs stay
    below.

    Args:
        measurements: Dict, name -> `Measurement`, as `measure` returns it.
        path: File of the picture.
        title: Above both panels.

    Raises:
        ValueError: If there is no measurement.
    """
    if not measurements:
        raise ValueError(
            "Invalid value for argument `measurements`. Expected at least "
            "one. Received: measurements={}"
        )
    # Deferred, so that measuring does without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left")
    sizes, times = figure.subplots(1, 2, sharey=True)
    colors = itertools.cycle(_COLORS)
    looks = {
        name: _OWN.get(name) or (next(colors), "o") for name in measurements
    }
    kilobytes = {n: m.bytes / 1000 for n, m in measurements.items()}
    medians = {n: m.milliseconds for n, m in measurements.items()}
    percents = {n: 100 * m.accuracy for n, m in measurements.items()}
    for name, m in measurements.items():
        times.plot(
            [m.milliseconds, m.slow_milliseconds],
            [percents[name]] * 2,
            color=looks[name][0],
            alpha=0.4,
            linewidth=1.2,
            label="up to what 90 % of the runs stay below"
            if name == next(iter(measurements))
            else None,
        )
    slow = [m.slow_milliseconds for m in measurements.values()]
    low, high = min(percents.values()), max(percents.values())
    margin = max(0.35 * (high - low), 0.6)
    for axes, values, ends, label in (
        (sizes, kilobytes, [], "size on disk, kB"),
        (times, medians, slow, "median time of one image on one thread, ms"),
    ):
        for index, (name, x) in enumerate(values.items()):
            color, marker = looks[name]
            axes.plot(
                x,
                percents[name],
                marker,
                color=color,
                # Of two in one place, the later shows within the earlier.
                ms=_POINTS * (1.3 - 0.7 * index / len(values)),
                mec="white",
                mew=0.8,
                zorder=3,
            )
        axes.set_xscale("log")
        ends = [math.log10(x) for x in (*values.values(), *ends)]
        room = max(0.12 * (max(ends) - min(ends)), 0.12)
        axes.set_xlim(10 ** (min(ends) - room), 10 ** (max(ends) + room))
        axes.set_ylim(low - margin, min(high + margin, 100.2))
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(_plain)
        axes.xaxis.set_minor_formatter(_sparse)
        axes.tick_params(axis="x", which="minor", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    sizes.set_ylabel("accuracy, %")
    times.legend(loc="lower left", frameon=False, fontsize=8)
    figure.draw_without_rendering()
    # Else the labels, which are placed by now, would move the panels.
    figure.set_layout_engine("none")
    for axes, values in ((sizes, kilobytes), (times, medians)):
        points = {name: (values[name], percents[name]) for name in values}
        label_colors = {name: look[0] for name, look in looks.items()}
        _label(axes, points, label_colors, canvas.get_renderer())
    figure.savefig(path, dpi=140)


def _plain(value, _):
    """A tick's label."""
    return f"{value:g}"


def _sparse(value, _):
    """Labels of the ticks between powers of ten: 2 and 5 alone."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if digit in (2, 5) else ""


def _label(axes, points, colors, renderer):
    """Writes each name near its point, where nothing else is.

    Args:
        axes: A panel.
        points: Dict, name -> (x, y).
        colors: Dict, name -> colour.
        renderer: That of the canvas.
    """
    from matplotlib.transforms import Bbox

    panel = axes.get_window_extent(renderer)
    pixels = axes.figure.dpi / 72  # in a point
    centers = {n: axes.transData.transform(p) for n, p in points.items()}
    half = 0.6 * _POINTS * pixels
    taken = [
        Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)
        for x, y in centers.values()
    ]
    for name in sorted(points, key=lambda name: points[name]):
        text = axes.annotate(
            name,
            points[name],
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color=colors[name],
            arrowprops={
                "arrowstyle": "-",
                "color": colors[name],
                "alpha": 0.6,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 4,
            },
        )
        size = text.get_window_extent(renderer)
        best = None
        for ring, angle in itertools.product(range(7), _ANGLES):
            dx, dy = _offset(ring, angle, size.width, size.height, pixels)
            x, y = centers[name] + [dx, dy]
            box = Bbox.from_bounds(
                x - size.width / 2, y - size.height / 2, size.width, size.height
            ).padded(2)
            overlaps = sum(box.overlaps(other) for other in taken) + sum(
                _passes(centers[name], (x, y), other, half)
                for other in centers.values()
            )
            inside = panel.containsx(box.x0) and panel.containsx(box.x1)
            inside &= panel.containsy(box.y0) and panel.containsy(box.y1)
            rank = (overlaps + (0 if inside else 2), ring)
            if best is None or rank < best[0]:
                best = (rank, (dx, dy), box)
            if rank[0] == 0:
                break
        _, (dx, dy), box = best
        text.set_position((dx / pixels, dy / pixels))
        taken.append(box)
        if best[0][1] == 0:
            text.arrow_patch.set_visible(False)


def _passes(start, end, point, reach):
    """Whether a line comes nearer than `reach` to a point on its way.

    Not if it begins there.
    """
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    px, py = point[0] - x, point[1] - y
    along = (px * dx + py * dy) / (dx * dx + dy * dy)
    if math.hypot(px, py) < reach or not 0 < along < 1:
        return False
    return math.hypot(px - along * dx, py - along * dy) < reach


def _offset(ring, angle, width, height, pixels):
    """From a point to the middle of its label, in pixels."""
    gap = (0.75 * _POINTS + 15 * ring) * pixels
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return x * (width / 2 + gap), y * (height / 2 + gap)
