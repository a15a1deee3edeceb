"""The leaderboard: a static site of all published results, built from a folder of packs.

The same packs give the same bytes, wherever and whenever the site is built. The site needs no server and no
network.
"""
