"""What a job would do on a cluster: bytes and seconds by hop, from measured constants.

docs/scaling.md says which formulas, and what they leave out.
"""
