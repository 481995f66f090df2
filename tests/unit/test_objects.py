"""Objects there and back: what must survive, what must fail clearly."""

from __future__ import annotations

import copyreg
import datetime
import functools
import linecache
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.error import CommandTimeout, RemoteError, SerializationError
from ipython1.kernel.wire import sources
from ipython1.kernel.wire.codec import decode_failure, encode_failure
from ipython1.kernel.wire.objects import (
    Reference,
    dump_failure,
    dumps,
    dumps_call,
    loads,
    loads_call,
    loads_functions,
)

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


def main_namespace(source: str) -> dict:
    """The names that `source` defines, as typed at a prompt."""
    ns = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<typed>", "exec"), ns)
    return ns


def wire(parts):
    """What arrives when `parts` go through records and blobs."""
    return [bytes(p) if len(p) < 64 * 1024 else bytearray(p) for p in parts]


def there(obj):
    return loads(wire(dumps(obj)))


def call(f, *args, ns=None, **kwargs):
    f, args, kwargs = loads_call(wire(dumps_call(f, args, kwargs)), {} if ns is None else ns)
    return f(*args, **kwargs)


def push(ns, user_ns):
    user_ns.update(loads_functions(wire(dumps(ns)), user_ns))


# -- plain objects -------------------------------------------------------------

PLAIN = [
    None,
    10**400,
    -(2**63),
    1.5,
    "äöü \ud800 lone",
    b"\x00\xff",
    bytearray(b"ab"),
    {1: "a", None: "b", "c": [1, (2, {3})]},
    range(3, 9, 2),
    slice(1, None),
    ...,
    datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
    datetime.timedelta(days=-1, microseconds=3),
    datetime.date(1, 1, 1),
]


@pytest.mark.parametrize("obj", PLAIN, ids=repr)
def test_plain_objects_come_back_equal(obj):
    back = there(obj)
    assert back == obj
    assert type(back) is type(obj)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    )
)
def test_any_nesting_comes_back_equal(obj):
    assert there(obj) == obj


def test_shared_and_cyclic_references_survive():
    inner = []
    outer = [inner, inner]
    inner.append(outer)
    back = there(outer)
    assert back[0] is back[1]
    assert back[0][0] is back


# -- arrays --------------------------------------------------------------------

