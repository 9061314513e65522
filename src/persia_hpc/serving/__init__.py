"""Writes what is trained as versions that a service follows, and reads them (docs/serving.md).

version-NNNNNNNN/   manifest.json; dense.pt; server-NNNN.rows: rows changed since the version before
base-NNNNNNNN/      manifest.json; server-NNNN.rows: all rows as of the version with this number
latest              a link to the newest version
progress            how far training is, at this moment
"""
