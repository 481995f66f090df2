"""Importing this package leaves pickle as it was."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import collections, copyreg, pickle, types
import foolscap.api
assert types.MethodType in copyreg.dispatch_table, "Foolscap does it no more"
import ipython1.kernel.wire.links
kinds = {types.MethodType, types.FunctionType, types.ModuleType}
assert not kinds & set(copyreg.dispatch_table), copyreg.dispatch_table
from ipython1.kernel.wire import objects
method = collections.ChainMap.fromkeys
assert pickle.loads(pickle.dumps(method)) == method
[loaded, _, _] = objects.loads_call(objects.dumps_call(method, (), {}), {})
assert loaded('ab') == method('ab')
print("well")
"""


def test_class_methods_can_be_pickled_beside_foolscap() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("well\n", "")


def test_what_others_have_registered_stays() -> None:
    import copyreg
    import types

    from ipython1.kernel.wire.pickling import restore_pickle

    def own(method: types.MethodType) -> str:
        return method.__name__

    before = copyreg.dispatch_table.get(types.MethodType)
    copyreg.pickle(types.MethodType, own)
    try:
        restore_pickle()
        assert copyreg.dispatch_table[types.MethodType] is own
    finally:
        del copyreg.dispatch_table[types.MethodType]
        if before is not None:
            copyreg.pickle(types.MethodType, before)
