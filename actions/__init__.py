"""What main.py does: one file for each value of -a. Only main.py and the benchmarks import it."""
