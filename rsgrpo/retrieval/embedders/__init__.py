"""Turn questions and pages into vectors, one each or many."""
