"""`topfive tune` in a process of its own, over fake engines; it prints the number of the process that measures."""

from functools import partial

from service.cli.main import main
from service.offline.tuning.worker import Worker
from tests.tuning_engines import open_announced

if __name__ == "__main__":
    main(obj=partial(Worker, open_engine=open_announced))
