"""From a Page and the browser's data to one HTML file that asks for nothing. Knows jinja2 and the template's files."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from alignstar.report.page import Page


def render(page: Page, data: Markup) -> str:
    """The page's HTML. Every text is escaped; only our own script, known by its hash, may run."""
    templates = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_file),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _file("page.js")
    return templates.get_template("page.html.j2").render(
        page=page,
        data=data,
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _file(name: str) -> str:
    return files("alignstar.report").joinpath("template", name).read_text(encoding="utf-8")
