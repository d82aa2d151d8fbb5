"""What a run says of itself while it trains: metrics of a step, times of its phases, the log and the profile."""
