"""What runs the network: training, deraining, checkpoints, ranks, events. Only actions/, hubconf.py
and the benchmarks import it."""
