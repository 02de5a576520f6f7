"""Measures this package beside others on the same tokens: `bench(Options(...))` gives a Report."""

from .baseline import check, read_baseline
from .files import as_json, check_files, write_files
from .options import Options, parse
from .report import Report
from .session import bench
from .tables import limits_table, render

__all__ = [
    "Options",
    "Report",
    "as_json",
    "bench",
    "check",
    "check_files",
    "limits_table",
    "parse",
    "read_baseline",
    "render",
    "write_files",
]
