"""What the packs of results/ answer of the questions of leaderboard.md, as findings.md writes it down."""
