"""Packs, the files in which results travel: written, checked, read and merged into stores.

`bench.records.pack_format` says what a pack is.
"""