ARRAYS = {
    "small": lambda: np.arange(10),
    "inline": lambda: np.arange(4000.0),
    "large": lambda: np.arange(20000.0),
    "fortran": lambda: np.asfortranarray(np.arange(20000.0).reshape(100, 200)),
    "strided": lambda: np.arange(40000.0)[::2],
    "empty": lambda: np.zeros((0, 3)),
    "scalar": lambda: np.array(3),
    "objects": lambda: np.array([None, "a", 10**30], dtype=object),
    "datetimes": lambda: np.arange(30000).astype("M8[ns]"),
    "structured": lambda: np.zeros(5000, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "text": lambda: np.array(["ä", "bcd"] * 3000),
    "complex": lambda: np.ones((7, 5000), dtype="c8"),
    "broadcast": lambda: np.broadcast_to(np.arange(4), (3000, 4)),
    "bigendian": lambda: np.arange(9000, dtype=">i4"),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["writable", "read-only"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_equal_writable_and_independent(name, frozen):
    array = ARRAYS[name]()
    if frozen:
        array.flags.writeable = False
    parts = dumps(array)
    first, second = loads(wire(parts)), loads(wire(parts))
    np.testing.assert_array_equal(first, array)
    assert first.dtype == array.dtype
    assert first.shape == array.shape
    assert first.flags.writeable
    before = array.copy()
    if first.size:
        first[...] = np.zeros((), dtype=first.dtype)
        np.testing.assert_array_equal(second, before)
        np.testing.assert_array_equal(array, before)
    assert array.flags.writeable is (not frozen and name != "broadcast")


def test_large_buffers_are_views_of_the_object_and_used_in_place():
    array = np.arange(20000.0)
    pickled, buffer = dumps(array)
    assert len(pickled) < 1000
    assert np.shares_memory(np.frombuffer(buffer), array)
    arrived = bytearray(buffer)
    assert np.shares_memory(np.frombuffer(arrived), loads([pickled, arrived]))


def test_a_read_only_array_is_not_copied_to_be_sent():
    array = np.arange(20000.0)
    array.flags.writeable = False
    assert np.shares_memory(np.frombuffer(dumps(array)[1]), array)


def test_frames_arrive_equal_and_writable():
    frame = pd.DataFrame(
        {"a": np.arange(5000.0), "b": ["x", "y"] * 2500, "c": pd.date_range("2024", periods=5000)}
    )
    back = there(frame)
    pd.testing.assert_frame_equal(back, frame)
    back.loc[0, "a"] = 7.0
    assert back["a"][0] == 7.0
    assert frame["a"][0] == 0.0
    assert there(frame["a"].to_numpy()).flags.writeable


def test_numpy_is_not_imported():
    code = (
        "import sys, ipython1.kernel.wire.objects as o; o.loads(o.dumps([1])); print('numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


# -- functions and classes by value -----------------------------------------------

TYPED = """
import dataclasses, collections, functools, enum
a = 1
def plain(x, y=2, *args, k=3, **kw): return (x, y, args, k, kw)
def adder(n):
    def add(x): return x + n
    return add
plus3 = adder(3)
def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
def outer(x):
    def inner(): return a + x
    return [inner() for _ in range(2)]
class Base:
    count = a
    def __init__(self, v): self.v = v
    def get(self): return self.v + a
class Derived(Base):
    def get(self): return super().get() * 10
    @classmethod
    def make(cls): return cls(4)
    @property
    def twice(self): return 2 * self.v
@dataclasses.dataclass
class Point:
    x: int
    y: int = 5
Pair = collections.namedtuple('Pair', 'left right')
class Colour(enum.Enum):
    RED = 1
def shout(f):
    @functools.wraps(f)
    def wrapper(*args): return str(f(*args)) + '!'
    return wrapper
@shout
def loud(x): return x + a
double = functools.partial(plain, 1, k=7)
"""


@pytest.fixture
def typed():
    return main_namespace(TYPED)


def test_applied_functions_keep_their_whole_signature_and_world(typed):
    assert call(typed["plain"], 1) == (1, 2, (), 3, {})
    assert call(typed["plain"], 1, 5, 6, k=8, z=9) == (1, 5, (6,), 8, {"z": 9})
    assert call(typed["plus3"], 4) == 7
    assert call(typed["factorial"], 5) == 120
    assert call(typed["even"], 7) is False
    assert call(typed["outer"], 1) == [2, 2]
    assert call(typed["loud"], 1) == "2!"
    assert call(typed["double"], 9) == (1, 9, (), 7, {})
    assert call(eval("lambda x: x * a", typed), 4) == 4
    assert call(typed["Derived"](3).get) == 40
    assert call(typed["Derived"].make).v == 4
    assert call(lambda: "from a test") == "from a test"


def test_objects_of_typed_classes_come_back_as_they_were(typed):
    point, pair = typed["Point"](1), typed["Pair"](1, 2)
    assert there(point) == point
    assert there(pair) == pair
    assert there(typed["Colour"].RED) is typed["Colour"].RED
    assert there(typed["Derived"](2)).twice == 4


def test_typed_classes_work_in_another_process(typed, tmp_path):
    parts = dumps_call(typed["Derived"](3).get)
    (tmp_path / "call").write_bytes(pickle.dumps(wire(parts)))
    code = (
        "import pickle, ipython1.kernel.wire.objects as o;"
        "f, a, k = o.loads_call(pickle.load(open(sys.argv[1], 'rb')), {}); print(f(*a, **k))"
    )
    command = [sys.executable, "-c", "import sys;" + code, str(tmp_path / "call")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout == "40\n"


def test_an_applied_function_prefers_its_own_names_then_builtins_then_the_engines():
    f = main_namespace("a = 1\ndef f(): return a, b, len([2])\ndef g(): return (lambda: b)()")
    engine = {"a": 100, "b": 200, "len": None}
    assert call(f["f"], ns=engine) == (1, 200, 1)
    assert call(f["g"], ns=engine) == 200
    assert engine == {"a": 100, "b": 200, "len": None}
    with pytest.raises(NameError):
        call(f["f"], ns={})


def test_a_class_that_runs_code_while_it_is_loaded_sees_the_engines_names():
    ns = main_namespace(
        """
        class C:
            def __getstate__(self): return {'x': 1}
            def __setstate__(self, state): self.x = state['x'] + there
        def f(c): return c.x
        """
    )
    assert call(ns["f"], ns["C"](), ns={"there": 5}) == 6


def test_a_reference_stays_one_where_it_is_only_sent():
    assert there([Reference("x")])[0].name == "x"
    assert repr(Reference("x")) == "Reference('x')"
    assert Reference("\N{MICRO SIGN}").name == "\N{GREEK SMALL LETTER MU}"  # as Python has it


def test_references_are_the_engines_objects_however_deep():
    engine = {"x": [1], "y": 2}
    f, args, kwargs = loads_call(
        dumps_call(max, (Reference("x"), [Reference("y")]), {"k": Reference("x")}), engine
    )
    assert f is max
    assert args[0] is engine["x"]
    assert args[1] == [2]
    assert kwargs["k"] is engine["x"]
    with pytest.raises(NameError, match="name 'z' is not defined"):
        loads_call(dumps_call(max, (Reference("z"),)), engine)


@pytest.mark.parametrize("bad", ["a b", "", "1", None])
def test_a_reference_is_to_a_name(bad):
    with pytest.raises(ValueError, match="is not a name"):
        Reference(bad)


def test_a_pushed_function_lives_in_the_engines_namespace():
    ns = main_namespace("a = 1\nb = 2\ndef f():\n    global c\n    c = 9\n    return a + b")
    engine = {"a": 100, "__builtins__": __builtins__}
    push({"f": ns["f"]}, engine)
    assert engine["f"]() == 102
    assert engine["b"] == 2
    assert engine["c"] == 9
    assert engine["f"].__globals__ is engine
    assert engine["__builtins__"] is __builtins__
    engine["a"] = 200
    assert engine["f"]() == 202


def test_pushed_helpers_recursion_and_classes_share_the_namespace(typed):
    engine: dict = {}
    push(
        {"even": typed["even"], "fact": typed["factorial"], "D": typed["Derived"], "loud": typed["loud"]},
        engine,
    )
    assert engine["even"](8) is True
    assert engine["odd"].__globals__ is engine
    assert engine["fact"](5) == 120
    engine["a"] = 50
    assert engine["D"](1).get() == 510
    assert engine["loud"](1) == "51!"


def test_a_pushed_function_from_inside_a_module_too():
    scale = 3

    def f(x):
        return x * scale + offset  # noqa: F821

    def deep(x):
        return functools.partial(f, x)()

    engine = {"offset": 1}
    push({"f": f, "p": functools.partial(f, 2), "deep": deep}, engine)
    assert (engine["f"](2), engine["p"](), engine["deep"](2)) == (7, 7, 7)
    engine["offset"] = 4
    assert (engine["f"](2), engine["p"](), engine["deep"](2)) == (10, 10, 10)


def test_a_decorators_wrapper_keeps_its_own_globals():
    decorators = {"__name__": "decorators"}
    exec(
        "import functools\nbang = '!'\ndef shout(f):\n"
        " @functools.wraps(f)\n def w(): return str(f()) + bang\n return w",
        decorators,
    )
    ns = main_namespace("a = 1\ndef f(): return a")
    engine = {"bang": "?", "a": 2}
    push({"f": decorators["shout"](ns["f"])}, engine)
    assert engine["f"]() == "2!"
    assert sorted(engine.keys() - {"__builtins__"}) == ["a", "bang", "f"]


def test_a_failed_push_leaves_the_namespace_alone():
    ns = main_namespace(
        """
        b = 2
        def f(): return b
        class Bomb:
            def __reduce__(self): return boom, ()
        def boom(): raise ValueError('boom')
        """
    )
    engine: dict = {"x": 1}
    with pytest.raises(ValueError, match="boom"):
        push({"f": ns["f"], "z": ns["Bomb"]()}, engine)
    assert {k for k in engine if k != "__builtins__"} == {"x"}


def test_a_pushed_partial_of_a_builtin():
    engine: dict = {}
    push({"p": functools.partial(max, 3), "m": [1].append, "c": dict}, engine)
    assert engine["p"](1) == 3
    assert engine["c"] is dict


# -- source text --------------------------------------------------------------


def test_remote_tracebacks_show_the_lines_of_functions_by_value():
    source = "\n\n\ndef broken(x):\n    y = x\n    return y / 0  # here\n"
    linecache.cache["<typed 77>"] = (len(source), None, source.splitlines(True), "<typed 77>")
    ns = {"__name__": "__main__"}
    exec(compile(source, "<typed 77>", "exec"), ns)
    parts = wire(dumps_call(ns["broken"], (1,)))
    del linecache.cache["<typed 77>"]
    f, args, _ = loads_call(parts, {})
    with pytest.raises(ZeroDivisionError) as caught:
        f(*args)
    text = "".join(traceback.format_exception(caught.value))
    assert "line 6, in broken" in text
    assert "return y / 0  # here" in text
    linecache.checkcache()
    assert linecache.getline("<typed 77>", 4) == "def broken(x):\n"


def test_sources_of_one_file_add_up_and_real_files_stay():
    sources.remember_source("<far away>", 3, "three\n")
    sources.remember_source("<far away>", 1, "one\n")
    assert linecache.getlines("<far away>") == ["one\n", "\n", "three\n"]
    mine = linecache.getlines(__file__)
    sources.remember_source(__file__, 1, "nonsense\n")
    assert linecache.getlines(__file__) == mine


def test_remembered_sources_are_bounded():
    for n in range(sources.SOURCES_KEPT + 20):
        sources.remember_source(f"<bounded {n}>", 1, "x\n")
    kept = [n for n in range(sources.SOURCES_KEPT + 20) if linecache.getlines(f"<bounded {n}>")]
    assert kept == list(range(20, sources.SOURCES_KEPT + 20))


# -- what can't be sent ------------------------------------------------------------


class Refuses:
    def __reduce__(self):
        raise RuntimeError("not\nme")


def deep_list():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (threading.Lock, r"it holds a '_thread\.lock' object, which cannot leave its process"),
        (lambda: (i for i in ()), "it holds a 'generator' object, which cannot leave its process"),
        (lambda: {"a": [sys._getframe()]}, "it holds a 'frame' object, which cannot leave its process"),
        (deep_list, "it is nested too deeply"),
        (Refuses, "RuntimeError: not me"),
        (lambda: socket.socket(), "it holds a 'socket' object, which cannot leave its process"),
    ],
)
def test_what_cannot_be_sent_is_said_in_one_sentence(make, reason):
    obj = make()
    with pytest.raises(SerializationError, match=rf"^the value of 'a' cannot be sent: {reason}") as caught:
        dumps(obj, "the value of 'a'")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_a_call_that_cannot_be_sent_names_the_function():
    with pytest.raises(SerializationError, match="the call of len cannot be sent"):
        dumps_call(len, (threading.Lock(),))


# -- failures ------------------------------------------------------------------


def through(exc, text="Traceback: …"):
    return decode_failure(encode_failure(dump_failure(exc, text)), 3, "execute")


class Doubles(Exception):
    def __init__(self, name):
        super().__init__(f"bad {name}")


class Needs(Exception):
    def __init__(self, a, *, b):
        super().__init__(a)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_comes_back_as_itself():
    error = through(CommandTimeout(timeout=2.0)).exception()
    assert type(error) is CommandTimeout
    assert error.timeout == 2.0
    error = through(KeyError("a")).exception()
    assert error.args == ("a",)
    assert "Traceback: …" in str(error.__cause__)


def test_an_exception_of_a_typed_class_comes_back():
    ns = main_namespace(
        "class Mine(Exception):\n    def __init__(self, a):\n        super().__init__(a)\n        self.a = a"
    )
    assert through(ns["Mine"](4)).exception().a == 4


@pytest.mark.parametrize(
    ("exc", "evalue"),
    [
        (Doubles("x"), "bad x"),
        (Needs("x", b=1), "x"),
        (ValueError(threading.Lock()), "<unlocked"),
        (Unprintable(), "<its text cannot be had: RuntimeError>"),
    ],
)
def test_what_does_not_survive_the_round_trip_arrives_as_text(exc, evalue, monkeypatch):
    # Where distributed is imported, tblib gives exceptions a way to survive.
    monkeypatch.delitem(copyreg.dispatch_table, type(exc), raising=False)
    failure = through(exc)
    assert failure.ename == type(exc).__name__
    assert failure.evalue.startswith(evalue)
    if not isinstance(exc, Unprintable):
        assert failure.pickled == b""
        assert isinstance(failure.exception(), RemoteError)


def test_failures_are_bounded_and_encodable():
    failure = through(ValueError("\ud800" + "x" * 10**6), "T\udfff" + "y" * 10**6)
    assert failure.evalue.startswith("\\ud800x")
    assert failure.traceback.startswith("T\\udfffy")
    assert len(failure.evalue) < 10_000
    assert len(failure.traceback) < 60_000
    assert failure.pickled == b""
