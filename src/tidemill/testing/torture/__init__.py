"""The torture run: services whose processes are killed, paused, replaced and starved of disk, and one checker.

    plan.py      what is done in a run: how many events, which of them are poison, which faults when. From a seed
    steps.py     the events, as two versions of the code know them
    worker.py    the processes that publish and consume, and write down what they do
    nursery.py   starts them by forking, and tells when they end
    crew.py      who is alive: replaces who is gone, kills, pauses and deploys
    disk.py      a small disk that can be filled
    evidence.py  what is known after a run: handler runs and the processes they were in
    checker.py   what is wrong with it: a pure function
    report.py    progress, the table of what happened, and the verdict
    runner.py    a whole run, from the plan to the verdict

`tidemill torture` runs one; so does `await torture(plan, folder)`.
"""
