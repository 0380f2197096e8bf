"""whook beside its peers, how its cost grows, and a soak; see `python -m bench --help`."""
