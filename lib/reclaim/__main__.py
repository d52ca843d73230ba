"""`python -m reclaim doctor`: says what this machine can run, what it cannot, and why."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run a command (default: the process's arguments); gives the exit status, 1 for a fault."""
    parser = argparse.ArgumentParser(prog="python -m reclaim", description="The workflow itself is run by `snakemake`.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="check this machine: what will run, what will not, and why")
    doctor.add_argument("--offline", action="store_true", help="do not try to reach the Hub")
    options = parser.parse_args(arguments)

    from reclaim.doctor import examine, report

    findings = examine(offline=options.offline)
    print(report(findings))
    return int(any(finding.state == "fault" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
