from __future__ import annotations

import base64
import pickle

import msgpack
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.lib.pretty import pretty

from ipython1.kernel.client.results import UNFOLDED, Result, ResultList, display_data, make_result

PNG = b"\x89PNG\r\n"


def command(source, number=1, id=0, **more):
    value = {"input": {"translated": source, "raw": source}, "number": number, **more}
    return make_result(id, value)


def test_the_transcripts_of_the_specification():
    assert repr(ResultList([command("a=5", id=i) for i in range(4)])) == (
        "<Results List>\n[0] In [1]: a=5\n[1] In [1]: a=5\n[2] In [1]: a=5\n[3] In [1]: a=5"
    )
    printed = [command("print(c)", 3, i, stdout="15\n") for i in (0, 2)]
    assert repr(ResultList(printed)) == (
        "<Results List>\n[0] In [3]: print(c)\n[0] Out[3]: 15\n\n[2] In [3]: print(c)\n[2] Out[3]: 15\n"
    )
    assert repr(command("d=10; print(d)", 4, 0, stdout="10\n")) == (
        "{'input': {'translated': 'd=10; print(d)', 'raw': 'd=10; print(d)'}, "
        "'number': 4, 'id': 0, 'stdout': '10\\n'}"
    )


def test_stdout_then_value_then_stderr():
    result = command("f()", 7, 1, stderr="careful\n", result={"text/plain": "15"}, stdout="hi\n")
    assert repr(ResultList([result])) == (
        "<Results List>\n[1] In [7]: f()\n[1] Out[7]: hi\n\n[1] Out[7]: 15\n[1] Err[7]: careful\n"
    )


def test_displays_stand_between_output_and_value():
    outputs = [{"data": {"text/plain": "<Figure>", "image/png": PNG}, "metadata": {}}]
    lines = repr(ResultList([command("plot()", result={"text/plain": "None"}, outputs=outputs)])).splitlines()
    assert lines[2:] == ["[0] Out[1]: <Figure>", "[0] Out[1]: None"]


def test_a_failure_shows_one_line():
    traceback = (
        "\x1b[31m-----\x1b[0m\nTraceback (most recent call last)\n\x1b[31mNameError\x1b[0m: name 'a'\n"
    )
    text = repr(ResultList([command("a", 2, 3, traceback=traceback)]))
    assert text == "<Results List>\n[3] In [2]: a\n[3] Err[2]: NameError: name 'a'"


def test_silent_commands_have_no_number():
    assert repr(ResultList([command("x=1", None)])) == "<Results List>\n[0] In [ ]: x=1"
    assert repr(ResultList()) == "<Results List>"


def test_keys_and_their_order():
    more = {
        "traceback": "T",
        "outputs": [{"data": {}, "metadata": {}}],
        "stderr": "e",
        "result": {"text/plain": "1"},
        "stdout": "o",
    }
    result = command("x", **more)
    assert list(result) == ["input", "number", "id", "stdout", "stderr", "result", "outputs", "traceback"]
    assert list(command("x", stdout="", outputs=[])) == ["input", "number", "id"]


def test_streamed_output_is_merged():
    result = make_result(2, {"input": {}, "number": 1}, {"stdout": "a"}, started=1.0, completed=3.5, size=9)
    assert (result["stdout"], result["id"]) == ("a", 2)
    assert (result.started, result.completed, result.elapsed, result.size) == (1.0, 3.5, 2.5, 9)
    kept = make_result(2, {"input": {}, "number": 1, "started": 5.0, "completed": 6.0})
    assert kept.elapsed == 1.0
    assert "started" not in kept


def test_results_pickle_with_their_times():
    result = make_result(1, {"input": {}, "number": 1}, started=1.0, completed=2.0)
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert type(copy) is Result
    assert copy.elapsed == 1.0
    assert pickle.loads(pickle.dumps(ResultList([result])))[0].started == 1.0


def test_a_slice_is_a_result_list():
    results = ResultList([command("a", id=i) for i in range(3)])
    assert type(results[:2]) is ResultList
    assert [r["id"] for r in results[1:]] == [1, 2]
    assert results[-1]["id"] == 2


def test_a_terminal_shows_the_text():
    results = ResultList([command("a", stdout="x\n")])
    assert pretty(results) == repr(results)


def formatted(obj):
    data, _ = DisplayFormatter().format(obj)
    return data


def test_a_notebook_shows_plain_results_as_text():
    results = ResultList([command("a")])
    assert formatted(results) == {"text/plain": repr(results)}
    assert set(formatted(results[0])) == {"text/plain"}


