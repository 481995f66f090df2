"""What a command gave, as users see it: `Result` and `ResultList`."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, overload

import msgpack

#: Engines shown open in a notebook; the others are folded.
UNFOLDED = 4
#: Keys of a `Result` that are there only where there is something.
OPTIONAL = ("stdout", "stderr", "result", "outputs", "traceback")

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
#: Formats a browser shows, best first.
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_MARKUP = ("text/html", "image/svg+xml", *_IMAGES)


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
        return _html_of(self) if _has_figures(self) else None

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
    """The `Result` of each target, in target order; prints them one after the other."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> ResultList: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Result | ResultList:
        chosen = super().__getitem__(index)
        return ResultList(chosen) if isinstance(index, slice) else chosen  # type: ignore[arg-type,return-value]

    def __repr__(self) -> str:
        return "\n".join(["<Results List>", *(_text_of(result) for result in self)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # IPython would drop the last line end

    def _repr_html_(self) -> str | None:
        """Figures under their engine; None where the text says it all."""
        if len(self) <= UNFOLDED and not any(_has_figures(result) for result in self):
            return None
        return "\n".join(_html_of(result, folded=i >= UNFOLDED) for i, result in enumerate(self))

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


def _text_of(result: Mapping[str, Any]) -> str:
    engine, number = f"[{result.get('id')}]", _number(result)
    lines = [f"{engine} In [{number}]: {_source(result)}"]
    outs = [result.get("stdout")]
    outs += [output["data"].get("text/plain") for output in result.get("outputs", ())]
    outs += [result.get("result", {}).get("text/plain")]
    lines += [f"{engine} Out[{number}]: {out}" for out in outs if out]
    lines += [f"{engine} Err[{number}]: {err}" for err in (result.get("stderr"), _error_line(result)) if err]
    return "\n".join(lines)


# -- as HTML ------------------------------------------------------------------------


def _bundles(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    bundles = [output["data"] for output in result.get("outputs", ())]
    return [*bundles, result["result"]] if result.get("result") else bundles


def _has_figures(result: Mapping[str, Any]) -> bool:
    return any(mime in bundle for bundle in _bundles(result) for mime in _MARKUP)


def _html_of(result: Mapping[str, Any], folded: bool = False) -> str:
    head = _pre(f"[{result.get('id')}] In [{_number(result)}]: {_source(result)}")
    blocks = [_pre(result["stdout"])] if result.get("stdout") else []
    blocks += [_bundle_html(bundle) for bundle in _bundles(result)]
    blocks += [_pre(text, "color: #a00") for text in (result.get("stderr"), result.get("traceback")) if text]
    if not folded:
        return "\n".join([head, *blocks])
    first = html.escape(_source(result).partition("\n")[0])
    summary = f"<summary><code>[{result.get('id')}] In [{_number(result)}]: {first}</code></summary>"
    return "\n".join(["<details>", summary, *blocks, "</details>"])


def _pre(text: Any, style: str = "") -> str:
    attribute = f' style="{style}"' if style else ""
    return f"<pre{attribute}>{html.escape(plain(str(text)).rstrip())}</pre>"


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
    return _pre(bundle.get("text/plain", ""))


def _str(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
