"""Answers the questions of first-leaderboard.md from the packs of results/."""
