"""What is timed and how: implementations of each op, the oracles that they are checked against, ceilings, the clock, goals, results."""
