"""One option of ``streamrnn serve``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamrnn.errors import StartError

__all__ = ["Option"]

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Option:
    """An option of ``streamrnn serve``; ``settings`` are those of `ArgumentParser.add_argument`."""

    def __init__(
        self,
        flag: str,
        help: str,
        parse: Callable[[str, str], Any] | None = None,  # takes where it is from, for StartError
        **settings: Any,
    ) -> None:
        self.flag, self.help, self.parse, self.settings = flag, help, parse, settings
        self.name = flag.removeprefix("--")
        self.is_switch = settings.get("action") == "store_true"
        self.is_list = settings.get("action") == "append"

    def value(self, given: Any, source: str) -> Any:
        """Return what was given, as the environment or a file give it, checked.

        Raises
        ------
        StartError
            If it is no such value; it names the source.
        """
        if self.is_switch:
            known = given if isinstance(given, bool) else _WORDS.get(str(given).lower())
            if known is None:
                raise StartError(f"{source} is {given!r}; it must be true or false")
            return known
        if self.is_list:
            parts = given.split(",") if isinstance(given, str) else given
            if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
                raise StartError(f"{source} is {given!r}; it must be a list of texts")
            return [part.strip() for part in parts if part.strip()]
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise StartError(f"{source} is {given!r}; it must be a text or a number")
        convert, choices = self.settings.get("type", str), self.settings.get("choices")
        try:
            value = convert(str(given))
        except ValueError:
            raise StartError(
                f"{source} is {given!r}; it must be a number, of the kind that {self.flag} takes"
            ) from None
        if choices is not None and value not in choices:
            raise StartError(f"{source} is {given!r}; it must be one of {', '.join(choices)}")
        return value
