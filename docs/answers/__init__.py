"""Answers the questions of first-leaderboard.md and leaderboard.md from published packs."""
