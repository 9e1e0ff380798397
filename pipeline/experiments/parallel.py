"""Parallel processes: work on several items at a time, one per CPU core."""

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
    """Run the work on every item in parallel, by default one process per core; return results in the items' order.

    The processes are forked from a server that imports torch once and does not use it, because a fork of a process that
    uses torch can hang. They end with this process, even if it is killed. Otherwise they would run alongside those of
    the next command. `progress` is the title of a bar on the terminal.
    """
    at_a_time = processes or min(len(items), os.cpu_count() or 1)
    os.environ["TQDM_DISABLE"] = "1"  # for the processes, whose bars would overwrite each other
    with ProcessPoolExecutor(at_a_time, PROCESSES, initializer=_one_core_of_this_process) as pool:
        running = {item: pool.submit(work, item) for item in items}
        try:
            for finished in tqdm(as_completed(running.values()), progress, len(items), disable=progress is None):
                finished.result()
        except KeyboardInterrupt:  # the same command repeats the interrupted work
            for process in active_children():
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return {item: future.result() for item, future in running.items()}


def _one_core_of_this_process() -> None:
    import torch  # imported in the server already; not at the top, so that --help starts fast

    torch.set_num_threads(1)

    def end_with_the_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=end_with_the_parent, daemon=True).start()
