"""Measures this package beside others: `bench(Options(...))` on the same tokens, `bench_serving` its server."""

from .baseline import check, read_baseline
from .files import as_json, check_files, write_files
from .options import Options, parse
from .report import Report
from .serving import bench_serving, parse_serving
from .serving_tables import render_serving, write_serving
from .session import bench
from .tables import limits_table, render, shown

__all__ = [
    "Options",
    "Report",
    "as_json",
    "bench",
    "bench_serving",
    "check",
    "check_files",
    "limits_table",
    "parse",
    "parse_serving",
    "read_baseline",
    "render",
    "render_serving",
    "shown",
    "write_files",
    "write_serving",
]
