#!/usr/bin/env python3
"""The calls for a machine with one GPU that is available for fifteen minutes (docs/gpu.md).

    python3 lease.py evidence --out DIR     # first call
    python3 lease.py encoder --out DIR      # second call
    python3 lease.py state --out DIR        # third call, where the second says that parts of the state are left

Runs from the folder that `prepare.py` filled.  DIR is filled as the parts go on; results.md says what was not run.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("call", choices=["evidence", "encoder", "state"])
    a.add_argument("--out", default="out")
    a = a.parse_args()
    if a.call == "evidence":
        import evidence

        evidence.main(a.out)
    else:
        import encoder

        encoder.main(a.call, a.out)


if __name__ == "__main__":
    main()
