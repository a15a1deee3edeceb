"""Packs, the files in which results travel: written, checked, read and merged into stores.

`bench.wire.pack` says what a pack is.
"""
