"""How a page is made of a template: our own style inside, and nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from convatlas.core.errors import UserError
from convatlas.core.metrics import as_words
from convatlas.reporting.wording import count, with_prefix

__all__ = [
    "chart_library",
    "check_generated",
    "data_block",
    "for_script_element",
    "render",
    "template_source",
    "templates",
    "vega",
]


def render(template: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """Fill a template; the page's policy lets run only `scripts`, and load nothing."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Vega turns its expressions into functions, which the policy calls eval.
    allowed = f"{hashes} 'unsafe-eval'" if scripts else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'"
    style = Markup(template_source("style.css"))  # noqa: S704 - our own file
    own = [Markup(script) for script in scripts]  # noqa: S704 - our own file and Vega's
    return templates().get_template(template).render(policy=policy, style=style, scripts=own, **values)


def check_generated(page: Path, remedy: str) -> None:
    """Check that a file which a page would replace is one of ours.

    Raises:
        UserError: it is not; `remedy` ends the sentence.
    """
    if page.is_file() and b'name="generator" content="convatlas"' not in page.read_bytes():
        raise UserError(f"{page} is there already, and no page of convatlas; {remedy}.")


@cache
def templates() -> Environment:
    """Return the environment that all templates share."""
    environment = Environment(
        loader=PackageLoader("convatlas.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"as_words": as_words, "data_block": data_block, "with_prefix": with_prefix}
    environment.globals |= {"count": count}
    return environment


def template_source(name: str) -> str:
    """Return a file of the templates as it is."""
    loader = templates().loader
    assert loader is not None
    return loader.get_source(templates(), name)[0]


def data_block(value: Any) -> Markup:
    """Write plain values as JSON that cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no < is left


@cache
def chart_library() -> str:
    """Return Vega and `drawChart(container, specification)`, once for all charts of a page; see `charts.js`."""
    import vl_convert

    return for_script_element(vl_convert.javascript_bundle(template_source("charts.js")))


def vega() -> str:
    """Return Vega, Vega-Lite and `vegaEmbed` as a script of its own, for pages that DVC writes."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def for_script_element(script: str) -> str:
    """Keep a script from ending its element, or from opening a comment in which `</script>` is not seen."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").strip()
