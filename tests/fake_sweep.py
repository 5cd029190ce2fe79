"""bin/sweep with commands that train nothing and take a moment. Run as a script.

Each begun run is a line in the file `begun`: its seed, and the process.
"""

import json
import os
import sys
import time

from irp_jax import config as configs
from irp_jax.cli import sweep
from irp_jax.config import Config
from irp_jax.sweep.child_processes import Commands

SECONDS = 0.4


def run(self, command, flags, log, cores):
    given = dict(flag[2:].split("=", 1) for flag in flags)
    seed = int(given.get("seed", 0))
    with open("begun", "a") as begun:
        begun.write(f"{seed} {os.getpid()}\n")
    time.sleep(SECONDS)
    config = Config(dataset="digits", budget="0.3", seed=seed)
    found = {
        "config": configs.settings(config), "identity": configs.identity(config),
        "wall_time_s": 1.0, "keep_counts": {}, "rollbacks": [], "attack": {"images": 360},
        "accuracy": {"natural": 0.5}, "network_sha256": str(seed),
    }  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    (log.parent / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    Commands.run = run
    sweep.show_results = lambda console, results: print(f"{len(results)} results")
    sweep.sweep(sys.argv[1:])
