"""What a command gave, as users see it: `Result` and `ResultList`."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, overload

import msgpack

from ipython1.kernel.client.ids import ranges

#: Engines whose results show; past that equal ones show as one, and the rest is folded.
UNFOLDED = 8
#: Keys of a `Result` that are there only where there is something.
OPTIONAL = ("stdout", "stderr", "result", "outputs", "traceback")

_TITLE = "<Results List>"
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
#: Formats a browser shows, best first.
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_MARKUP = ("text/html", "image/svg+xml", *_IMAGES, "text/latex")
#: What is long scrolls; fonts and colours are those of the notebook, where it has some.
_TEXT = (
    "max-height: 24em; overflow: auto; margin: 0; "
    "font: var(--jp-code-font-size, 13px) var(--jp-code-font-family, monospace)"
)
_HEAD = "margin-top: 0.5em; font-weight: bold"
_ERROR = "color: var(--jp-error-color1, #d33)"


class Result(dict[str, Any]):
    """What one command gave on one engine.

    A dict with the keys ``input`` (a dict of ``translated`` and ``raw``
    source), ``number`` (None where it was silent), ``id`` (of the engine), and
    where there is something ``stdout``, ``stderr``, ``result`` (the last
    expression: MIME type to data), ``outputs`` (displays as they were in the
    end: a list of dicts with ``data`` and ``metadata``) and ``traceback``.

    Attributes
    ----------
    started, completed : float
        Seconds since the epoch, by the engine's clock.
    size : int
        Bytes that came for it.
    """

    started: float = 0.0
    completed: float = 0.0
    size: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds it ran."""
        return self.completed - self.started

    def _repr_html_(self) -> str | None:
        return _html_of(self, _engine(self)) if _has_figures(self) else None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        markup = self._repr_html_()
        return {"text/plain": repr(self)} | ({} if markup is None else {"text/html": markup})


def make_result(
    engine: int,
    value: Mapping[str, Any],
    streamed: Mapping[str, Any] | None = None,
    *,
    started: float = 0.0,
    completed: float = 0.0,
    size: int = 0,
) -> Result:
    """Merge what an engine returned with what had come before as events.

    Parameters
    ----------
    engine : int
    value : dict
        ``input``, ``number``, and any of `OPTIONAL`; ``started`` and
        ``completed`` go before the arguments of the same name.
    streamed : dict, optional
        Any of `OPTIONAL`.
    """
    merged = {**value, **(streamed or {})}
    merged["outputs"] = updated(merged.get("outputs", ()))
    result = Result(input=merged.get("input"), number=merged.get("number"), id=engine)
    for key in OPTIONAL:
        if merged.get(key):
            result[key] = merged[key]
    result.started = merged.get("started", started)
    result.completed = merged.get("completed", completed)
    result.size = size
    return result


class ResultList(list[Result]):
    """The `Result` of each target, in target order; shows them one after the other.

    Of many engines equal results show as one, and the rest is counted, in a
    notebook folded; ``print`` shows all.
    """

    @overload
    def __getitem__(self, index: SupportsIndex) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> ResultList: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Result | ResultList:
        chosen = super().__getitem__(index)
        return ResultList(chosen) if isinstance(index, slice) else chosen  # type: ignore[arg-type,return-value]

    def __str__(self) -> str:
        return "\n".join([_TITLE, *(_text_of(result, _engine(result)) for result in self)])

    def __repr__(self) -> str:
        if len(self) <= UNFOLDED:
            return str(self)
        groups = self._groups(_text_of)
        lines = [_TITLE, *(_text_of(results[0], _engines(results)) for results in groups[:UNFOLDED])]
        if len(groups) > UNFOLDED:
            lines.append(f"… {_rest(groups[UNFOLDED:])}; print() shows all")
        return "\n".join(lines)

    def _groups(self, form: Callable[[Result, str], str]) -> list[list[Result]]:
        """The results that have the same form together, past a few engines; else one by one."""
        if len(self) <= UNFOLDED:
            return [[result] for result in self]
        groups: dict[str, list[Result]] = {}
        for result in self:
            groups.setdefault(form(result, ""), []).append(result)
        return list(groups.values())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # IPython would drop the last line end

    def _repr_html_(self) -> str | None:
        """Figures under their engine; None where the text says it all."""
        if len(self) <= UNFOLDED and not any(_has_figures(result) for result in self):
            return None
        groups = self._groups(_html_of)
        blocks = [_html_of(results[0], _engines(results)) for results in groups]
        if len(groups) > UNFOLDED:
            summary = f"<summary>… {_rest(groups[UNFOLDED:])}</summary>"
            blocks[UNFOLDED:] = ["<details>", summary, *blocks[UNFOLDED:], "</details>"]
        return "\n".join(blocks)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        bundle = {"text/plain": repr(self)}
        markup = self._repr_html_()
        if markup is not None:
            bundle["text/html"] = markup
        return bundle


