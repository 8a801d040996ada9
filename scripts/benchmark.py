"""Times training steps side by side; each table is a module of benchmarks/.

All steps of a table run in turn in each round, so that a noisy machine slows
all of them alike.
"""

import common
from benchmarks import (
    gaussian,
    jacobian,
    methods,
    selectivity,
    timing,
    transport,
)

TABLES = {
    "methods": methods,
    "jacobian": jacobian,
    "gaussian": gaussian,
    "transport": transport,
    "nst": selectivity,
}


def parser(table="methods"):
    """The script's argument parser.

    Args:
        table: The table whose options it has.
    """
    result = common.Parser(f"{__doc__}\n{table}: {TABLES[table].__doc__}")
    _add_table(result)
    TABLES[table].add_arguments(result)
    return result


def _add_table(parser):
    parser.add_argument(
        "--table",
        choices=TABLES,
        default="methods",
        help="what to measure; each has options of its own",
    )


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of strings, or None for the command line.

    Returns:
        0.
    """
    first = common.Parser(None, add_help=False)
    _add_table(first)
    table = first.parse_known_args(argv)[0].table
    options = parser(table).parse(argv, TABLES[table].SMOKE)
    TABLES[table].run(options)
    return 0


if __name__ == "__main__":
    timing.limit_threads()
    common.start(main)
