"""Measures this package beside others: `bench(Options(...))` on the same tokens, `bench_serving` its server."""

from .baseline import check, read_baseline
from .files import as_json, check_files, write_json, write_picture
from .options import Options, parse
from .pages import Page
from .report import Report
from .serving import bench_serving, parse_serving
from .serving_tables import serving_page, write_serving
from .session import bench
from .tables import limits_table, page

__all__ = [
    "Options",
    "Page",
    "Report",
    "as_json",
    "bench",
    "bench_serving",
    "check",
    "check_files",
    "limits_table",
    "page",
    "parse",
    "parse_serving",
    "read_baseline",
    "serving_page",
    "write_json",
    "write_picture",
    "write_serving",
]
