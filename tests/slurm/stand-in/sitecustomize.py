"""In the jobs' interpreter: note what each job was given, take the CPU for a GPU, and hold or burden it where a test asks.

Notes go to $RECLAIM_NOTES/events.jsonl: rule, outputs, SLURM's job, devices, time of begin and end. A file
$RECLAIM_NOTES/hold/NAME, where NAME is a part of the job's first output, holds the job in the middle of its training for as
long as it is there; a file burden/NAME makes it take that many bytes more.
"""

import os
import sys

if any("/.snakemake/scripts/" in each for each in getattr(sys, "orig_argv", [])):
    import atexit
    import json
    import time
    from pathlib import Path

    import reclaim.job

    NOTES = Path(os.environ["RECLAIM_NOTES"])

    class WatchedJob(reclaim.job.Job):
        def __init__(self, snakemake, terminal):
            super().__init__(snakemake, terminal)
            self.note("begin")
            atexit.register(self.note, "end")

        def note(self, what):
            event = {
                "what": what,
                "rule": self.snakemake.rule,
                "output": self.snakemake.output[0],
                "job": os.environ["SLURM_JOB_ID"],
                "gpu": self.snakemake.resources.get("gpu", 0),
                "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                "at": time.time(),
            }
            line = json.dumps(event) + "\n"
            descriptor = os.open(NOTES / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())
            os.close(descriptor)

        def asked(self, what):
            for path in (NOTES / what).glob("*"):
                if path.name in self.snakemake.output[0]:
                    return path

        def device(self):
            import torch

            return torch.device("cpu")

        def progress(self, iterable, total=None, desc=""):
            burden = None
            for done, item in enumerate(super().progress(iterable, total, desc)):
                if done == 6:  # some state has been saved by then
                    if held := self.asked("hold"):
                        self.note("held")
                    while True:
                        if burden is None and (path := self.asked("burden")):
                            burden = bytearray(b"x") * int(path.read_text())
                        if not held or not held.exists():
                            break
                        time.sleep(0.1)
                yield item
            del burden

    reclaim.job.Job = WatchedJob
