"""Self-contained HTML pages: Jinja2 templates whose security policy admits nothing but their own style and script."""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import ureca


def render_page(
    package: str,
    template: str,
    values: Mapping[str, Any],
    *,
    style: str,
    script: str = "",
    allow_data_images: bool = False,
) -> Iterator[str]:
    """Render a template of a package piece by piece, so that a large page is never held in memory as a whole.

    Every value is escaped; the ``tojson`` filter gives JSON in which no text can end a script element or open another.
    Besides ``values``, the template gets ``policy`` (its Content-Security-Policy), ``generator``, ``style`` and
    ``script``.

    Args:
        package: dotted name of the package that ships the template.
        template: file name of the template in the package.
        values: variables and functions of the template.
        style: CSS that ships with this library.
        script: JavaScript that ships with this library; "" for a page without a script.
        allow_data_images: let the page show images from ``data:`` URIs.

    Raises:
        jinja2.UndefinedError: the template uses a variable that ``values`` lacks.
    """
    policy = [
        "default-src 'none'",
        *(["img-src data:"] if allow_data_images else []),
        f"style-src '{_content_hash(style)}'",
        *([f"script-src '{_content_hash(script)}'"] if script else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    return environment.get_template(template).generate(
        policy="; ".join(policy),
        generator=f"ureca {ureca.__version__}",
        # The only values that are not escaped: both come from files of this library, never from data.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        **values,
    )


def read_asset(package: str, *path: str) -> str:
    """The text of a file that ships with a package."""
    return resources.files(package).joinpath(*path).read_text(encoding="utf-8")


def _content_hash(content: str) -> str:
    """The hash by which a Content-Security-Policy admits an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")
