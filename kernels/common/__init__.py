"""What every op folder shares: argument checks, backend choice, precision, row chunks. Nothing here imports an op."""
