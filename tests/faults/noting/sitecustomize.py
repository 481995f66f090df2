"""On the path of the processes that the tests start: engines note what they run, where ``IP1_NOTES`` says."""

import os
import sys

if "IP1_NOTES" in os.environ and any("ipengine" in argument for argument in sys.orig_argv):
    import tests.faults.notes

    tests.faults.notes.install(os.environ["IP1_NOTES"])
