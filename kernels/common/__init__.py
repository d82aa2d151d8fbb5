"""What every op folder shares: argument checks, backend choice, precision, row chunks. Knows no op."""
