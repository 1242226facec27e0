"""eo-grow's conversion, run by the Python of its own environment: reads its config as JSON, prints what it took.

The pipeline's own workflow and arguments, on two processes of eo-learn's executor; eo-grow would start them by Ray.
"""

import json
import resource
import sys
import time

from eogrow.pipelines.batch_to_eopatch import BatchToEOPatchPipeline
from eolearn.core import EOExecutor


def main() -> None:
    """Convert every tile of the grid."""
    pipeline = BatchToEOPatchPipeline.from_raw_config(json.load(sys.stdin))
    workflow = pipeline.build_workflow()
    arguments = pipeline.get_execution_arguments(workflow, pipeline.get_patch_list())
    wall, cpu = time.monotonic(), _cpu_seconds()
    results = EOExecutor(workflow, list(arguments.values())).run(workers=2)
    assert not any(result.workflow_failed() for result in results), results[0].error_node_uid
    took = {"wall": time.monotonic() - wall, "cpu": _cpu_seconds() - cpu}
    print(json.dumps(took | {"peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000}))


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
