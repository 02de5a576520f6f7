"""The page at /, a chat in the browser, and its files under /page/."""

from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from .settings import Settings

# The page loads from this server only, whatever a model writes into it. Only what DOMPurify has passed becomes HTML.
POLICY = {
    "default-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a newer version counts at once; what is the same is not sent again
}


class Files(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def page_routes(settings: Settings) -> list[BaseRoute]:
    """None if the page is not installed."""
    index = settings.page / "index.html"
    if not index.is_file():
        return []

    async def page(http: Request) -> Response:
        http.scope["note"].endpoint = "page"
        return FileResponse(index, headers=HEADERS)

    return [Route("/", page, methods=["GET"]), Mount("/page", Files(directory=settings.page))]
