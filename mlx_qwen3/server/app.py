"""The application: its routes, and what every request passes on the way to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .answers import Health, Model, ModelList, json_response
from .chat import chat_completions
from .completions import completions
from .errors import ApiError, answer_api_error, answer_http_error
from .guard import Guard, Log
from .models import Pool
from .openapi import document
from .service import Service, service_of
from .settings import Settings
from .static import page_routes
from .tokens import detokenize, tokenize

LOCAL_PAGES = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"


def make_app(settings: Settings, pool: Pool) -> Starlette:
    """The ASGI application. Its lifespan ends with the engines of the pool."""
    service = Service(settings, pool)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(pool.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await pool.close("the server was stopped")
            service.threads.shutdown(wait=False)
            service.grammars.shutdown(wait=False)

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors,
        allow_origin_regex=LOCAL_PAGES,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,  # a page that is let in may be of another network
    )
    app = Starlette(
        routes=[*ROUTES, *page_routes(settings)],
        middleware=[
            Middleware(Log, metrics=service.metrics),
            cors,  # tells browsers which pages may read the answers; `Guard` refuses the others
            Middleware(Guard, settings=settings),
        ],
        exception_handlers={ApiError: answer_api_error, HTTPException: answer_http_error, Exception: answer_api_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def models(http: Request) -> Response:
    pool = service_of(http, "models").pool
    return json_response(ModelList([_model(pool, name) for name in pool.names]))


async def model(http: Request) -> Response:
    pool = service_of(http, "models").pool
    return json_response(_model(pool, pool.check_name(http.path_params["name"])))


async def health(http: Request) -> Response:
    """503 if the engine of a model is not alive."""
    loaded = service_of(http, "health").pool.loaded
    states = {one.name: "alive" if one.engine.alive else "down" for one in loaded}
    well = "down" not in states.values()
    return json_response(Health("ok" if well else "down", states), 200 if well else 503)


async def metrics(http: Request) -> Response:
    service = service_of(http, "metrics")
    return Response(service.metrics.text(service.gauges()), media_type="text/plain; version=0.0.4")


async def openapi(http: Request) -> Response:
    service_of(http, "openapi")
    return json_response(document())


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{name:path}", model, methods=["GET"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
]


def _model(pool: Pool, name: str) -> Model:
    base = pool.base(name)
    return Model(name, pool.created(name), pool.context(name), parent=UNSET if base == name else base)
