"""The command line: one file per command, and the only importer of click."""
