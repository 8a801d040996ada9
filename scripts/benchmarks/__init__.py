"""The tables of `benchmark.py`, a module each.

A module's docstring says what its table shows. Besides, it has:

- `SMOKE`: dict of the options' defaults under --smoke.
- `add_arguments(parser)`: adds its options.
- `run(options)`: measures and prints.
"""
