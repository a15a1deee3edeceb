"""Packs, the files that carry results: written, checked, read and merged into stores.

`bench.records.pack_format` describes the format.
"""