# -- as text ------------------------------------------------------------------------


def plain(text: str) -> str:
    """`text` without terminal colours."""
    return _ESCAPES.sub("", text)


def display_data(raw: Any) -> dict[str, Any]:
    """A display event: ``data``, ``metadata``; of a named one also ``display_id`` and ``update``."""
    try:
        bundle = msgpack.unpackb(raw, strict_map_key=False)
        data, metadata = dict(bundle.pop("data")), dict(bundle.pop("metadata", None) or {})
        return {"data": data, "metadata": metadata, **bundle}
    except (ValueError, TypeError, LookupError, AttributeError, msgpack.exceptions.UnpackException) as error:
        return {"data": {"text/plain": f"<a display that cannot be read: {error!r}>"}, "metadata": {}}


def updated(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Displays with each update in the place of what it updates."""
    final: list[dict[str, Any]] = []
    for output in outputs:
        shown = {key: value for key, value in output.items() if key != "update"}
        name = output.get("display_id")
        if output.get("update") and name:
            final = [shown if old.get("display_id") == name else old for old in final]
        else:
            final.append(shown)
    return final


def _number(result: Mapping[str, Any]) -> str:
    number = result.get("number")
    return " " if number is None else str(number)


def _source(result: Mapping[str, Any]) -> str:
    source = result.get("input")
    return str(source.get("raw", "")) if isinstance(source, dict) else ""


def _error_line(result: Mapping[str, Any]) -> str:
    """The last line of a traceback says what went wrong."""
    lines = plain(str(result.get("traceback", ""))).strip().splitlines()
    return lines[-1] if lines else ""


def _engine(result: Mapping[str, Any]) -> str:
    return f"[{result.get('id')}]"


def _engines(results: Sequence[Mapping[str, Any]]) -> str:
    return f"[{ranges(result['id'] for result in results)}]"


def _rest(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """In words, what does not show."""
    results = [result for group in groups for result in group]
    failed = sum("traceback" in result for result in results)
    return f"{len(results)} more: {_engines(results)}" + (f", {failed} failed" if failed else "")


def _text_of(result: Mapping[str, Any], engine: str) -> str:
    number = _number(result)
    lines = [f"{engine} In [{number}]: {_source(result)}"]
    outs = [result.get("stdout")]
    outs += [_on_its_own(bundle.get("text/plain")) for bundle in _bundles(result)]
    lines += [f"{engine} Out[{number}]: {out}" for out in outs if out]
    lines += [f"{engine} Err[{number}]: {err}" for err in (result.get("stderr"), _error_line(result)) if err]
    return "\n".join(lines)


def _on_its_own(text: str | None) -> str | None:
    """A text of several lines begins on a line of its own, so that what stands in columns does so."""
    return f"\n{text}" if text and "\n" in text else text


# -- as HTML ------------------------------------------------------------------------


def _bundles(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    bundles = [output["data"] for output in result.get("outputs", ())]
    return [*bundles, result["result"]] if result.get("result") else bundles


def _has_figures(result: Mapping[str, Any]) -> bool:
    return any(mime in bundle for bundle in _bundles(result) for mime in _MARKUP)


def _html_of(result: Mapping[str, Any], engine: str) -> str:
    blocks = [_pre(f"{engine} In [{_number(result)}]: {_source(result)}", _HEAD)]
    blocks += [_pre(result["stdout"])] if result.get("stdout") else []
    blocks += [_bundle_html(bundle) for bundle in _bundles(result)]
    blocks += [_pre(text, _ERROR) for text in (result.get("stderr"), result.get("traceback")) if text]
    return "\n".join(blocks)


def _pre(text: Any, style: str = "") -> str:
    styles = "; ".join(filter(None, (_TEXT, style)))
    return f'<pre style="{styles}">{html.escape(plain(str(text)).rstrip())}</pre>'


def _bundle_html(bundle: Mapping[str, Any]) -> str:
    if "text/html" in bundle:
        return f"<div>{_str(bundle['text/html'])}</div>"
    if "image/svg+xml" in bundle:
        return f"<div>{_str(bundle['image/svg+xml'])}</div>"
    for mime in _IMAGES:
        if mime in bundle:
            data = bundle[mime]
            encoded = (
                base64.b64encode(data).decode() if isinstance(data, bytes) else "".join(str(data).split())
            )
            return f'<img src="data:{mime};base64,{html.escape(encoded)}">'
    if "text/latex" in bundle:
        return f"<div>{html.escape(_str(bundle['text/latex']))}</div>"
    return _pre(bundle.get("text/plain", ""))


def _str(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
