"""The page where people try it: static files at ``/`` and ``/web/``."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

WEB_DIRECTORY = Path(__file__).parents[1] / "web"


def add_page(app: FastAPI, directory: Path) -> None:
    """Serve the page's files; without them, ``/`` is 404."""
    if directory.is_dir():
        app.mount("/web", StaticFiles(directory=directory), name="web")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        page = directory / "index.html"
        if not page.is_file():
            raise HTTPException(404)
        return FileResponse(page, headers={"Cache-Control": "no-cache"})
