"""Students as files that other programs run, each compared with the student before it gets its name."""
