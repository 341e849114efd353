# SPDX-License-Identifier: Apache-2.0
"""Pages and parts of pages from the templates beside this file.

Every str that a template shows is escaped. Markup, the type of what is HTML or SVG already, is the
only exception, and a name that nobody passed is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def environment() -> Environment:
    return Environment(
        loader=PackageLoader("sdi_gs.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def page(template: str, values: Mapping[str, object]) -> str:
    """A whole page from ``template``, which is named without its ending."""
    return environment().get_template(f"{template}.html.j2").render(values)


def part(name: str, *given: object) -> Markup:
    """A part by itself: the macro ``name`` of parts.html.j2 with what it is ``given``."""
    made = getattr(environment().get_template("parts.html.j2").module, name)(*given)
    assert isinstance(made, Markup)
    return made
