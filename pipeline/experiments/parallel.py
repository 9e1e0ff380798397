"""Work on several items at a time, one a CPU core, in processes of their own."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PRELOADED = ["pipeline.training.trainer", "pipeline.models.loading"]
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)


def side_by_side(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with what the work gives for it, as it ends; by default as many at a time as there are cores.

    A fork of a process that uses torch can hang. These are forked from a server that imports torch once for all of
    them and uses nothing of it. They end with this process, even where it is killed: what they do would go on beside
    the same work of the next command.
    """
    at_a_time = processes or min(len(items), os.cpu_count() or 1)
    os.environ["TQDM_DISABLE"] = "1"  # of what is started from here: bars of several processes are one heap
    with ProcessPoolExecutor(at_a_time, PROCESSES, initializer=_one_core_of_this_process) as pool:
        running = {pool.submit(work, item): item for item in items}
        try:
            for finished in as_completed(running):
                yield running[finished], finished.result()
        except KeyboardInterrupt:  # the same command does what they do again
            for process in active_children():
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _one_core_of_this_process() -> None:
    import torch  # which the server has: in the command, --help does not need it

    torch.set_num_threads(1)

    def end_with_the_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=end_with_the_parent, daemon=True).start()
