"""What the packs of results/ answer of the questions of leaderboard.md, for findings.md and evidence.md."""
