"""Students as files that run without tfkd, tried before they are kept."""

from tfkd.export.files import replacing
from tfkd.export.measuring import Measurement, measure
from tfkd.export.portable import in_float32, with_normalization
from tfkd.export.running import predict
from tfkd.export.students import FORMATS, Artefact, export_student

__all__ = [
    "FORMATS",
    "Artefact",
    "Measurement",
    "export_student",
    "in_float32",
    "measure",
    "predict",
    "replacing",
    "with_normalization",
]
