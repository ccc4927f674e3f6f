"""Jobs of SLURM's, which may be stopped before their time is over, and started again."""

import os
import subprocess


def slurm_job() -> str | None:
    """The name of the job that this process belongs to; None outside of SLURM."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def was_started_again() -> bool:
    """Whether this job ran before."""
    return os.environ.get("SLURM_RESTART_COUNT", "").lstrip("0").isdecimal()


def requeue(job: str) -> str:
    """Have a job started again; how that went, in words."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol could not requeue job {job}: {error}"
    return f"job {job} is queued again" if done.returncode == 0 else f"scontrol says: {done.stderr.strip()}"
