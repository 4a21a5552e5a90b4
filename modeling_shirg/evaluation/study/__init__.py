"""The toy-scale study: what is run (config.py), whether its base can be relied on (gate.py), what is left out of the
plan (cuts.py), what it found (tables.py).

scripts/study.py runs it. The folder of a study:

    RUN/study.json                     facts: the base, the config, what was cut from the plan, the gate, the machine
    RUN/base.json                      fingerprint of the base's weights, which no other base may follow
    RUN/entries/NAME/entry.json        facts of one entry; `status` becomes "finished" as the last thing
    RUN/entries/NAME/...               what `shirg evaluate` leaves
    RUN/timing                         the run in which all systems were timed
    RUN/adapters/NAME                  what `shirg train` leaves
    RUN/results.json                   all tables, from the entries that are finished
"""
