"""The tensors of a model and of its forward pass, with a verdict: `inspect(source, Options(...))` gives a Report."""

from ..compare.comparison import Comparison, Difference
from .files import check_files, write_files
from .options import Options
from .output import as_json, render, shown
from .report import Fault, Report, inspect
from .rules import load_rules

__all__ = [
    "Comparison",
    "Difference",
    "Fault",
    "Options",
    "Report",
    "as_json",
    "check_files",
    "inspect",
    "load_rules",
    "render",
    "shown",
    "write_files",
]
