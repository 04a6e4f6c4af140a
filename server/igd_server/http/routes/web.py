"""The pages to try, to compare and to operate, and what they load below ``/web/``; the API's, at ``/docs``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

_REVALIDATE = {"Cache-Control": "no-cache"}  # a new page must not run with an old script

WEB_DIRECTORY = Path(__file__).parents[2] / "web"
DOCS_DIRECTORY = Path(__file__).parents[2] / "swagger"


class _RevalidatedFiles(StaticFiles):
    """Static files that a browser revalidates each time; unchanged ones are answered with 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - starlette's own signature
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


def add_docs(app: FastAPI) -> None:
    """Serve Swagger UI from this package's files, without requests to other sites."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(DOCS_DIRECTORY / "index.html", headers=_REVALIDATE)

    app.mount("/docs", _RevalidatedFiles(directory=DOCS_DIRECTORY), name="docs")


def add_page(app: FastAPI, directory: Path) -> None:
    """Serve the pages' files; without a directory, the pages are 404."""
    page = _pages(app, directory)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return page("index.html")

    @app.get("/compare", include_in_schema=False)
    async def compare() -> FileResponse:
        return page("compare.html")

    @app.get("/operate", include_in_schema=False)
    async def operate() -> FileResponse:
        return page("operate.html")


def add_operators_page(app: FastAPI, directory: Path) -> None:
    """Serve ``/operate`` alone: where its commands are, and no recommendations."""
    page = _pages(app, directory)

    @app.get("/operate", include_in_schema=False)
    async def operate() -> FileResponse:
        return page("operate.html")


def _pages(app: FastAPI, directory: Path) -> Callable[[str], FileResponse]:
    """Serve what pages load; what answers with a page."""
    if directory.is_dir():
        app.mount("/web", _RevalidatedFiles(directory=directory), name="web")

    def page(name: str) -> FileResponse:
        file = directory / name
        if not file.is_file():
            raise HTTPException(404)
        return FileResponse(file, headers=_REVALIDATE)

    return page
