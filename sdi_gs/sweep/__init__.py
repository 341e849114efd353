# SPDX-License-Identifier: Apache-2.0
"""Many runs: a manifest, workers that share it, and the engines that start workers.

::

    plan.py      sentences x methods x representations x seeds x settings -> lines of a manifest
    manifest.py  the folder of a sweep, and its lines
    states.py    what became of each line: files that appear once, on any file system
    worker.py    a sign of life, and who else gives one
    seek.py      which line a worker claims next
    work.py      claim a line, make its run, write down what became of it
    pool.py      several runs at a time in one worker
    status.py    all of it in a table
    measured.py  what finished runs measure, each looked at once
    stills.py    small pictures of their films
    report.py    all of it on a page
    engines/     who starts workers: this machine, others
"""
