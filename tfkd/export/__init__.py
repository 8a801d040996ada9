"""Students as files that run without tfkd, tried before they are kept."""

from tfkd.export.files import replacing
from tfkd.export.measuring import (
    MIN_RUNS,
    Measurement,
    measure,
    require_runtimes,
)
from tfkd.export.onnx_file import require_onnx
from tfkd.export.picture import plot_measurements
from tfkd.export.portable import in_float32, with_normalization
from tfkd.export.running import predict
from tfkd.export.students import FORMATS, Artefact, export_student

__all__ = [
    "FORMATS",
    "MIN_RUNS",
    "Artefact",
    "Measurement",
    "export_student",
    "in_float32",
    "measure",
    "plot_measurements",
    "predict",
    "replacing",
    "require_onnx",
    "require_runtimes",
    "with_normalization",
]
