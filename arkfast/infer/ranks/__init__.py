"""Several processes that transcribe one input: who does which rows, what becomes of those of a process that died, and one output of all."""

from arkfast.infer.ranks.journals import take_in, wrote_something
from arkfast.infer.ranks.lead import follow, for_rank, lead, of_all_ranks
from arkfast.infer.ranks.plan import Lengths, Shard
from arkfast.infer.ranks.team import Tally, Team, team_of

__all__ = ["Lengths", "Shard", "Tally", "Team", "follow", "for_rank", "lead", "of_all_ranks", "take_in", "team_of", "wrote_something"]
