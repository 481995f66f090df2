"""A mix of everything with faults at random moments: ``python -m tests.soak --minutes 5 --seed 1``.

Clients come, work and go (`work`). Meanwhile engines, controllers, nannies, agents and clients are
killed with -9, and processes stopped for up to a second (`harm`). Engines note what they run. At the
end it is counted what was lost or ran twice, and what is left of the cluster; exit status 1 if anything is.
"""
