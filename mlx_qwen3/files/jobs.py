"""Work that several threads share: weights are read, widened and unpacked part by part."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

Job = Callable[[], object]
THREADS = 4  # as in MLX's own loader: one reader alone does not keep a fast disk busy


def run(jobs: Sequence[Job]) -> None:
    """Run jobs, several at a time. After an error of a job, which is raised, no other begins."""
    waiting = iter(jobs)  # Python's lock makes `next` safe; a future for each of thousands of jobs would cost more

    def work() -> None:
        for job in waiting:
            job()

    if len(jobs) < 2:
        return work()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work) for _ in range(THREADS)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also after Ctrl-C
            deque(waiting, maxlen=0)
    while futures:  # a future that stays here would keep an error that holds this frame: a cycle, with open files
        futures.pop().result()
