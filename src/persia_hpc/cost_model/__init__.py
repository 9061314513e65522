"""Predicts what a job would do on a cluster: bytes and seconds by hop, from measured constants.

docs/scaling.md has the formulas, and says what they leave out.
"""
