"""Writes packs, checks and reads them, and merges them into stores. Packs are files that carry results.

`tensorbench.records.pack_format` describes the format.
"""