def test_a_notebook_shows_figures_under_their_engine():
    outputs = [{"data": {"text/plain": "<Figure>", "image/png": PNG}, "metadata": {}}]
    svg = {"text/plain": "<svg>", "image/svg+xml": "<svg><circle/></svg>"}
    encoded = base64.b64encode(PNG).decode()
    results = ResultList(
        [
            command("plot('<&>')", id=0, outputs=outputs),
            command("plot()", id=1, result=svg),
            command("plot()", id=2, result={"text/html": b"<b>bold</b>"}),
            command("plot()", id=3, result={"image/png": encoded + "\n"}),
        ]
    )
    data = formatted(results)
    assert data["text/plain"] == repr(results)
    html = data["text/html"]
    places = [
        html.index(text)
        for text in (
            "[0] In [1]: plot(&#x27;&lt;&amp;&gt;&#x27;)",
            f'<img src="data:image/png;base64,{encoded}">',
            "[1] In [1]: plot()",
            "<svg><circle/></svg>",
            "[2] In [1]: plot()",
            "<b>bold</b>",
            "[3] In [1]: plot()",
        )
    ]
    assert places == sorted(places)
    assert html.count(f"base64,{encoded}") == 2
    assert "<details>" not in html
    assert encoded in formatted(results[0])["text/html"]


def test_equal_results_of_many_engines_show_as_one():
    results = ResultList([command("a=5", id=i, number=1 + (i == 3)) for i in range(64)])
    assert repr(results) == "<Results List>\n[0-2,4-63] In [1]: a=5\n[3] In [2]: a=5"
    assert str(results).count("In [") == 64
    assert pretty(results) == repr(results)


def test_the_rest_of_many_engines_is_counted():
    results = ResultList([command("f()", id=i, stdout=f"{i}\n") for i in range(UNFOLDED + 30)])
    results[-1]["traceback"] = "E"
    lines = repr(results).splitlines()
    assert lines[-1] == f"… 30 more: [{UNFOLDED}-{UNFOLDED + 29}], 1 failed; print() shows all"
    assert sum("In [" in line for line in lines) == UNFOLDED
    assert str(results).count("In [") == UNFOLDED + 30


def test_a_notebook_folds_the_rest():
    results = ResultList(
        [command("a\nb", id=i, stdout=f"<{i}>\n", stderr="\x1b[1mred") for i in range(UNFOLDED + 2)]
    )
    html = results._repr_html_()
    assert html.count("<details>") == html.count("</details>") == 1
    assert f"<summary>… 2 more: [{UNFOLDED}-{UNFOLDED + 1}]</summary>" in html
    opened, _, folded = html.partition("<details>")
    assert opened.count("In [1]: a\nb</pre>") == UNFOLDED
    assert folded.count("In [1]: a\nb</pre>") == 2
    assert f"&lt;{UNFOLDED + 1}&gt;</pre>" in folded
    assert "\x1b" not in html


def test_figures_of_many_engines():
    figures = [{"text/plain": "<Figure>", "image/png": bytes([i])} for i in range(UNFOLDED + 1)]
    html = ResultList(
        [command("plot()", id=i, result=figure) for i, figure in enumerate(figures)]
    )._repr_html_()
    opened, _, folded = html.partition("<details>")
    assert (opened.count("<img"), folded.count("<img")) == (UNFOLDED, 1)


def test_formulas_show_as_such():
    formula = {"text/plain": "<Latex>", "text/latex": "$a < b$"}
    html = ResultList([command("f", result=formula)])._repr_html_()
    assert "<div>$a &lt; b$</div>" in html


def test_columns_of_a_table_stand_under_each_other():
    table = {"text/plain": "   a  b\n0  1  2"}
    outputs = [{"data": table, "metadata": {}}]
    text = repr(ResultList([command("t", result=table, outputs=outputs)]))
    assert text == "<Results List>\n[0] In [1]: t" + "\n[0] Out[1]: \n   a  b\n0  1  2" * 2


def test_displays_off_the_wire():
    bundle = {"data": {"image/png": PNG}, "metadata": {"image/png": {"width": 5}}}
    assert display_data(memoryview(msgpack.packb(bundle))) == bundle
    assert display_data(bytearray(msgpack.packb({"data": {}}))) == {"data": {}, "metadata": {}}


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"data": 5}), msgpack.packb({})]
)
def test_a_garbled_display_says_so(raw):
    assert "cannot be read" in display_data(raw)["data"]["text/plain"]


def test_an_update_stands_in_the_place_of_what_it_updates():
    def shown(text, **more):
        return {"data": {"text/plain": text}, "metadata": {}, **more}

    outputs = [
        shown("10 %", display_id="bar", update=False),
        shown("other"),
        shown("90 %", display_id="bar", update=True),
        shown("of another cell", display_id="gone", update=True),
    ]
    result = command("work()", outputs=outputs)
    assert result["outputs"] == [shown("90 %", display_id="bar"), shown("other")]
    assert display_data(msgpack.packb(outputs[0])) == outputs[0]


def test_a_single_result_has_its_figure_too():
    plain_one = Result(input={"raw": "1"}, number=1, id=0, result={"text/plain": "1"})
    assert plain_one._repr_mimebundle_() == {"text/plain": repr(plain_one)}
    figure = Result(input={"raw": "f"}, number=2, id=0, result={"text/plain": "<fig>", "image/png": b"PNG"})
    assert "data:image/png;base64,UE5H" in figure._repr_mimebundle_()["text/html"]
