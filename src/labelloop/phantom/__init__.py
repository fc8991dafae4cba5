"""A deterministic synthetic abdomen: the built-in data set, with its hidden truth."""

from labelloop.phantom.collection import write_phantom
from labelloop.phantom.patient import Patient, draw_patient, field_of_view, render, tissue_map

__all__ = ["Patient", "draw_patient", "field_of_view", "render", "tissue_map", "write_phantom"]
