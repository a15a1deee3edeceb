"""A static site of all published results, from a folder of packs: the leaderboard.

The same packs give the same bytes, wherever and whenever it is built; it needs no server and no network.
"""
