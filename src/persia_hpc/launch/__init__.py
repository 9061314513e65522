"""Starts processes and watches over them; knows no role, no torch."""
