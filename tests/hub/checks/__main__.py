"""Runs all checks in order, in one process, against one hub. The last line on stdout is the outcome."""

import importlib
import json
import sys
import traceback

import bench

# Importing registers the checks. Later ones read what earlier ones pushed.
for part in ("pushing", "pulling", "borders"):
    importlib.import_module(part)


def main():
    passed, failed = 0, []
    for function in bench.CHECKS:
        try:
            function()
            passed += 1
        except Exception:
            print(f"--- {bench.MODE}: {function.__name__}", file=sys.stderr)
            traceback.print_exc(limit=8)
            failed.append(function.__name__)
    print(json.dumps({"passed": passed, "failed": failed}))


if __name__ == "__main__":
    main()
