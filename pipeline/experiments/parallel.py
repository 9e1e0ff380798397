"""Parallel work on several items, with one process per CPU core."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

PRELOADED = ["pipeline.training.trainer", "pipeline.models.loading"]
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None, *, progress: str | None = None
) -> dict[Item, Result]:
    """Run `work` on every item in parallel, by default with a worker process per CPU core. Return the results by item.

    The workers are forked from a server that only imports torch, because a fork of a process that has used torch can
    hang. The workers end with the calling process, even if the caller is killed, so that none is still running during
    the next command. `progress` is the title of a progress bar; None shows no bar.
    """
    at_a_time = processes or min(len(items), os.cpu_count() or 1)
    os.environ["TQDM_DISABLE"] = "1"  # in the processes: their bars would overwrite each other
    with ProcessPoolExecutor(at_a_time, PROCESSES, initializer=_one_core_of_this_process) as pool:
        running = {item: pool.submit(work, item) for item in items}
        try:
            for finished in tqdm(as_completed(running.values()), progress, len(items), disable=progress is None):
                finished.result()
        except KeyboardInterrupt:  # running the same command again repeats the interrupted work
            for process in active_children():
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return {item: future.result() for item, future in running.items()}


def _one_core_of_this_process() -> None:
    import torch  # not at the top of the file, so that --help starts fast

    torch.set_num_threads(1)

    def end_with_the_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=end_with_the_parent, daemon=True).start()
