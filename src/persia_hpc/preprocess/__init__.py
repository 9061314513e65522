"""Turns raw data into dataset files: one module per source, shared parsing, ids and outputs."""
